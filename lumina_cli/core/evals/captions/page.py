"""HTML page with captions side by side, differences marked, and a summary of the figures."""

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path
from statistics import mean

from PIL import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.evals.captions.compare import LEVELS, CaptionFile, CaptionType, caption_types, dice
from lumina_cli.core.evals.captions.density import FACT_KINDS, UNSPACED, length_of
from lumina_cli.core.evals.captions.truth import scene_of
from lumina_cli.core.io.html import pick_evenly, thumbnail, write_page

MOST_MARKED = 4000  # no marks in longer texts (characters): comparing takes quadratic time
SPARE = (
    "captions",
    "said per 100",
    "relations F1",
    "objects F1",
)  # columns that a narrow terminal omits first
ALIKE = 0.1  # relative difference of lengths that counts as equal


def headline(row: dict) -> dict:
    """Return the main figures of a row of `summarize`; "agreement" is the mean over the other files."""
    figures = {"file": row["file"], "kind": f"{row['lang']}.{row['level']}", "captions": row["captions"]}
    figures |= {"words": row["words"], "said per 100": facts_per_100(row)}
    if others := row["agreement"]:
        figures["agreement"] = round(mean(others.values()), 2)
    for aspect in ("objects", "relations"):
        if "truth" in row:
            score = row["truth"].get(aspect, {}).get("f1")
            figures[f"{aspect} F1"] = score if score is None else round(score, 3)
    return figures


def facts_per_100(row: dict) -> float | None:
    """Return the objects, attributes and relations per 100 words (zh, ja: characters), or None."""
    known = [row[name] for name in FACT_KINDS if row[name] is not None]
    return round(sum(known), 1) if known else None


def write_captions_page(
    path: str | Path,
    files: Sequence[CaptionFile],
    rows: Sequence[dict],
    open_image: Callable[[dict], Image.Image],
    count: int = 40,
) -> Path:
    """Write the page: the figures of `summarize`, and up to `count` images with all their captions.

    open_image    row -> its image
    """
    kinds = caption_types(files)
    cards = [_card(files, kinds, image, open_image) for image in choose_images(files, count)]
    langs = list(dict.fromkeys(lang for lang, _ in kinds))
    levels = sorted({level for _, level in kinds}, key=lambda level: (*LEVELS, level).index(level))
    shared = set.intersection(*(set(file.rows) for file in files))
    subtitle = f"{len(shared):,} images in common" if len(files) > 1 else f"{len(shared):,} images"
    notes = [note for file in files if (note := file.exclusions())]
    values = {"files": [file.name for file in files], "rows": rows, "cards": cards, "langs": langs}
    values |= {"levels": levels, "verdicts": list(verdicts(files, rows)), "unspaced": UNSPACED}
    subtitle = "; ".join([subtitle, *notes])
    return write_page(path, "captions.html", title="Captions compared", subtitle=subtitle, **values)


def verdicts(files: Sequence[CaptionFile], rows: Sequence[dict]) -> Iterator[dict]:
    """Yield {lang, level, text} for each caption type: how the first two files compare."""
    if len(files) < 2:
        return
    first, second = (file.name for file in files[:2])
    by = {(row["file"], row["lang"], row["level"]): row for row in rows}
    for lang, level in caption_types(files):
        a, b = by.get((first, lang, level)), by.get((second, lang, level))
        if not a or not b:
            continue
        unit = "characters" if lang in UNSPACED else "words"
        parts = [_longer(first, a["words"], second, b["words"], unit)]
        if None not in (x := facts_per_100(a), y := facts_per_100(b)):
            parts.append(f"{x:g} and {y:g} objects, attributes and relations per 100 {unit}")
        if second in a["agreement"]:
            parts.append(f"agreement {a['agreement'][second]:.2f}")
        yield {"lang": lang, "level": level, "text": "; ".join(parts)}


def _longer(first: str, a: float, second: str, b: float, unit: str) -> str:
    """Return a sentence on the difference in length."""
    if abs(a - b) <= ALIKE * max(a, b, 1):
        return f"about as long ({a:g} and {b:g} {unit})"
    longer, shorter = (first, second) if a > b else (second, first)
    excess = abs(a - b) / max(min(a, b), 1)
    return f"{longer} is {100 * excess:.0f} % longer than {shorter} ({a:g} and {b:g} {unit})"


def marked(text: str, other: str | None, lang: str) -> list[tuple[str, bool]]:
    """Return a text as pieces (piece, whether it is missing in `other`); the pieces join to the text.

    Pieces are words, or characters in Chinese and Japanese; case and punctuation are ignored.
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
    """Return words (or characters) and the separators between them."""
    return re.findall(r"\w|\W+" if lang in UNSPACED else r"[\w'’-]+|[^\w'’-]+", text)


def _is_word(piece: str) -> bool:
    return any(map(str.isalnum, piece))


def choose_images(files: Sequence[CaptionFile], count: int) -> list[str]:
    """Return up to `count` images for the page, evenly spaced, among those in most files."""
    have: dict[str, int] = {}
    for file in files:
        for image in file.rows:
            have[image] = have.get(image, 0) + 1
    most = max(have.values(), default=0)
    return pick_evenly([image for image, number in have.items() if number == most], count)


def _scene_of(row: dict) -> Image.Image | None:
    """Return the rendered nano scene of a row without an image; None for any other row."""
    scene = scene_of(row) if row.get("image") is None else None
    if scene is None:
        return None
    from lumina_cli.core.nano.rendering.renderer import render

    return render([scene])[0].image


def _card(
    files: Sequence[CaptionFile], kinds: Sequence[CaptionType], image: str, open_image: Callable
) -> dict:
    """Return an image with the captions of all files; agreement and marks refer to the first file.

    If there are two files, the first one is marked against the second.
    """
    card: dict = {"name": image.rpartition("/")[2], "picture": None, "problem": "no image", "kinds": []}
    for file in files:
        if row := file.rows.get(image):
            try:
                card["picture"] = thumbnail(_scene_of(row) or open_image(row))
                break
            except LuminaError as error:
                card["problem"] = str(error)
    for lang, level in kinds:
        texts = [file.rows.get(image, {}).get("captions", {}).get(lang, {}).get(level) for file in files]
        if any(texts):
            sides = [_side(file.name, texts, number, lang) for number, file in enumerate(files)]
            card["kinds"].append({"lang": lang, "level": level, "sides": sides})
    return card


def _side(name: str, texts: Sequence[str | None], number: int, lang: str) -> dict:
    """Return the caption of one file, of one type, for an image."""
    text, first = texts[number], texts[0]
    other = first if number else (texts[1] if len(texts) == 2 else None)
    return {
        "file": name,
        "pieces": None if text is None else marked(text, other, lang),
        "length": None if text is None else length_of(text, lang),
        "agreement": dice(first, text, lang) if number and text and first else None,
    }
