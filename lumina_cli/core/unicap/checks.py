"""Is this a caption? Simple rules, each with a reason that a person can read."""

import re
from collections import Counter

from lumina_cli.core.unicap.prompts import LANGS

# Characters a caption of each level may have; one Chinese or Japanese character says about as much as three.
LENGTHS = {"detailed": (100, 6000), "medium": (40, 1200), "short": (8, 320), "tags": (3, 1000)}
_DENSE = 3

_SCRIPTS = {
    "Latin": "A-Za-zÀ-ÖØ-öø-ɏ",
    "Cyrillic": "Ѐ-ӿ",
    "Han": "一-鿿㐀-䶿々",
    "kana": "ぁ-ゖァ-ヺー",
}
_LETTERS = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_SCRIPT_OF = {
    "en": ("Latin",),
    "de": ("Latin",),
    "ru": ("Cyrillic",),
    "zh": ("Han",),
    "ja": ("Han", "kana"),
}
# English and German share a script; their commonest words tell them apart.
_COMMON_WORDS = {
    "en": {"the", "a", "an", "is", "are", "of", "and", "with", "on", "to", "there", "its"},
    "de": {"der", "die", "das", "ein", "eine", "ist", "sind", "und", "mit", "auf", "im", "von", "zu"},
}

_REFUSALS = re.compile(
    r"\bI(?: a|')?m (?:sorry|unable)|\bI (?:can ?not|can't|am not able)|\bas an ai\b|"
    r"\b(?:no|without an?) (?:image|picture) (?:was |is |has been )?(?:provided|attached|given|visible)|"
    r"抱歉|对不起|我(?:无法|不能)|作为(?:一个|一名)?(?:AI|人工智能)|申し訳|お答えできません|"
    r"\bизвините|\bк сожалению|\bя не могу|\bкак (?:ИИ|языковая модель)|"
    r"\btut mir leid|\bich kann (?:leider )?(?:nicht|keine?)|\bals KI\b",
    re.IGNORECASE,
)
_REFUSES_WITHIN = 120  # a refusal opens the answer; later the same words may be text in the picture

# Control characters, and the sign for bytes that were no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")

# Something of up to 80 characters said five times over, or of one or two characters twelve times over.
_LOOP = re.compile(r"(.{3,80}?)\1{4,}|(.{1,2}?)\2{11,}", re.DOTALL)


def check(text: str, level: str, lang: str) -> str | None:
    """Return why `text` is no caption of this level in this language, or None where it seems to be one."""
    if not text.strip():
        return "empty"
    for rule in (_broken, _refusal, _language, _length, _repetition):
        reason = rule(text, level, lang)
        if reason:
            return reason
    return None


def _broken(text: str, level: str, lang: str) -> str | None:
    found = _UNPRINTABLE.search(text)
    return f"a broken character: {found.group()!a}" if found else None


def _length(text: str, level: str, lang: str) -> str | None:
    low, high = (limit // _DENSE if lang in ("zh", "ja") else limit for limit in LENGTHS[level])
    if len(text) < low:
        return f"too short: {len(text)} characters, {level} has at least {low}"
    if len(text) > high:
        return f"too long: {len(text)} characters, {level} has at most {high}"
    return None


def _refusal(text: str, level: str, lang: str) -> str | None:
    found = _REFUSALS.search(text[:_REFUSES_WITHIN])
    return f"a refusal: {found.group()!r}" if found else None


def _repetition(text: str, level: str, lang: str) -> str | None:
    loop = _LOOP.search(text)
    if loop:
        return f"repeats {(loop.group(1) or loop.group(2)).strip()[:40]!r}"
    pieces = _tags(text) if level == "tags" else _phrases(text)
    if len(pieces) >= 8 and len(set(pieces)) < 0.5 * len(pieces):
        common, times = Counter(pieces).most_common(1)[0]
        return f"repeats {common!r} {times} times"
    return None


def _tags(text: str) -> list[str]:
    return [tag.strip().lower() for tag in re.split(r"[,，、;；\n]", text) if tag.strip()]


def _phrases(text: str) -> list[str]:
    """Return each run of three words; of eight characters where words are not spaced."""
    words = text.lower().split()
    if len(words) * 12 < len(text):
        return [text[i : i + 8] for i in range(len(text) - 7)]
    return [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]


def _language(text: str, level: str, lang: str) -> str | None:
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    counts["other"] = sum(c.isalpha() for c in text) - sum(c for c in counts.values())
    total = sum(max(count, 0) for count in counts.values())
    own = sum(counts[name] for name in _SCRIPT_OF[lang])
    if not total or own < 0.5 * total:
        main = max(counts, key=counts.get) if total else "no"
        return f"not in {LANGS[lang]}: {main} letters"
    if lang == "zh" and counts["kana"] > 0.05 * total:
        return "not in Chinese: kana letters"
    if lang == "ja" and level != "tags" and not counts["kana"]:
        return "not in Japanese: no kana letters"
    return _neighbour(text, lang)


def _neighbour(text: str, lang: str) -> str | None:
    """Tell English from German by common words; texts with too few of them pass."""
    if lang not in _COMMON_WORDS:
        return None
    words = Counter(re.findall(r"\w+", text.lower()))
    hits = {name: sum(words[word] for word in common) for name, common in _COMMON_WORDS.items()}
    other = "de" if lang == "en" else "en"
    if hits[other] >= 3 and hits[other] > hits[lang]:
        return f"not in {LANGS[lang]}: reads as {LANGS[other]}"
    return None
