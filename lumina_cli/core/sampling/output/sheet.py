"""A labelled sheet of pictures: a title, words above the columns and beside the rows, on a light ground.

Pillow's own font has the letters of English alone. Where that is not enough, a line, or else a word, or else
a letter is written in the first font of this machine that has all of it. A letter that no font has is left
out and told, never drawn as a box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

GROUND, INK, FAINT, EDGE = "#faf9f7", "#1f2328", "#6b7078", "#e3e0da"
SMALLEST, LARGEST = 96, 512  # pixels of a picture's longer side on the sheet
UNKNOWN = "\uffff"  # a character that no font has
UNSPACED = "\u2e80"  # from here on are the scripts of East Asia, whose lines break anywhere
# found by name in the folders where systems keep their fonts; those with most scripts come first
FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "meiryo.ttc",
    "malgun.ttf",
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "segoeui.ttf",
    "Arial.ttf",
)

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Sheet:
    """What stands around the pictures: `above` names the columns, `beside` the rows (one "" names none)."""

    title: str
    caption: str
    above: Sequence[str]
    beside: Sequence[str] = ("",)


def draw_sheet(sheet: Sheet, pictures: Sequence[Image.Image]) -> tuple[Image.Image, str]:
    """Return the sheet of pictures, row by row, and the letters that no font here can draw."""
    cell = cell_size(pictures)
    text, large = max(13, cell[0] // 14), max(17, cell[0] // 10)
    gap, margin = max(8, cell[0] // 20), max(20, cell[0] // 6)
    columns, rows = len(sheet.above), len(sheet.beside)
    side = max(_width(label, text) for label in sheet.beside)
    wrapped = [wrap(label, cell[0], text) for label in sheet.above]
    left = margin + (side + 2 * gap if side else 0)
    grid_width = columns * cell[0] + (columns - 1) * gap
    width = left + grid_width + margin
    width = max(width, min(2 * margin + _width(sheet.title, large), 2 * margin + 16 * large))
    title = wrap(sheet.title, width - 2 * margin, large)[:4]
    caption = wrap(sheet.caption, width - 2 * margin, text)
    line, big = round(text * 1.4), round(large * 1.35)
    below_title = margin + big * len(title) + line * len(caption)
    top = below_title + 2 * gap + line * max(map(len, wrapped)) + gap
    height = top + rows * cell[1] + (rows - 1) * gap + margin

    image = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(image)
    for number, words in enumerate(title):
        write(pen, (margin, margin + number * big), words, large, INK)
    for number, words in enumerate(caption):
        write(pen, (margin, margin + big * len(title) + number * line), words, text, FAINT)
    for column, label in enumerate(wrapped):
        middle = left + column * (cell[0] + gap) + cell[0] // 2
        for number, words in enumerate(reversed(label)):
            place = middle - _width(words, text) // 2, top - gap - line * (number + 1)
            write(pen, place, words, text, INK)
    for row, label in enumerate(sheet.beside):
        place = left - 2 * gap - _width(label, text), top + row * (cell[1] + gap) + (cell[1] - line) // 2
        write(pen, place, label, text, INK)
    for number, picture in enumerate(pictures):
        x, y = left + number % columns * (cell[0] + gap), top + number // columns * (cell[1] + gap)
        shown = scaled(picture, cell)
        x, y = x + (cell[0] - shown.width) // 2, y + (cell[1] - shown.height) // 2
        pen.rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=EDGE)
        image.paste(shown, (x, y))
    return image, missing("".join([sheet.title, sheet.caption, *sheet.above, *sheet.beside]))


def cell_size(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """Return the width and height that hold every picture, between SMALLEST and LARGEST."""
    width, height = max(one.width for one in pictures), max(one.height for one in pictures)
    longer = max(width, height)
    scale = min(1.0, LARGEST / longer) * (-(-SMALLEST // longer) if longer < SMALLEST else 1)
    return round(width * scale), round(height * scale)


def scaled(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """Return a picture enlarged by a whole number, or reduced, until it just fits a cell."""
    fit = min(cell[0] / picture.width, cell[1] / picture.height)
    if fit >= 1:
        times = int(fit)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    size = max(1, round(picture.width * fit)), max(1, round(picture.height * fit))
    return picture.resize(size, Image.Resampling.LANCZOS)


def write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, ink: str) -> None:
    """Write one line, its base line the same whatever fonts its letters come from."""
    x, y = place
    for font, run in runs(text, size):
        pen.text((x, y + round(size * 1.05)), run, fill=ink, font=font, anchor="ls")
        x += font.getlength(run)


def wrap(text: str, width: int, size: int) -> list[str]:
    """Return lines of `text` that fit `width`; words that are longer, and Chinese, break anywhere."""
    lines = [""]
    for word in pieces(text):
        if lines[-1] and _width(lines[-1] + word.rstrip(), size) > width:
            lines.append("")
        lines[-1] += word if lines[-1] else word.lstrip()
        while _width(lines[-1].rstrip(), size) > width and len(lines[-1]) > 1:
            long = lines[-1]
            cut = next(n for n in range(len(long) - 1, 0, -1) if n == 1 or _width(long[:n], size) <= width)
            lines[-1:] = [long[:cut], long[cut:]]
    return [line.strip() for line in lines if line.strip()]


def pieces(text: str) -> list[str]:
    """Cut text where a line may break: after spaces, and around letters from the scripts without them."""
    found: list[str] = []
    for letter in " ".join(text.split()):
        alone = letter >= UNSPACED
        if not found or alone or found[-1].endswith(" ") or found[-1][-1] >= UNSPACED:
            found.append("")
        found[-1] += letter
    return found


def runs(text: str, size: int) -> list[tuple[Font, str]]:
    """Return the parts of `text` and the font that has all their letters; letters that none has are gone."""
    text = "".join(one for one in text if one.isprintable())
    chosen: list[tuple[str | None, str]] = []
    for part in [text] if font_of(text) is not None else pieces(text):
        whole = font_of(part)
        chosen += [(whole, part)] if whole is not None else [(font_of(one), one) for one in part]
    groups = groupby((pair for pair in chosen if pair[0] is not None), key=lambda pair: pair[0])
    return [(font(name, size), "".join(part for _, part in pairs)) for name, pairs in groups]


def missing(text: str) -> str:
    """Return the letters of `text` that no font here has, each once."""
    return "".join(dict.fromkeys(one for one in text if one.isprintable() and font_of(one) is None))


@lru_cache(maxsize=4096)
def font_of(text: str) -> str | None:
    """Return the name of the first font that has every letter of `text`, or None; "" is Pillow's own."""
    letters = set(text) - {" "}
    return next((name for name in found_fonts() if all(has(name, one) for one in letters)), None)


@lru_cache(maxsize=16384)
def has(name: str, letter: str) -> bool:
    """Whether a font draws a letter as something else than what it draws for a character it lacks."""
    own = font(name, 20)
    shape, unknown = own.getmask(letter), own.getmask(UNKNOWN)
    return (shape.size, bytes(shape)) != (unknown.size, bytes(unknown))


@lru_cache
def found_fonts() -> tuple[str, ...]:
    """Return the names of the fonts on this machine; Pillow's own is always there."""
    return tuple(name for name in ("", *FONTS) if font(name, 20) is not None)


@lru_cache(maxsize=128)
def font(name: str, size: int) -> Font | None:
    """Return a font by file name, or None where this machine has none of that name."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _width(text: str, size: int) -> int:
    return round(sum(own.getlength(run) for own, run in runs(text, size)))
