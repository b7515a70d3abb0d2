"""Kinds of files by suffix and by content: images that are read, images that are not, and everything else."""

import re
from collections import Counter

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".mpo"),  # JPEG; an .mpo file holds several
    *(".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif"),
)
OTHER_IMAGES = re.compile(
    r"\.(hei[cf]|hif|jxl|jp2|j2k|jp[xf]|jxr|ps[db]|svg|eps|ico|icns|tga|exr|hdr|dds|xcf|qoi|pcx"
    r"|raw|dng|cr[23]|nef|arw|orf|rw2|raf|pef|srw)"
)  # suffixes of image formats that are not read
START = 512  # bytes that `sniff` examines
READ = frozenset(
    ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
)  # results of `sniff` that are read

_MAGIC = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "WEBP"),
    (re.compile(rb"GIF8[79]a"), "GIF"),
    (re.compile(rb"BM....\0\0\0\0", re.DOTALL), "BMP"),
    (re.compile(rb"II\*\0|MM\0\*"), "TIFF"),
    (re.compile(rb"P[1-6]\s+(#|\d)"), "PPM"),
    (re.compile(rb"....ftyp(avif|avis)", re.DOTALL), "AVIF"),
    (re.compile(rb"....ftyp(hei|hev|mif1|msf1)", re.DOTALL), "HEIC"),
    (re.compile(rb"....ftypcrx ", re.DOTALL), "a raw photograph"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"8BPS"), "a Photoshop file"),
    (re.compile(rb"%PDF-"), "a PDF file"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip file"),
    (re.compile(rb"....ftyp", re.DOTALL), "a video"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer (run `git lfs pull`)"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<svg", re.DOTALL | re.IGNORECASE), "SVG"),
    (re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE), "an HTML page"),
)
_CONVERTIBLE = ("HEIC", "JPEG XL", "JPEG 2000", "SVG", "a raw photograph", "a Photoshop file")
_NO_SUFFIX = re.compile(r"\.(\d*|.*[^\w~+-].*)")  # "Photo 22.05" and "cat.jpg?w=300" have none
_BYSTANDERS = re.compile(
    r"(readme|license|thumbs|desktop)\b.*|.*\.md", re.IGNORECASE
)  # expected next to images
_MOST_KINDS = 6  # kinds of files that a note names


def is_image(name: str) -> bool:
    """Whether the suffix of a file name is that of an image format that is read."""
    return name.lower().endswith(SUFFIXES)


def split_suffix(name: str) -> tuple[str, str]:
    """Return (stem, suffix) of a file name, the suffix in lower case; "" if it has none."""
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem or _NO_SUFFIX.fullmatch(dot + ending):
        return name, ""
    return stem, (dot + ending).lower()


def sniff(start: bytes) -> str | None:
    """Return the kind of a file, by its first START bytes: one of READ, another kind, or None if unknown."""
    return next((kind for pattern, kind in _MAGIC if pattern.match(start)), None)


def describe_content(start: bytes) -> str:
    """Return why a file is not an image that can be read, by its first bytes."""
    kind = sniff(start)
    if kind is None or kind in READ:
        return "truncated or not an image (jpg, png, webp, bmp, gif, tiff, ppm or avif)"
    return f"is {kind}, which is not read{'; convert it to JPEG or PNG' if kind in _CONVERTIBLE else ''}"


class LeftOut:
    """Counts the files of a source that do not become rows.

    images    images of formats that are not read, by suffix or kind
    captions  caption files that belong to no image
    others    all other files, by suffix, and what else is not read
    """

    def __init__(self) -> None:
        self.images: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.captions = 0
        self.first_rows = ""  # the first file that may hold rows
        self.first_caption = ""

    def add_file(self, name: str, kind: str | None = None) -> None:
        """Count a file; `kind` is the result of `sniff` if its suffix does not show what it is."""
        suffix = split_suffix(name)[1]
        if _BYSTANDERS.fullmatch(name):
            return
        if OTHER_IMAGES.fullmatch(suffix):
            self.images[suffix] += 1
        elif kind in _CONVERTIBLE:
            self.images[kind.removeprefix("a ")] += 1
        else:
            self.others[suffix or "without suffix"] += 1
        if suffix in (".parquet", ".jsonl", ".csv", ".tsv"):
            self.first_rows = self.first_rows or name

    def add_image(self, kind: str) -> None:
        """Count an image that is not read, such as a second image of a sample."""
        self.images[kind] += 1

    def add_caption(self, name: str) -> None:
        """Count a caption file without an image."""
        if _BYSTANDERS.fullmatch(name.rpartition("/")[2]):
            return
        self.captions += 1
        self.first_caption = self.first_caption or name

    def add_other(self, kind: str, count: int = 1) -> None:
        """Count something else that is not read."""
        self.others[kind] += count

    def __bool__(self) -> bool:
        return bool(self.images or self.others or self.captions)

    def __str__(self) -> str:
        counts = (self.images.total(), self.captions, self.others.total())
        names = ("image that cannot be used", "caption file without an image", "other file")
        convert = "; convert them to JPEG or PNG" if any(map(_is_format, self.images)) else ""
        more = (_list(self.images) + convert, f"first: {self.first_caption}", _list(self.others))
        parts = zip(counts, names, more, strict=True)
        return ", ".join(f"{n} {name if n == 1 else _plural(name)} ({text})" for n, name, text in parts if n)


def _plural(name: str) -> str:
    return (
        name.replace("image that", "images that") if "image that" in name else name.replace("file", "files")
    )


def _is_format(kind: str) -> bool:
    return kind in _CONVERTIBLE or f"a {kind}" in _CONVERTIBLE or bool(OTHER_IMAGES.fullmatch(kind))


def _list(counts: Counter[str]) -> str:
    shown = [f"{count} {kind}" for kind, count in counts.most_common(_MOST_KINDS)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_MOST_KINDS))
    return ", ".join([*shown, f"{rest} more"] if rest else shown)
