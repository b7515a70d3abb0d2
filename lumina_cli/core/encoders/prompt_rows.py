"""Rows of prompts: the keys that generation uses, captions as prompts, lists of seeds."""

import re
from collections.abc import Iterable, Iterator

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.captions import LANGUAGE
from lumina_cli.core.io.jsonl import LEVELS, get_captions
from lumina_cli.core.registry import did_you_mean

USED = ("prompt", "seed", "size", "negative", "key")
# settings that cannot differ between rows, and what other programs call them
_SETTINGS = {
    "steps", "calls", "guidance", "cfg", "cfg_scale", "guidance_scale", "num_inference_steps", "shift",
    "solver", "sampler", "sampler_name", "scheduler", "preset", "plan", "model", "lora", "system",
    "negative_prompt", "neg_prompt", "n_prompt", "strength", "width", "height", "resolution", "aspect_ratio",
    "count", "num_images",
}  # fmt: skip
_OF_STAGES = {"image", "captions"}  # rows of other commands have keys such as "width", which are facts
_TABLES = (".csv", ".tsv", ".parquet")  # in these each column is meant to have an effect
_MAX_SEEDS = 100_000
_SEEDS = re.compile(r"(-?\d{1,40})(?:-(\d{1,40}))?")


class RowSurvey:
    """Collects, over all rows of a command, the keys that generation does not use.

    seeded   number of rows with a seed of their own
    """

    def __init__(self) -> None:
        self.seeded = 0
        self._unused: dict[str, dict[str, None]] = {}  # file of rows -> keys

    def add(self, source: str, row: dict) -> None:
        """Examine a row of the file `source`."""
        self.seeded += "seed" in row
        unused = [key for key in row if key not in USED]
        if not unused:
            return
        if not source.lower().endswith(_TABLES):
            settings = () if _OF_STAGES & row.keys() else _SETTINGS
            unused = [key for key in unused if key in settings or (len(key) > 2 and _misspells(key))]
        if unused:
            self._unused.setdefault(source, {}).update(dict.fromkeys(unused))

    def notes(self) -> Iterator[str]:
        """Yield a note for each file with keys that are not used."""
        for source, keys in self._unused.items():
            named = ", ".join(f"{key!r}{_hint(key)}" for key in keys)
            place = "stdin" if source == "-" else source
            yield f"{place}: not used for generation: {named}; rows may set {', '.join(USED)}"


def _misspells(key: str) -> bool:
    return bool(did_you_mean(key, USED[:-1])) and key.lower() not in ("id", "seeds", "sizes")


def _hint(key: str) -> str:
    found = "'negative'" if key.startswith("neg") else did_you_mean(key, USED).removeprefix("; did you mean ")
    return f" (did you mean {found.rstrip('?')}?)" if found else ""


def captions_to_prompts(rows: Iterable[dict], which: str) -> Iterator[dict]:
    """Yield the rows with a caption of theirs as "prompt".

        which   a level of LEVELS, optionally of a language ("zh:short"); "longest" takes the most detailed

    Raises:
        UsageError: if `which` is not a level.
        LuminaError: if a row does not have the caption.
    """
    language, level = _parse_level(which)
    for number, row in enumerate(rows, start=1):
        captions = row.get("captions")
        if not isinstance(captions, str):
            captions = _pick_caption(get_captions(row, f"row {number}"), language, level, f"row {number}")
        yield {**row, "prompt": captions}


def check_level(which: str) -> None:
    """Validate the name of a caption.

    Raises:
        UsageError: if it is not a level.
    """
    _parse_level(which)


def _parse_level(which: str) -> tuple[str, str]:
    language, colon, level = which.rpartition(":")
    if level not in (*LEVELS, "longest") or (colon and not language):
        levels = ", ".join((*LEVELS, "longest"))
        raise UsageError(f"--captions is {which!r}, but must be one of {levels}, or such as zh:short")
    return language or LANGUAGE, level


def _pick_caption(captions: dict[str, dict[str, str]], language: str, level: str, where: str) -> str:
    texts = captions.get(language, {})
    names = LEVELS if level == "longest" else (level,)
    text = next((texts[name] for name in names if texts.get(name, "").strip()), None)
    if text is None:
        found = ", ".join(f"{lang}:{name}" for lang, texts in captions.items() for name in texts) or "none"
        raise LuminaError(f"{where} has no caption {language}:{level}, only {found}")
    return text


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of "7", "1,2" or "1,2,7-9", each once.

    Raises:
        UsageError: if the text is something else, or there are more than 100,000 seeds.
    """
    seeds: dict[int, None] = {}
    for word in text.split(","):
        found = _SEEDS.fullmatch(word.strip())
        first = int(found[1]) if found else 0
        last = int(found[2]) if found and found[2] else first
        if found and last < first:
            raise UsageError(f"seed is {text!r}, but the range {word.strip()} runs backwards")
        if not found:
            raise UsageError(f"seed is {text!r}, but must be an integer, or a list such as 1,2,7-9")
        if last - first >= _MAX_SEEDS or len(seeds) > _MAX_SEEDS:
            raise UsageError(f"seed {text!r} has more than {_MAX_SEEDS} seeds")
        seeds |= dict.fromkeys(range(first, last + 1))
    return tuple(seeds)
