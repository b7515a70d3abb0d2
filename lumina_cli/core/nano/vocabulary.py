"""The vocabulary of nano: the words of the captions that it was trained on."""

import re
from functools import lru_cache

from lumina_cli.core.nano.captions import all_captions
from lumina_cli.core.nano.scene import draw_scene

_SCENES = 400  # their captions contain nearly every word of the lexicon and the templates
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SPACELESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Chinese and Japanese, written without spaces


@lru_cache(maxsize=1)
def caption_words() -> frozenset[str]:
    """Return the words of the captions of many scenes in all languages, in lower case."""
    levels = (texts for index in range(_SCENES) for texts in all_captions(draw_scene(0, index)).values())
    return frozenset(
        word.lower() for texts in levels for text in texts.values() for word in _WORD.findall(text)
    )


def find_unseen_words(text: str) -> list[str]:
    """Return the words of `text` that no caption of nano's training contains, each once, in order.

    Numbers, and words of languages that are written without spaces, are left out.
    """
    words = dict.fromkeys(word.lower() for word in _WORD.findall(text) if not _SPACELESS.search(word))
    if not words:
        return []
    seen = caption_words()
    return [word for word in words if word not in seen and not set(re.split("['’-]", word)) <= seen]
