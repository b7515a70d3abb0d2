"""Is this a caption? Simple rules, each with a reason that a person can read and a code to count by."""

import re
from collections import Counter

from lumina_cli.core.unicap.checks.languages import QUOTED, wrong_language
from lumina_cli.core.unicap.checks.phrases import (
    BELONGS,
    BOILERPLATE,
    NEVER_TWICE,
    OPEN_END,
    REFUSALS,
    TWICE,
    UNFINISHED,
    UNQUOTED,
)
from lumina_cli.core.unicap.prompts import MAX_TOKENS

# Characters a caption of each level may have; one Chinese or Japanese character says about as much as three.
LENGTHS = {"detailed": (50, 6000), "medium": (24, 1200), "short": (5, 320), "tags": (3, 1000)}
_DENSE, _DENSE_LANGS = 3, ("zh", "ja", "ko")
_KEPT = 12  # characters of a quotation that count as said; the image may well repeat itself

# Control characters, and the sign for bytes that were no UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")

# Something of up to 80 characters said five times over, or of one or two characters twelve times over.
_LOOP = re.compile(r"(.{3,80}?)\1{4,}|(.{1,2}?)\2{11,}", re.DOTALL)
# Dots and lines that lead from one thing to another, as in a table of contents; a loop has nothing behind it.
_LEADERS = re.compile(r"[._=*·…-]{3,}(?=\s*[^\W_])|(?:[._·…] ){3,}(?=\s*[^\W_])")
# A word, or a character that is as good as one.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
# The same word again and again, with nothing but space between.
_AGAIN = re.compile(r"(?<![\w'’-])([^\W\d_]{2,})((?:\s+\1)+)(?![\w'’-])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+(?:\s+|$)|[。！？]+")
_MARKS = "\"'*“”„«»「」『』‘’ "


class Reason(str):
    """Why a text is no caption: a sentence, with `code`, one of few words, to count by."""

    code: str

    def __new__(cls, code: str, text: str) -> "Reason":
        reason = super().__new__(cls, text)
        reason.code = code
        return reason


def check_caption(
    text: str, level: str, lang: str, asked: tuple[str, ...] = (), finished: bool | None = None
) -> Reason | None:
    """Return why `text` is no caption of this level in this language, or None where it seems to be one.

    `asked` are the languages that it could be in by mistake, besides the five that are known best. `finished`
    is False where the engine says that it was stopped. What stands in quotation marks is the picture's own
    text: it is no refusal, and may repeat itself. The codes are empty, broken, refusal, language, too short,
    too long, boilerplate, repetition and cut off.
    """
    if not text.strip():
        return Reason("empty", "empty")
    for rule in (_broken, _refusal):
        if reason := rule(text):
            return reason
    if wrong := wrong_language(text, lang, asked, tags=level == "tags"):
        return Reason("language", wrong)
    found = _length(text, level, lang) or _boilerplate(text) or _repetition(text, level, lang)
    if found is None and finished is False:
        return Reason("cut off", f"cut off at {MAX_TOKENS[level]} tokens")
    return found or _cut(text, level, lang)


def _broken(text: str) -> Reason | None:
    found = _UNPRINTABLE.search(text)
    return Reason("broken", f"a broken character: {found.group()!a}") if found else None


def _opening(text: str) -> str:
    """Return a text from its first own word on; one that begins with a quotation keeps the mark."""
    quoted = QUOTED.match(text.strip())
    if quoted and quoted.end() < len(text.strip().rstrip(".。!！")):
        return text.strip()
    return text.lstrip(_MARKS).replace("’", "'")


def _refusal(text: str) -> Reason | None:
    found = REFUSALS.match(_opening(text))
    return Reason("refusal", f"a refusal: {found.group().strip()[:60]!r}") if found else None


def _length(text: str, level: str, lang: str) -> Reason | None:
    low, high = (limit // _DENSE if lang in _DENSE_LANGS else limit for limit in LENGTHS[level])
    if len(text) < low:
        return Reason("too short", f"too short: {len(text)} characters, {level} has at least {low}")
    if len(text) > high:
        return Reason("too long", f"too long: {len(text)} characters, {level} has at most {high}")
    return None


def _boilerplate(text: str) -> Reason | None:
    found = BOILERPLATE.match(_opening(text))
    return Reason("boilerplate", f"begins with {found.group()!r}, which says nothing") if found else None


def _repetition(text: str, level: str, lang: str) -> Reason | None:
    said = QUOTED.sub(lambda quote: quote.group()[:_KEPT], _LEADERS.sub(" ", text))
    if loop := _LOOP.search(said):
        return Reason("repetition", f"repeats {(loop.group(1) or loop.group(2)).strip()[:40]!r}")
    if whole := _one_phrase(text):
        return Reason("repetition", f"repeats {whole!r} and says nothing else")
    if twice := _stutter(text, lang) or _sentence_twice(text):
        return Reason("repetition", f"says {twice[:60]!r} twice")
    pieces = _tags(said) if level == "tags" else _phrases(said)
    if len(pieces) >= 8 and len(set(pieces)) < 0.5 * len(pieces):
        common, times = Counter(pieces).most_common(1)[0]
        return Reason("repetition", f"repeats {common!r} {times} times")
    return None


def _stutter(text: str, lang: str) -> str | None:
    """Return a word that stands three times in a row, or twice where none does so on purpose.

    Names do so ("Bora Bora"), some words of a language, and in many languages nobody knows which.
    """
    said = QUOTED.sub(" . ", text)
    for found in _AGAIN.finditer(said):
        word, times = found[1].lower(), 1 + len(found[2].split())
        known = TWICE.get(lang)
        if times > 3 or (times == 3 and word not in (known or ())):
            return found.group()
        last = found[2].split()[-1]
        starts = re.search(r"(?:^|[.!?]\s+)$", said[: found.start()])
        if last[0].isupper() and not (starts and word in NEVER_TWICE):
            continue
        if found[1].isupper() != last.isupper():  # "STOP stop", a sign
            continue
        if known is not None and times == 2 and (word not in known or (starts and last[0].isupper())):
            return found.group()
    return None


def _sentence_twice(text: str) -> str | None:
    """Return a sentence of four words or more (eight characters where words are not spaced) said before."""
    whole = QUOTED.sub(lambda quote: _SENTENCE_END.sub(" ", quote.group()), text)
    seen = set()
    for sentence in _SENTENCE_END.split(whole):
        said = " ".join(_WORD.findall(sentence.lower()))
        if said.count(" ") >= (7 if re.search("[\u3040-\u30ff\u3400-\u9fff]", said) else 3) and said in seen:
            return sentence.strip()
        seen.add(said)
    return None


def _one_phrase(text: str) -> str | None:
    """Return the phrase that a text is made of, three times over or more; the last may be cut."""
    words = _WORD.findall(text.lower())
    for size in range(1, len(words) // 3 + 1):
        if all(words[i] == words[i - size] for i in range(size, len(words))):
            spaced = any(len(word) > 1 for word in words) or text.isascii()
            return (" " if spaced else "").join(words[:size])[:40]
    return None


def _tags(text: str) -> list[str]:
    return [tag.strip().lower() for tag in re.split(r"[,，、;；\n]", text) if tag.strip()]


def _phrases(text: str) -> list[str]:
    """Return each run of three words; of eight characters where words are not spaced."""
    words = text.lower().split()
    if len(words) * 12 < len(text):
        return [text[i : i + 8] for i in range(len(text) - 7)]
    return [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]


def _cut(text: str, level: str, lang: str) -> Reason | None:
    """A text without an end: after a word that ends no sentence, a comma, or within a quotation."""
    if level == "tags":
        return None
    found = UNFINISHED.get(lang, UNFINISHED[""]).search(text)
    quote = UNQUOTED.search(text)
    if quote and not (quote[1] == '"' and text.count('"') % 2 == 0):
        found = found or quote
    if lang == "en" and not found and (found := OPEN_END.search(text)):
        last = re.split(r"[.!?]\s", text)[-1].strip().partition(" ")[2]
        found = None if BELONGS.search(last[: -len(found[0].strip()) or None]) else found
    opened = text.rstrip().endswith("«") and text.count("«") > text.count("»")  # German quotes are »so«
    return Reason("cut off", f"ends in mid-sentence: {text[-24:]!r}") if found or opened else None
