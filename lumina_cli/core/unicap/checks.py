"""Is this a caption? Simple rules, each with a reason that a person can read and a code to count by."""

import re
from collections import Counter

from lumina_cli.core.unicap.languages import wrong_language
from lumina_cli.core.unicap.phrases import BOILERPLATE, REFUSALS, UNFINISHED

# Characters a caption of each level may have; one Chinese or Japanese character says about as much as three.
LENGTHS = {"detailed": (50, 6000), "medium": (24, 1200), "short": (5, 320), "tags": (3, 1000)}
_DENSE, _DENSE_LANGS = 3, ("zh", "ja", "ko")
_REFUSES_WITHIN = 120  # a refusal opens the answer; later the same words may be text in the picture

# Control characters, and the sign for bytes that were no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")

# Something of up to 80 characters said five times over, or of one or two characters twelve times over.
_LOOP = re.compile(r"(.{3,80}?)\1{4,}|(.{1,2}?)\2{11,}", re.DOTALL)


class Reason(str):
    """Why a text is no caption: a sentence, with `code`, one of few words, to count by."""

    code: str

    def __new__(cls, code: str, text: str) -> "Reason":
        reason = super().__new__(cls, text)
        reason.code = code
        return reason


def check(text: str, level: str, lang: str, asked: tuple[str, ...] = ()) -> Reason | None:
    """Return why `text` is no caption of this level in this language, or None where it seems to be one.

    `asked` are the languages that it could be in by mistake, besides the five that are known best. The codes
    are empty, broken, refusal, language, too short, too long, boilerplate, repetition and cut off.
    """
    if not text.strip():
        return Reason("empty", "empty")
    for rule in (_broken, _refusal):
        if reason := rule(text):
            return reason
    if wrong := wrong_language(text, lang, asked, tags=level == "tags"):
        return Reason("language", wrong)
    return _length(text, level, lang) or _boilerplate(text) or _repetition(text, level) or _cut(text, level)


def _broken(text: str) -> Reason | None:
    found = _UNPRINTABLE.search(text)
    return Reason("broken", f"a broken character: {found.group()!a}") if found else None


def _refusal(text: str) -> Reason | None:
    found = REFUSALS.search(text[:_REFUSES_WITHIN])
    return Reason("refusal", f"a refusal: {found.group()!r}") if found else None


def _length(text: str, level: str, lang: str) -> Reason | None:
    low, high = (limit // _DENSE if lang in _DENSE_LANGS else limit for limit in LENGTHS[level])
    if len(text) < low:
        return Reason("too short", f"too short: {len(text)} characters, {level} has at least {low}")
    if len(text) > high:
        return Reason("too long", f"too long: {len(text)} characters, {level} has at most {high}")
    return None


def _boilerplate(text: str) -> Reason | None:
    found = BOILERPLATE.match(text.lstrip("\"'*“「 "))
    return Reason("boilerplate", f"begins with {found.group()!r}, which says nothing") if found else None


def _repetition(text: str, level: str) -> Reason | None:
    loop = _LOOP.search(text)
    if loop:
        return Reason("repetition", f"repeats {(loop.group(1) or loop.group(2)).strip()[:40]!r}")
    pieces = _tags(text) if level == "tags" else _phrases(text)
    if len(pieces) >= 8 and len(set(pieces)) < 0.5 * len(pieces):
        common, times = Counter(pieces).most_common(1)[0]
        return Reason("repetition", f"repeats {common!r} {times} times")
    return None


def _tags(text: str) -> list[str]:
    return [tag.strip().lower() for tag in re.split(r"[,，、;；\n]", text) if tag.strip()]


def _phrases(text: str) -> list[str]:
    """Return each run of three words; of eight characters where words are not spaced."""
    words = text.lower().split()
    if len(words) * 12 < len(text):
        return [text[i : i + 8] for i in range(len(text) - 7)]
    return [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]


def _cut(text: str, level: str) -> Reason | None:
    found = None if level == "tags" else UNFINISHED.search(text)
    return Reason("cut off", f"ends in mid-sentence: {text[-24:]!r}") if found else None
