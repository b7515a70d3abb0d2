"""Comparing captioners: files of rows about the same pictures, side by side.

A kind is a language and a level. Rows are about the same picture where their "image" is the same place, or
their "key" where images differ in all files. Captions that rows brought are left out where rows
tell which an engine wrote. Agreement of two captions is the share of character triples (pairs in Chinese and
Japanese) that they have in common, 0 to 1 (Dice): about 0.2 to 0.4 for two independent descriptions, 1 for
the same text.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median, quantiles

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.density import SAID, UNSPACED, count_said, length_of
from lumina_cli.core.evals.captions.provenance import caption_provenance, existing_kinds
from lumina_cli.core.io.jsonl import LEVELS, get_captions, get_error, in_memory

Kind = tuple[str, str]


@dataclass(frozen=True)
class CaptionFile:
    """Rows of one file by the picture that they are about.

    `brought` are the kinds of captions that came with rows and are left out; `failed` counts rows that an
    earlier verb could do nothing with.
    """

    name: str
    rows: dict[str, dict]
    brought: frozenset[Kind] = frozenset()
    failed: int = 0

    def left_out(self) -> str | None:
        """Return what of the file is not compared, in words; None where all of it is."""
        some = [f"{len(self.brought)} kinds that the rows brought"] if self.brought else []
        some += [f"{self.failed} rows with an error"] if self.failed else []
        return f"{self.name}: left out: {', '.join(some)}" if some else None

    def gone(self) -> str | None:
        """Return how many of its pictures are not where its rows say, in words; None where all are there."""
        lost = sum(map(_is_gone, self.rows.values()))
        return f"{self.name}: {lost} of {len(self.rows)} pictures are not there" if lost else None

    def texts(self, kind: Kind) -> dict[str, str]:
        """Return the captions of a kind by picture."""
        lang, level = kind
        found = ((picture, row["captions"].get(lang, {}).get(level)) for picture, row in self.rows.items())
        return {picture: text for picture, text in found if text}


def open_files(sources: Sequence[str], read: Callable[[str], Iterable[dict]]) -> list[CaptionFile]:
    """Return the captions of each source; `read` gives its rows. LuminaError where one has no captions."""
    told = [list(read(source)) for source in sources]
    rows = [caption_provenance(_captioned(some, source)) for some, source in zip(told, sources, strict=True)]
    failed = [sum(map(bool, map(get_error, some))) for some in told]
    names = _short_names(sources)
    for name in ("image", "key"):
        files = [
            CaptionFile(
                short,
                {_picture(row, name): row for row in some if _picture(row, name)},
                frozenset(existing_kinds(some)),
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
            raise LuminaError(f"{source} row {number} has neither 'image' nor 'key' to tell its picture by")
        captions = get_captions(row, f"{source} row {number}")
        if captions:
            found = True
            yield row | {"captions": captions}
    if not found:
        raise LuminaError(f"{source} has no captions to compare; `lumina caption` writes them")


def _picture(row: dict, name: str) -> str | None:
    value = row.get(name)
    if name == "key" or value is None or isinstance(value, bytes | Image.Image):
        return str(row["key"]) if row.get("key") else None
    return str(value) if ".tar#" in str(value) else os.path.realpath(str(value))


def _is_gone(row: dict) -> bool:
    """Whether a row names a file of this machine that is not there; its captions count all the same."""
    place = row.get("image")
    if place is None or in_memory(place) or "://" in str(place):
        return False
    tar, found, _ = str(place).partition(".tar#")
    return not os.path.exists(f"{tar}.tar" if found else tar)


def _short_names(sources: Sequence[str]) -> list[str]:
    """The last parts of the sources, as many as it takes to tell them apart."""
    for parts in range(1, 9):
        names = ["/".join(source.rstrip("/").split("/")[-parts:]) for source in sources]
        if len(set(names)) == len(names):
            return names
    return [f"{number}: {source}" for number, source in enumerate(sources, start=1)]


def kinds_of(files: Sequence[CaptionFile]) -> list[Kind]:
    """Return the (language, level) pairs that occur, by language, from the longest level to the shortest."""
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
    """Yield a row per file and kind: captions, lengths, density, and agreement with other files."""
    for kind in kinds_of(files):
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
    """Return how long captions are and how much they say per 100 words (zh, ja: characters)."""
    texts = list(texts)
    characters = sorted(map(len, texts))
    lengths = [length_of(text, lang) for text in texts]
    said = [count_said(text, lang) for text in texts]
    unit = max(1, sum(lengths))
    row = {"captions": len(texts), "different": round(len(set(texts)) / len(texts), 4)}
    row |= {"characters": round(mean(characters), 1), "median": median(characters)}
    row |= {"p90": quantiles(characters, n=10)[-1] if len(texts) > 1 else characters[0]}
    row |= {"words": round(mean(lengths), 1)}
    for name in SAID:
        counts = [each[name] for each in said]
        row[name] = None if None in counts else round(100 * sum(counts) / unit, 2)
    return row


def agreement(first: dict[str, str], second: dict[str, str], lang: str) -> float | None:
    """Return the mean agreement over the pictures that both have, or None where there are none."""
    common = [picture for picture in first if picture in second]
    if not common:
        return None
    return round(mean(dice(first[picture], second[picture], lang) for picture in common), 4)


def dice(a: str, b: str, lang: str) -> float:
    """Return the share of character triples (zh, ja: pairs) that two texts have in common, 0 to 1."""
    size = 2 if lang in UNSPACED else 3
    x, y = (_pieces(text, size) for text in (a, b))
    total = x.total() + y.total()
    return 2 * (x & y).total() / total if total else float(a == b)


def _pieces(text: str, size: int) -> Counter:
    text = " ".join(text.lower().split())
    return Counter(text[i : i + size] for i in range(max(1, len(text) - size + 1)))
