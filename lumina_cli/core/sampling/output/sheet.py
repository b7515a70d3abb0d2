"""Contact sheets: images with a title, column labels and row labels on a light background.

Pillow's default font contains Latin letters only. If that is not enough, text is set in the first installed
font that contains all of a line, else of a word, else of a character. Characters that no font contains are
omitted and reported, never drawn as a box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from PIL import Image, ImageDraw, ImageFont

GROUND, INK, FAINT, EDGE = "#faf9f7", "#1f2328", "#6b7078", "#e3e0da"
SMALLEST, LARGEST = 96, 512  # pixels of an image's longer side on the sheet
UNKNOWN = "\uffff"  # a character that no font contains
UNSPACED = "\u2e80"  # East Asian scripts start here; their lines break anywhere
# Pillow finds these by name in the font folders of the system; fonts with the most scripts come first
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
    """The text around the images.

    columns   labels above the columns
    rows      labels to the left of the rows; a single "" labels none
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[str] = ("",)


@dataclass(frozen=True)
class _Layout:
    """Pixel sizes and positions of everything on a sheet.

    cell         width and height of a cell
    text, large  font sizes of labels and title; line, big are their line heights
    left, top    upper left corner of the first cell
    """

    cell: tuple[int, int]
    text: int
    large: int
    line: int
    big: int
    gap: int
    margin: int
    left: int
    top: int
    width: int
    height: int
    title: list[str]
    caption: list[str]
    columns: list[list[str]]


def draw_sheet(sheet: Sheet, images: Sequence[Image.Image]) -> tuple[Image.Image, str]:
    """Return the sheet of images, row by row, and the characters that no installed font contains."""
    layout = _lay_out(sheet, cell_size(images))
    canvas = Image.new("RGB", (layout.width, layout.height), GROUND)
    pen = ImageDraw.Draw(canvas)
    _write_text(pen, sheet, layout)
    _paste_images(canvas, pen, images, layout)
    return canvas, missing("".join([sheet.title, sheet.caption, *sheet.columns, *sheet.rows]))


def _lay_out(sheet: Sheet, cell: tuple[int, int]) -> _Layout:
    """Compute the layout; sizes follow the width of a cell, the sheet widens for a long title."""
    text, large = max(13, cell[0] // 14), max(17, cell[0] // 10)
    gap, margin = max(8, cell[0] // 20), max(20, cell[0] // 6)
    count = len(sheet.columns)
    side = max(_width(label, text) for label in sheet.rows)
    columns = [wrap(label, cell[0], text) for label in sheet.columns]
    left = margin + (side + 2 * gap if side else 0)
    width = left + count * cell[0] + (count - 1) * gap + margin
    width = max(width, min(2 * margin + _width(sheet.title, large), 2 * margin + 16 * large))
    title = wrap(sheet.title, width - 2 * margin, large)[:4]
    caption = wrap(sheet.caption, width - 2 * margin, text)
    line, big = round(text * 1.4), round(large * 1.35)
    below_title = margin + big * len(title) + line * len(caption)
    top = below_title + 2 * gap + line * max(map(len, columns)) + gap
    rows = len(sheet.rows)
    height = top + rows * cell[1] + (rows - 1) * gap + margin
    return _Layout(
        cell, text, large, line, big, gap, margin, left, top, width, height, title, caption, columns
    )


def _write_text(pen: ImageDraw.ImageDraw, sheet: Sheet, at: _Layout) -> None:
    """Write title, caption and labels."""
    for number, words in enumerate(at.title):
        write(pen, (at.margin, at.margin + number * at.big), words, at.large, INK)
    for number, words in enumerate(at.caption):
        y = at.margin + at.big * len(at.title) + number * at.line
        write(pen, (at.margin, y), words, at.text, FAINT)
    for column, label in enumerate(at.columns):
        middle = at.left + column * (at.cell[0] + at.gap) + at.cell[0] // 2
        for number, words in enumerate(reversed(label)):  # labels of several lines end at one height
            place = middle - _width(words, at.text) // 2, at.top - at.gap - at.line * (number + 1)
            write(pen, place, words, at.text, INK)
    for row, label in enumerate(sheet.rows):
        x = at.left - 2 * at.gap - _width(label, at.text)
        y = at.top + row * (at.cell[1] + at.gap) + (at.cell[1] - at.line) // 2
        write(pen, (x, y), label, at.text, INK)


def _paste_images(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, images: Sequence[Image.Image], at: _Layout
) -> None:
    """Paste each image, scaled and centred in its cell, with a thin border."""
    columns = len(at.columns)
    for number, image in enumerate(images):
        x = at.left + number % columns * (at.cell[0] + at.gap)
        y = at.top + number // columns * (at.cell[1] + at.gap)
        shown = scaled(image, at.cell)
        x, y = x + (at.cell[0] - shown.width) // 2, y + (at.cell[1] - shown.height) // 2
        pen.rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=EDGE)
        canvas.paste(shown, (x, y))


def cell_size(images: Sequence[Image.Image]) -> tuple[int, int]:
    """Return the (width, height) that contains every image, its longer side from SMALLEST to LARGEST."""
    width, height = max(one.width for one in images), max(one.height for one in images)
    longer = max(width, height)
    scale = min(1.0, LARGEST / longer) * (-(-SMALLEST // longer) if longer < SMALLEST else 1)
    return round(width * scale), round(height * scale)


def scaled(image: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """Return an image scaled to fit a cell: enlarged by a whole number, or reduced."""
    fit = min(cell[0] / image.width, cell[1] / image.height)
    if fit >= 1:
        times = int(fit)
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    size = max(1, round(image.width * fit)), max(1, round(image.height * fit))
    return image.resize(size, Image.Resampling.LANCZOS)


def write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, ink: str) -> None:
    """Write one line; all fonts in it share one base line."""
    x, y = place
    for font, run in runs(text, size):
        pen.text((x, y + round(size * 1.05)), run, fill=ink, font=font, anchor="ls")
        x += font.getlength(run)


def wrap(text: str, width: int, size: int) -> list[str]:
    """Return lines of `text` that fit `width` pixels; longer words and East Asian text break anywhere."""
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
    """Split text where a line may break: after spaces, and around characters of scripts without spaces."""
    found: list[str] = []
    for letter in " ".join(text.split()):
        alone = letter >= UNSPACED
        if not found or alone or found[-1].endswith(" ") or found[-1][-1] >= UNSPACED:
            found.append("")
        found[-1] += letter
    return found


def runs(text: str, size: int) -> list[tuple[Font, str]]:
    """Return runs of `text` with a font that contains them; characters that no font contains are omitted."""
    text = "".join(one for one in text if one.isprintable())
    chosen: list[tuple[str | None, str]] = []
    for part in [text] if font_of(text) is not None else pieces(text):
        whole = font_of(part)
        chosen += [(whole, part)] if whole is not None else [(font_of(one), one) for one in part]
    groups = groupby((pair for pair in chosen if pair[0] is not None), key=lambda pair: pair[0])
    return [(font(name, size), "".join(part for _, part in pairs)) for name, pairs in groups]


def missing(text: str) -> str:
    """Return the characters of `text` that no installed font contains, each once."""
    return "".join(dict.fromkeys(one for one in text if one.isprintable() and font_of(one) is None))


@lru_cache(maxsize=4096)
def font_of(text: str) -> str | None:
    """Return the name of the first font that contains all of `text`, or None; "" is Pillow's default font."""
    letters = set(text) - {" "}
    return next((name for name in found_fonts() if all(has(name, one) for one in letters)), None)


@lru_cache(maxsize=16384)
def has(name: str, letter: str) -> bool:
    """Whether a font contains a letter: it draws missing characters all alike, as it draws UNKNOWN."""
    own = font(name, 20)
    shape, unknown = own.getmask(letter), own.getmask(UNKNOWN)
    return (shape.size, bytes(shape)) != (unknown.size, bytes(unknown))


@lru_cache
def found_fonts() -> tuple[str, ...]:
    """Return the names of the installed fonts of FONTS, after Pillow's default font."""
    return tuple(name for name in ("", *FONTS) if font(name, 20) is not None)


@lru_cache(maxsize=128)
def font(name: str, size: int) -> Font | None:
    """Return a font by file name, or None if it is not installed."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _width(text: str, size: int) -> int:
    return round(sum(own.getlength(run) for own, run in runs(text, size)))
