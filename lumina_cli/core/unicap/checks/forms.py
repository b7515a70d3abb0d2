"""The form of a caption: tags are a list, other levels are sentences, neither is a report with labels."""

import re

from lumina_cli.core.io.captions import INDEFINITE, is_tag_list, split_tags
from lumina_cli.core.unicap.checks.languages import QUOTED

# Languages whose sentences have articles or verbs. In others ("белый дом, красный шар, мятный фон") a short
# list of nouns is a caption, too.
_ARTICLES = ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "no", "ca", "gl", "ro", "el", "hu")
FEWEST, FEWEST_ELSEWHERE = 3, 5  # items of a list that is not a caption

MOST_WORDS, MOST_WIDE = 8, 16  # words, and characters in languages without spaces, of a tag
_FEW_WORDS = 6  # words of an item that is not a tag, if it is one of two or alone
_WIDE = re.compile(r"[぀-ヿ㐀-鿿]")
_BREAK = re.compile(r"[^\W\d_]{3}[.!?]\s+[^\W\d_a-zа-яё]|[。！？].")  # not after "St." or "U.S."
_VERB = re.compile(
    r"(?:\S+\s+)+(?:is|are|was|were|has|have|stands?|sits?|lies|hangs?|shows?|wears?|holds?|walks?|runs?|ist"
    r"|sind|steht|stehen|liegt|liegen|sitzt|hängt|est|sont|стоит|стоят|лежит|лежат|сидит)\s+"
    r"(?:an?|the|on|in|at|by|to|with|next|near|under|over|behind|between|beside|ein\w*|der|die|das|auf|neben|vor"
    r"|hinter|une?|les?|la|dans|sur|на|в|у|перед|за|рядом)\b",
    re.IGNORECASE,
)
_WIDE_SENTENCE = re.compile(
    r"一[个只辆张条位件名座本棵艘颗].*(?:在|有|着)|.*(?:停在|站在|坐在|躺在|正在|位于|是一|有一)|.*(?:います|あります|です|ました|ている)$"
)
_LABELS = (
    r"(?:main |primary |central |overall |key |visual |other )?(?:subjects?|settings?|scene|backgrounds?"
    r"|foregrounds?|colou?rs?(?: palette)?|palette|styles?|composition|mood|atmosphere|lighting|objects?"
    r"|elements?|people|clothing|actions?|activity|details|location|time of day|perspective|camera angle"
    r"|overview|summary|description|textures?|medium|emotions?|framing|focus)"
    r"|Motiv|Hauptmotiv|Hintergrund|Vordergrund|Stil|Farben|Komposition|Stimmung|Beleuchtung|Details"
    r"|Объекты?|Фон|Стиль|Композиция|Цвета|Освещение|Настроение|Передний план"
    r"|主体|背景|前景|风格|颜色|色彩|构图|光线|氛围|场景|人物|环境|被写体|構図|色|雰囲気|スタイル"
)
_LABEL = re.compile(rf"(?:^|(?<=[\s。.]))[*_]*({_LABELS})[*_]*\s*[:：]", re.IGNORECASE)


def find_wrong_form(text: str, level: str, lang: str) -> tuple[str, str] | None:
    """Return (code, message) if a text does not have the form of its level, or None.

    A text between tags and a sentence, such as "a red car", passes as either.
    """
    text = text.strip()
    labels = [found for found in _LABEL.finditer(QUOTED.sub(" ", text)) if not found[1][0].islower()]
    if labels and not labels[0].start() and len({found[1].lower() for found in labels}) > 1:
        return "labels", f"a list of labels such as {labels[0][1] + ':'!r}, not a caption"
    if level == "tags":
        sentence = find_sentence(text)
        return ("sentence", f"a sentence, not tags: {sentence[:40]!r}") if sentence else None
    fewest = FEWEST if lang in _ARTICLES or level == "detailed" else FEWEST_ELSEWHERE
    count = len(split_tags(text))  # one item: the tags are separated by spaces
    if is_tag_list(text) and (count == 1 or count >= fewest):
        return "tags", f"a list of tags, not a sentence: {text[:40]!r}"
    return None


def find_sentence(text: str) -> str | None:
    """Return the part that makes an answer a sentence instead of tags, or None."""
    plain = QUOTED.sub('""', text)
    if is_tag_list(plain):
        return None
    items = split_tags(plain)
    if _BREAK.search(plain):
        return text
    few = len(items) < FEWEST
    for item in items:
        words = item.split()
        if _WIDE.search(item):
            if len(item) > MOST_WIDE or (few and len(item) > 8 and _WIDE_SENTENCE.match(item)):
                return item
        elif len(words) > MOST_WORDS or _VERB.match(item):
            return item
    first, length = items[0] if items else "", len(plain.split())
    if _WIDE.search(plain):
        return text if few and plain.endswith("。") else None
    ended = plain.endswith((".", "!")) and length > 2 and plain[:-1].count(".") == 0
    longest = max((len(item.split()) for item in items), default=0)
    if few and (longest >= _FEW_WORDS or ended or (len(first.split()) >= 4 and INDEFINITE.match(first))):
        return text
    articled = INDEFINITE.match(first) or re.match(r"(?:the|der|die|das|les?|la)\s", first, re.IGNORECASE)
    return first if articled and len(first.split()) > 4 else None
