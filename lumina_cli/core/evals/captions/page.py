"""A page of captions side by side, with what differs between them marked, and their figures in short."""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from statistics import mean

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.compare import LEVELS, CaptionFile, Kind, dice, kinds_of
from lumina_cli.core.evals.captions.density import SAID, UNSPACED, length_of
from lumina_cli.core.evals.captions.truth import scene_of
from lumina_cli.core.io.html import evenly, thumbnail, write_page

MOST_MARKED = 4000  # characters of a text above which nothing is marked: comparing takes their square
SPARE = ("captions", "said per 100", "relations F1", "objects F1")  # of a headline, where there is no room
ALIKE = 0.1  # relative difference of lengths that is not worth a word


def headline(row: dict) -> dict:
    """Return the few figures of a row of `summarize` that a person compares first.

    "agreement" is the mean of that with each other file.
    """
    told = {"file": row["file"], "kind": f"{row['lang']}.{row['level']}", "captions": row["captions"]}
    told |= {"words": row["words"], "said per 100": said_per_100(row)}
    if others := row["agreement"]:
        told["agreement"] = round(mean(others.values()), 2)
    for aspect in ("objects", "relations"):
        if "truth" in row:
            score = row["truth"].get(aspect, {}).get("f1")
            told[f"{aspect} F1"] = score if score is None else round(score, 3)
    return told


def said_per_100(row: dict) -> float | None:
    """Return how many objects, attributes and relations a kind tells per 100 words (zh, ja: characters)."""
    known = [row[name] for name in SAID if row[name] is not None]
    return round(sum(known), 1) if known else None


def write_captions_page(
    path: str | Path,
    files: Sequence[CaptionFile],
    rows: Sequence[dict],
    open_picture: Callable[[dict], Image.Image],
    count: int = 40,
) -> Path:
    """Write the page: what `summarize` says, and up to `count` pictures with all their captions side by side.

    `open_picture` opens the picture of a row.
    """
    kinds = kinds_of(files)
    cards = [_card(files, kinds, picture, open_picture) for picture in choose_images(files, count)]
    langs = list(dict.fromkeys(lang for lang, _ in kinds))
    levels = sorted({level for _, level in kinds}, key=lambda level: (*LEVELS, level).index(level))
    shared = set.intersection(*(set(file.rows) for file in files))
    subtitle = f"{len(shared):,} pictures in common" if len(files) > 1 else f"{len(shared):,} pictures"
    notes = [note for file in files if (note := file.left_out())]
    values = {"files": [file.name for file in files], "rows": rows, "cards": cards, "langs": langs}
    values |= {"levels": levels, "verdicts": list(verdicts(files, rows)), "unspaced": UNSPACED}
    subtitle = "; ".join([subtitle, *notes])
    return write_page(path, "captions.html", title="Captions compared", subtitle=subtitle, **values)


def verdicts(files: Sequence[CaptionFile], rows: Sequence[dict]) -> Iterator[dict]:
    """Yield {lang, level, text} for each kind of the first two files: which is longer, how alike."""
    if len(files) < 2:
        return
    first, second = (file.name for file in files[:2])
    by = {(row["file"], row["lang"], row["level"]): row for row in rows}
    for lang, level in kinds_of(files):
        a, b = by.get((first, lang, level)), by.get((second, lang, level))
        if not a or not b:
            continue
        unit = "characters" if lang in UNSPACED else "words"
        said = [_longer(first, a["words"], second, b["words"], unit)]
        if None not in (x := said_per_100(a), y := said_per_100(b)):
            said.append(f"{x:g} and {y:g} objects, attributes and relations per 100 {unit}")
        if second in a["agreement"]:
            said.append(f"agreement {a['agreement'][second]:.2f}")
        yield {"lang": lang, "level": level, "text": "; ".join(said)}


def _longer(first: str, a: float, second: str, b: float, unit: str) -> str:
    """Which of two is longer, and by how much."""
    if abs(a - b) <= ALIKE * max(a, b, 1):
        return f"about as long ({a:g} and {b:g} {unit})"
    longer, shorter = (first, second) if a > b else (second, first)
    share = abs(a - b) / max(min(a, b), 1)
    return f"{longer} is {100 * share:.0f} % longer than {shorter} ({a:g} and {b:g} {unit})"


def marked(text: str, other: str | None, lang: str) -> list[tuple[str, bool]]:
    """Return a text in pieces, (piece, whether `other` lacks it); they join to the text.

    Pieces are words, or characters in Chinese and Japanese; case and marks between words do not count.
    """
    if other is None or max(len(text), len(other)) > MOST_MARKED:
        return [(text, False)]
    pieces = _pieces(text, lang)
    named = [at for at, piece in enumerate(pieces) if _is_word(piece)]
    own = [pieces[at].lower() for at in named]
    theirs = [piece.lower() for piece in _pieces(other, lang) if _is_word(piece)]
    new = set(named)
    for block in SequenceMatcher(None, own, theirs, autojunk=False).get_matching_blocks():
        new -= set(named[block.a : block.a + block.size])
    new |= {at for at, piece in enumerate(pieces) if piece.isspace() and {at - 1, at + 1} <= new}
    runs = groupby(range(len(pieces)), new.__contains__)
    return [("".join(pieces[at] for at in run), is_new) for is_new, run in runs]


def _pieces(text: str, lang: str) -> list[str]:
    """Words (or characters) and what is between them."""
    return re.findall(r"\w|\W+" if lang in UNSPACED else r"[\w'’-]+|[^\w'’-]+", text)


def _is_word(piece: str) -> bool:
    return any(map(str.isalnum, piece))


def choose_images(files: Sequence[CaptionFile], count: int) -> list[str]:
    """Return up to `count` pictures for the page, spread evenly, of those that most files have."""
    have: dict[str, int] = {}
    for file in files:
        for picture in file.rows:
            have[picture] = have.get(picture, 0) + 1
    most = max(have.values(), default=0)
    return evenly([picture for picture, number in have.items() if number == most], count)


def _scene_of(row: dict) -> Image.Image | None:
    """Return the picture of a nano scene that has none in a file, rendered again; None for any other row."""
    scene = scene_of(row) if row.get("image") is None else None
    if scene is None:
        return None
    from lumina_cli.core.nano.renderer import render

    return render([scene])[0].image


def _card(files: Sequence[CaptionFile], kinds: Sequence[Kind], picture: str, open_picture: Callable) -> dict:
    """A picture with the captions of all files; agreement and marks are against the first file.

    The first file itself is marked against the second one, if there are two.
    """
    card: dict = {"name": picture.rpartition("/")[2], "picture": None, "problem": "no picture", "kinds": []}
    for file in files:
        if row := file.rows.get(picture):
            try:
                card["picture"] = thumbnail(_scene_of(row) or open_picture(row))
                break
            except LuminaError as error:
                card["problem"] = str(error)
    for lang, level in kinds:
        texts = [file.rows.get(picture, {}).get("captions", {}).get(lang, {}).get(level) for file in files]
        if any(texts):
            sides = [_side(file.name, texts, number, lang) for number, file in enumerate(files)]
            card["kinds"].append({"lang": lang, "level": level, "sides": sides})
    return card


def _side(name: str, texts: Sequence[str | None], number: int, lang: str) -> dict:
    """One file's caption of a kind of a picture."""
    text, first = texts[number], texts[0]
    other = first if number else (texts[1] if len(texts) == 2 else None)
    return {
        "file": name,
        "pieces": None if text is None else marked(text, other, lang),
        "length": None if text is None else length_of(text, lang),
        "agreement": dice(first, text, lang) if number and text and first else None,
    }
