"""Comparison of captioners: files of rows about the same images.

A caption type is a language and a level. Rows match if they have the same "image", or the same "key" if no
image is common to all files. If rows name the engine of their captions, captions from other sources are
excluded. Agreement of two captions is the Dice coefficient of their character trigrams (bigrams in Chinese
and Japanese), 0 to 1: about 0.2 to 0.4 for two independent descriptions, 1 for equal texts.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.density import FACT_KINDS, UNSPACED, count_facts, length_of
from lumina_cli.core.evals.captions.provenance import caption_provenance, preexisting_types
from lumina_cli.core.io.jsonl import LEVELS, get_captions, get_error, is_in_memory

CaptionType = tuple[str, str]


@dataclass(frozen=True)
class CaptionFile:
    """The rows of one file, by image.

    preexisting    types of captions that no engine wrote; they are excluded
    failed         number of rows with an error from an earlier command
    """

    name: str
    rows: dict[str, dict]
    preexisting: frozenset[CaptionType] = frozenset()
    failed: int = 0

    def exclusions(self) -> str | None:
        """Return a message about the excluded part of the file; None if the whole file is compared."""
        some = [f"{len(self.preexisting)} caption types without an engine"] if self.preexisting else []
        some += [f"{self.failed} rows with an error"] if self.failed else []
        return f"{self.name}: excluded: {', '.join(some)}" if some else None

    def missing_files(self) -> str | None:
        """Return a message with the number of missing image files; None if none is missing."""
        lost = sum(map(_is_missing, self.rows.values()))
        return f"{self.name}: {lost} of {len(self.rows)} images are missing" if lost else None

    def texts(self, caption_type: CaptionType) -> dict[str, str]:
        """Return the captions of a type, by image."""
        lang, level = caption_type
        found = ((image, row["captions"].get(lang, {}).get(level)) for image, row in self.rows.items())
        return {image: text for image, text in found if text}


def open_files(sources: Sequence[str], read: Callable[[str], Iterable[dict]]) -> list[CaptionFile]:
    """Return the captions of each source.

        read    source -> its rows

    Raises:
        LuminaError: if a source has no captions, or a row has neither an image nor a key.
    """
    sources_rows = [list(read(source)) for source in sources]
    rows = [
        caption_provenance(_captioned(some, source))
        for some, source in zip(sources_rows, sources, strict=True)
    ]
    failed = [sum(map(bool, map(get_error, some))) for some in sources_rows]
    names = _short_names(sources)
    for name in ("image", "key"):
        files = [
            CaptionFile(
                short,
                {_image_of(row, name): row for row in some if _image_of(row, name)},
                frozenset(preexisting_types(some)),
                bad,
            )
            for short, some, bad in zip(names, rows, failed, strict=True)
        ]
        if len(files) == 1 or set.intersection(*(set(file.rows) for file in files)):
            break
    return files


def _captioned(rows: Iterable[dict], source: str) -> Iterator[dict]:
    found = False
    for number, row in enumerate(rows, start=1):
        if get_error(row):
            continue
        if row.get("image") is None and not row.get("key"):
            raise LuminaError(
                f"{source} row {number} has neither 'image' nor 'key', which identify its image"
            )
        captions = get_captions(row, f"{source} row {number}")
        if captions:
            found = True
            yield row | {"captions": captions}
    if not found:
        raise LuminaError(f"{source} has no captions to compare; write them with `lumina caption`")


def _image_of(row: dict, name: str) -> str | None:
    value = row.get(name)
    if name == "key" or value is None or isinstance(value, bytes | Image.Image):
        return str(row["key"]) if row.get("key") else None
    return str(value) if ".tar#" in str(value) else os.path.realpath(str(value))


def _is_missing(row: dict) -> bool:
    """Return whether a row names a local file that does not exist; its captions are compared anyway."""
    place = row.get("image")
    if place is None or is_in_memory(place) or "://" in str(place):
        return False
    tar, found, _ = str(place).partition(".tar#")
    return not os.path.exists(f"{tar}.tar" if found else tar)


def _short_names(sources: Sequence[str]) -> list[str]:
    """Return the shortest distinct suffixes of the source paths."""
    for parts in range(1, 9):
        names = ["/".join(source.rstrip("/").split("/")[-parts:]) for source in sources]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {source}" for number, source in enumerate(sources, start=1)]


def caption_types(files: Sequence[CaptionFile]) -> list[CaptionType]:
    """Return all (language, level) pairs, by language, from the longest level to the shortest."""
    found = {
        (lang, level)
        for file in files
        for row in file.rows.values()
        for lang, texts in row["captions"].items()
        for level in texts
    }
    rank = {level: number for number, level in enumerate(LEVELS)}
    return sorted(found, key=lambda kind: (kind[0] != "en", kind[0], rank.get(kind[1], 9), kind[1]))


def summarize(files: Sequence[CaptionFile]) -> Iterator[dict]:
    """Yield one row per file and caption type: number of captions, lengths, density, agreement."""
    for kind in caption_types(files):
        texts = [file.texts(kind) for file in files]
        for number, (file, own) in enumerate(zip(files, texts, strict=True)):
            if not own:
                continue
            row = {"file": file.name, "lang": kind[0], "level": kind[1]} | describe(own.values(), kind[0])
            others = {
                other.name: agreement(own, theirs, kind[0])
                for other, theirs in zip(files, texts, strict=True)
                if other is not files[number]
            }
            yield row | {"agreement": {name: value for name, value in others.items() if value is not None}}


def describe(texts: Iterable[str], lang: str) -> dict:
    """Return the lengths of captions and their facts per 100 words (zh, ja: characters)."""
    texts = list(texts)
    characters = sorted(map(len, texts))
    lengths = [length_of(text, lang) for text in texts]
    counts_of = [count_facts(text, lang) for text in texts]
    unit = max(1, sum(lengths))
    row = {"captions": len(texts), "different": round(len(set(texts)) / len(texts), 4)}
    row |= {"characters": round(mean(characters), 1), "median": median(characters)}
    row |= {"p90": quantiles(characters, n=10)[-1] if len(texts) > 1 else characters[0]}
    row |= {"words": round(mean(lengths), 1)}
    for name in FACT_KINDS:
        counts = [each[name] for each in counts_of]
        row[name] = None if None in counts else round(100 * sum(counts) / unit, 2)
    return row


def agreement(first: dict[str, str], second: dict[str, str], lang: str) -> float | None:
    """Return the mean agreement over the common images, or None if there are none."""
    common = [image for image in first if image in second]
    if not common:
        return None
    return round(mean(dice(first[image], second[image], lang) for image in common), 4)


def dice(a: str, b: str, lang: str) -> float:
    """Return the Dice coefficient of the character trigrams (zh, ja: bigrams) of two texts, 0 to 1."""
    size = 2 if lang in UNSPACED else 3
    x, y = (_pieces(text, size) for text in (a, b))
    total = x.total() + y.total()
    return 2 * (x & y).total() / total if total else float(a == b)


def _pieces(text: str, size: int) -> Counter:
    text = " ".join(text.lower().split())
    return Counter(text[i : i + size] for i in range(max(1, len(text) - size + 1)))
