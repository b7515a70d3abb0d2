"""Rules that reject a bad caption, each with a readable reason and a code for statistics."""

import re
from collections import Counter

from lumina_cli.core.unicap.checks.failures import LATER, LEFTOVER, MACHINE_ERRORS, PLACEHOLDER, UNDESCRIBED
from lumina_cli.core.unicap.checks.forms import find_wrong_form
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

# Minimum and maximum characters per level; one CJK character counts as about three.
LENGTHS = {"detailed": (50, 6000), "medium": (24, 1200), "short": (5, 320), "tags": (3, 1000)}
_DENSE, _DENSE_LANGS = 3, ("zh", "ja", "ko")
_KEPT = 12  # characters of a quotation that are checked; text in an image may repeat

# Control characters, and the replacement character of invalid UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffd]")

# Up to 80 characters repeated five times, or one or two characters repeated twelve times.
_LOOP = re.compile(r"(.{3,80}?)\1{4,}|(.{1,2}?)\2{11,}", re.DOTALL)
# Dot leaders, as in a table of contents; unlike a loop, text follows them.
_LEADERS = re.compile(r"[._=*·…-]{3,}(?=\s*[^\W_])|(?:[._·…] ){3,}(?=\s*[^\W_])")
# A word, or a CJK character.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
# The same word repeated, separated by whitespace only.
_AGAIN = re.compile(r"(?<![\w'’-])([^\W\d_]{2,})((?:\s+\1)+)(?![\w'’-])", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+(?:\s+|$)|[。！？]+")
_MARKS = "\"'*“”„«»「」『』‘’ "


class Reason(str):
    """Why a caption was rejected: a message, with a short `code` for statistics."""

    code: str

    def __new__(cls, code: str, text: str) -> "Reason":
        reason = super().__new__(cls, text)
        reason.code = code
        return reason


def check_caption(
    text: str,
    level: str,
    lang: str,
    asked: tuple[str, ...] = (),
    finished: bool | None = None,
    own: bool = False,
) -> Reason | None:
    """Return why `text` is not a valid caption of a level in a language, or None if it is valid.

        asked       all requested languages; with the five main ones, the candidates for a wrong language
        finished    False if the engine stopped at its token limit
        own         the user wrote the instruction, which decides on the length, the opening and the form

    Quoted text is text in the image: it is not a refusal, and it may repeat. Codes: empty, broken, refusal,
    error, markup, language, too short, too long, boilerplate, labels, repetition, cut off, sentence (for
    tags), tags (for a sentence).
    """
    if not text.strip():
        return Reason("empty", "empty")
    if len(text) > LENGTHS["detailed"][1]:  # before rules that take long for long texts
        return _length(text, level, lang)
    for rule in (_broken, _refusal, _failure, _leftover):
        if reason := rule(text):
            return reason
    if wrong := wrong_language(text, lang, asked, tags=level == "tags"):
        return Reason("language", wrong)
    found = None if own else _length(text, level, lang) or _boilerplate(text)
    found = found or _repetition(text, level, lang)
    if found is None and finished is False:
        return Reason("cut off", f"cut off at {MAX_TOKENS[level]} tokens")
    found = found or _cut(text, level, lang)
    if found is None and not own and (wrong := find_wrong_form(text, level, lang)):
        return Reason(*wrong)
    return found


def _broken(text: str) -> Reason | None:
    found = _UNPRINTABLE.search(text)
    return Reason("broken", f"a broken character: {found.group()!a}") if found else None


def _opening(text: str) -> str:
    """Return a text from its first word on, but keep a quotation at the start."""
    quoted = QUOTED.match(text.strip())
    if quoted and quoted.end() < len(text.strip().rstrip(".。!！")):
        return text.strip()
    return text.lstrip(_MARKS).replace("’", "'")


def _refusal(text: str) -> Reason | None:
    found = REFUSALS.match(_opening(text))
    return Reason("refusal", f"a refusal: {found.group().strip()[:60]!r}") if found else None


def _failure(text: str) -> Reason | None:
    """Return a reason if a text is an error message, a placeholder, or why an image was not described."""
    opening = _opening(text).rstrip(_MARKS)
    later = LATER.search(QUOTED.sub(" ", text))
    if found := UNDESCRIBED.match(opening) or (later if later and "too" in later.group().lower() else None):
        return Reason("refusal", f"not a description: {found.group().strip()[:60]!r}")
    if found := MACHINE_ERRORS.match(opening) or later:
        return Reason("error", f"an error message: {found.group().strip()[:60]!r}")
    if found := PLACEHOLDER.match(opening):
        return Reason("error", f"a placeholder: {found.group().strip()[:60]!r}")
    return None


def _leftover(text: str) -> Reason | None:
    found = LEFTOVER.search(QUOTED.sub(" ", text)) or LEFTOVER.match(text)
    return Reason("markup", f"contains markup of a model: {found.group().strip()[:40]!r}") if found else None


def _length(text: str, level: str, lang: str) -> Reason | None:
    low, high = (limit // _DENSE if lang in _DENSE_LANGS else limit for limit in LENGTHS[level])
    if len(text) < low:
        return Reason("too short", f"too short: {len(text)} characters, {level} has at least {low}")
    if len(text) > high:
        return Reason("too long", f"too long: {len(text)} characters, {level} has at most {high}")
    return None


def _boilerplate(text: str) -> Reason | None:
    found = BOILERPLATE.match(_opening(text))
    return Reason("boilerplate", f"begins with {found.group()!r}, which adds no content") if found else None


def _repetition(text: str, level: str, lang: str) -> Reason | None:
    own_text = QUOTED.sub(lambda quote: quote.group()[:_KEPT], _LEADERS.sub(" ", text))
    if loop := _LOOP.search(own_text):
        return Reason("repetition", f"repeats {(loop.group(1) or loop.group(2)).strip()[:40]!r}")
    if whole := _find_sole_phrase(text):
        return Reason("repetition", f"consists only of {whole!r}, repeated")
    if twice := _find_doubled_word(text, lang) or _find_repeated_sentence(text):
        return Reason("repetition", f"contains {twice[:60]!r} twice")
    pieces = _tags(own_text) if level == "tags" else _phrases(own_text)
    if len(pieces) >= 8 and len(set(pieces)) < 0.5 * len(pieces):
        common, times = Counter(pieces).most_common(1)[0]
        return Reason("repetition", f"repeats {common!r} {times} times")
    return None


def _find_doubled_word(text: str, lang: str) -> str | None:
    """Return a word that is repeated three times, or twice if it is not legitimately doubled.

    Legitimate are names ("Bora Bora") and certain words per language; other languages have no such list.
    """
    own_text = QUOTED.sub(" . ", text)
    for found in _AGAIN.finditer(own_text):
        word, times = found[1].lower(), 1 + len(found[2].split())
        known = TWICE.get(lang)
        if times > 3 or (times == 3 and word not in (known or ())):
            return found.group()
        last = found[2].split()[-1]
        starts = re.search(r"(?:^|[.!?]\s+)$", own_text[: found.start()])
        if last[0].isupper() and not (starts and word in NEVER_TWICE):
            continue
        if found[1].isupper() != last.isupper():  # "STOP stop" is a sign
            continue
        if known is not None and times == 2 and (word not in known or (starts and last[0].isupper())):
            return found.group()
    return None


def _find_repeated_sentence(text: str) -> str | None:
    """Return a repeated sentence of at least four words (eight characters in languages without spaces)."""
    whole = QUOTED.sub(lambda quote: _SENTENCE_END.sub(" ", quote.group()), text)
    seen = set()
    for sentence in _SENTENCE_END.split(whole):
        own_text = " ".join(_WORD.findall(sentence.lower()))
        if (
            own_text.count(" ") >= (7 if re.search("[\u3040-\u30ff\u3400-\u9fff]", own_text) else 3)
            and own_text in seen
        ):
            return sentence.strip()
        seen.add(own_text)
    return None


def _find_sole_phrase(text: str) -> str | None:
    """Return the phrase if the text only repeats one, at least three times; the last may be incomplete."""
    words = _WORD.findall(text.lower())
    for size in range(1, len(words) // 3 + 1):
        if all(words[i] == words[i - size] for i in range(size, len(words))):
            spaced = any(len(word) > 1 for word in words) or text.isascii()
            return (" " if spaced else "").join(words[:size])[:40]
    return None


def _tags(text: str) -> list[str]:
    return [tag.strip().lower() for tag in re.split(r"[,，、;；\n]", text) if tag.strip()]


def _phrases(text: str) -> list[str]:
    """Return all runs of three words, or of eight characters in languages without spaces."""
    words = text.lower().split()
    if len(words) * 12 < len(text):
        return [text[i : i + 8] for i in range(len(text) - 7)]
    return [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]


def _cut(text: str, level: str, lang: str) -> Reason | None:
    """Return a reason if a text ends with a word that cannot end a sentence, a comma, or in a quotation."""
    if level == "tags":
        return None
    found = UNFINISHED.get(lang, UNFINISHED[""]).search(text)
    quote = UNQUOTED.search(text)
    if quote and not (quote[1] == '"' and text.count('"') % 2 == 0):
        found = found or quote
    # An English sentence may end with a preposition that belongs to an earlier word. Accepted: "A girl and
    # the toys she plays with". Rejected: "A small table made of".
    if lang == "en" and not found and (found := OPEN_END.search(text)):
        last = re.split(r"[.!?]\s", text)[-1].strip().partition(" ")[2]
        found = None if BELONGS.search(last[: -len(found[0].strip()) or None]) else found
    opened = text.rstrip().endswith("«") and text.count("«") > text.count("»")  # German quotes are »...«
    return Reason("cut off", f"ends in mid-sentence: {text[-24:]!r}") if found or opened else None
