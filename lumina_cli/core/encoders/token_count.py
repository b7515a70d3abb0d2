"""How many tokens a text has, told by the tokenizer of a model folder alone: quick, and without torch."""

import hashlib
from pathlib import Path

import lumina_cli
from lumina_cli.core.encoders.prompts import whole_letters
from lumina_cli.core.errors import LuminaError

_NANO = Path(lumina_cli.__file__).parent / "assets" / "nano"


class TokenCounter:
    """Counts the tokens of texts, without those that begin or end a prompt; cheap to pickle.

    `folder` is "nano", a model folder, its tokenizer/ or the tokenizer.json in it. `digest` tells tokenizers
    apart.
    """

    def __init__(self, folder: str):
        place = _NANO if folder == "nano" else Path(folder)
        tried = [place, place / "tokenizer.json", place / "tokenizer" / "tokenizer.json"]
        path = next((path for path in tried if path.is_file()), None)
        if path is None:
            raise LuminaError(f"{folder} holds no tokenizer.json; give the folder of a tokenizer, or nano")
        self.path, self.digest = path, hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        self._tokenizer = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tokenizer": None}

    def __call__(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text."""
        if self._tokenizer is None:
            self._tokenizer = _open(self.path)
        texts = [whole_letters(text) for text in texts]
        return [len(each.ids) for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]


def _open(path: Path):
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more special
        raise LuminaError(f"{path} is no tokenizer ({' '.join(str(error).split())})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
