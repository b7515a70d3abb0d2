"""Captions as people store them: the text of a file, one text, several texts, or a key of a row.

A caption without a level is a list of tags, or is classified by its length. Of several captions at one level
the first keeps the name of the level, and the others are short_2, short_3 and so on.
"""

import codecs
import re

from lumina_cli.core.errors import LuminaError

LANGUAGE = "en"  # default language of a caption
LEVEL_WORDS = {"short": 12, "medium": 30}  # most words of each level, to classify a caption without one
LINES = (
    "one",
    "first",
    "each",
)  # how a text file is read: as one caption, its first line, each line
KEYS = ("caption", "text", "prompt")  # keys of a row that hold a caption without a level
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SEPARATORS = re.compile(r"\s*[,，、،;；|]\s*")
_PROSE = re.compile(
    # a word that continues a sentence at the start of an item
    r"(?:and|or|but|while|which|who|whose|where|as|because|he|she|they|it|und|oder|et|ou|y|и|или)\b"
    # and a verb anywhere, unless it is the last word, where "stands" is a noun
    r"|.*\b(?:is|are|was|were|has|have|stands?|sits?|shows?|lies|can be|that|which|ist|sind|steht|liegt"
    r"|hat (?:ein|kein|den|die|das)\w*|est|sont|стоит|стоят|лежит|сидит|это)\s+\w"
    # the same in languages without spaces between words
    r"|一[个只辆张条位件名座本棵艘颗朵群对幅间架头匹]|.*(?:停在|站在|坐在|躺在|正在|位于|是一|有一)"
    r"|.*(?:います|あります|です|ました|いる|입니다|습니다|있다)$",
    re.IGNORECASE,
)
INDEFINITE = re.compile(r"(?:an?|eine?[mnr]?|une?|un|una|uma)\s", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:the|one|two|three|der|die|das|les?|la)\s", re.IGNORECASE)
_FIRST = re.compile(r"(?:.*\s)?(?:an?|the|eine?[mnr]?|der|die|das|une?|les?|la|una)\s", re.IGNORECASE)
_WIDE = re.compile(r"[぀-ヿ㐀-鿿가-힣]")  # languages without spaces between words, or with long words
FEWEST, MOST_WORDS, MEAN_WORDS, MOST_WIDE = 3, 5, 3.0, 10
_CONTROL = bytes([*range(9), *range(14, 32)])  # bytes that are not text


def decode_text(data: bytes, place: str, errors: str = "strict") -> str:
    """Return the text of a file: UTF-8, or UTF-16 and UTF-32 with a byte order mark.

    `errors` is that of `bytes.decode`.

    Raises:
        LuminaError: if the file is not text; the message begins with `place`.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8-sig")
    start = data[:4096]
    control = len(start) - len(start.translate(None, _CONTROL))
    if encoding == "utf-8-sig" and control * 5 > len(start):
        raise LuminaError(f"{place} looks like UTF-16 without a byte order mark; save it as UTF-8")
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise LuminaError(f"{place} is not UTF-8 text") from error
    if "\0" in text:
        raise LuminaError(f"{place} contains NUL characters; save it as UTF-8 text")
    return text


def caption_fields(text: object, lines: str = "one") -> dict:
    """Return {"captions": ...} for a caption, or a list of captions, as other tools store them.

    lines  one of LINES, for a caption of several lines

    {} if `text` is neither text nor a list that contains text.
    """
    texts = [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []
    texts = [each.strip() for each in texts if isinstance(each, str) and each.strip()]
    if lines != "one":
        split = [line.strip() for each in texts for line in each.splitlines() if line.strip()]
        texts = split[:1] if lines == "first" else split
    if len(texts) >= FEWEST and all(len(each.split()) <= 2 for each in texts) and not isinstance(text, str):
        texts = [", ".join(texts)]
    levels: dict[str, str] = {}
    for each in dict.fromkeys(texts):
        level = caption_level(each)
        same = sum(name.partition("_")[0] == level for name in levels)
        levels[f"{level}_{same + 1}" if same else level] = each
    return {"captions": {LANGUAGE: levels}} if levels else {}


def caption_level(text: str) -> str:
    """Return the level of a caption: "tags" for a list of tags, else by its number of words."""
    if is_tag_list(text):
        return "tags"
    words = len(text.split())
    return next((level for level, most in LEVEL_WORDS.items() if words <= most), "detailed")


def is_tag_list(text: str) -> bool:
    """Return whether a text is a list of tags.

    These are at least three items between commas, of at most five words each and three on average (ten
    characters in Chinese, Japanese and Korean). The first item has no article, no item begins with "a",
    contains a verb such as "is", or continues a sentence ("and", "who"), and no full stop separates them.
    Lines are items only if each line has commas. Tags of Danbooru ("1girl long_hair smile") are separated by
    spaces.
    """
    words = text.split()
    joined = sum("_" in word.strip("_") for word in words)
    if len(words) >= FEWEST and "," not in text and joined * 2 >= len(words):
        return True
    items = split_tags(text)
    if len(items) < FEWEST or re.search(r"[.!?。！？]\s|[。！？]", text.strip()[:-1]):
        return False
    if any(map(_PROSE.match, items)) or any(map(INDEFINITE.match, items)) or _FIRST.match(items[0]):
        return False
    if _WIDE.search(text):
        return max(map(len, items)) <= MOST_WIDE
    lengths = [len(item.split()) for item in items]
    if max(lengths) > MOST_WORDS or sum(lengths) > MEAN_WORDS * len(items):
        return False
    return sum(map(bool, map(_ARTICLE.match, items))) * 3 <= len(items)


def split_tags(text: str) -> list[str]:
    """Return the items between the commas of a text; a line is an item only if each line has commas."""
    lines = [line for line in text.strip().rstrip(".,;，、。").splitlines() if line.strip()]
    if not all(map(SEPARATORS.search, lines)):
        lines = [" ".join(lines)]
    return [item.strip() for line in lines for item in SEPARATORS.split(line) if item.strip()]


def get_base_level(level: str) -> str:
    """Return the level that a further caption belongs to: "short" for "short_2"."""
    base, _, number = level.rpartition("_")
    return base if base and number.isdecimal() else level


def with_captions(row: dict, keys: tuple[str, ...] = KEYS) -> dict:
    """Return a row with the first of `keys` that holds a caption copied to "captions" if it has none."""
    if row.get("captions"):
        return row
    return row | next(filter(None, (caption_fields(row.get(name)) for name in keys)), {})
