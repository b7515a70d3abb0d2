"""Languages: codes, names, scripts, and the detection of the language of a text."""

import re
from copy import copy
from functools import cache

from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.registry import did_you_mean

LANGS = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ru": "Russian", "de": "German"}
# Further supported languages; py3langid distinguishes all of them.
NAMES = LANGS | {
    "af": "Afrikaans", "am": "Amharic", "ar": "Arabic", "as": "Assamese", "az": "Azerbaijani",
    "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech",
    "cy": "Welsh", "da": "Danish", "el": "Greek", "eo": "Esperanto", "es": "Spanish", "et": "Estonian",
    "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician",
    "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian",
    "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ka": "Georgian", "kk": "Kazakh", "km": "Khmer",
    "kn": "Kannada", "ko": "Korean", "ky": "Kyrgyz", "la": "Latin", "lo": "Lao", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mn": "Mongolian", "mr": "Marathi", "ms": "Malay",
    "my": "Burmese", "ne": "Nepali", "nl": "Dutch", "no": "Norwegian", "pa": "Punjabi", "pl": "Polish",
    "pt": "Portuguese", "ro": "Romanian", "si": "Sinhala", "sk": "Slovak", "sl": "Slovenian",
    "sq": "Albanian",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai",
    "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese",
}  # fmt: skip

_SCRIPTS = {
    "Latin": "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿ", "Cyrillic": "Ѐ-ԯ", "Han": "一-鿿㐀-䶿々", "kana": "ぁ-ゖァ-ヺー",
    "Hangul": "가-힣ᄀ-ᇿ", "Greek": "Ͱ-Ͽἀ-῿", "Arabic": "؀-ۿݐ-ݿ", "Hebrew": "֐-׿",
    "Devanagari": "ऀ-ॿ", "Thai": "ก-๛",
}  # fmt: skip
_LETTERS = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_SCRIPTS_OF = {
    "zh": ("Han",), "ja": ("Han", "kana"), "ko": ("Hangul", "Han"), "el": ("Greek",), "he": ("Hebrew",),
    "th": ("Thai",),
    **dict.fromkeys(("ru", "uk", "be", "bg", "mk", "ky", "mn"), ("Cyrillic",)),
    **dict.fromkeys(("ar", "fa", "ur"), ("Arabic",)),
    **dict.fromkeys(("hi", "mr", "ne"), ("Devanagari",)),
    **dict.fromkeys(("sr", "bs", "uz", "az", "kk"), ("Latin", "Cyrillic")),
    **dict.fromkeys(("am", "as", "bn", "gu", "hy", "ka", "km", "kn", "lo", "ml", "my", "pa"), ()),
    **dict.fromkeys(("si", "ta", "te"), ()),
}  # fmt: skip

# Minimum confidence of py3langid, among the candidate languages, for a text to count as another language.
SURE = 0.8
SURE_OF_HAN = 0.96  # Japanese without kana scores up to 0.93 as Chinese; real Chinese scores 0.97 and more
# The same for a sentence or clause within a text, if it is long enough; capitalized names are ignored.
SURE_OF_CLAUSE, CLAUSE_WORDS, CLAUSE_LETTERS = 0.99, 4, 12
_ENDS = re.compile(r"[.!?…;:\n]+(?:\s+|$)|[。！？；：]+")
_CLAUSES = re.compile(r",\s+|[，、]")
_NAMES = re.compile(r"(?<=\S\s)[A-ZÀ-ÞЀ-Я][\w'’-]*")
_LONG_QUOTES = re.compile('["“„«»「『][^"”“«»」』]{401,}["”“«»」』]')  # a transcribed page
# Lower-case Latin and Cyrillic letters in one word; ЯндексGPT is a name, 3D-рендер has a hyphen.
_MIXED_ALPHABETS = re.compile(r"\w*(?:[a-zß-ÿ]{2}[а-яё]{2}|[а-яё]{2}[a-zß-ÿ]{2})\w*")
# Quoted text is text in the image, which may be in any language.
QUOTED = re.compile("[\"“„«»「『][^\"”“«»」』]{1,400}[\"”“«»」』]|(?<!\\w)['‘‚][^'’‘]{1,400}['’‘](?!\\w)")


def check_languages(codes: list[str]) -> tuple[str, ...]:
    """Return the language codes without duplicates.

    Raises:
        UsageError: if a code is unknown or the list is empty.
    """
    for code in codes:
        if code not in NAMES:
            hint = did_you_mean(code, NAMES)
            raise UsageError(f"unknown language {code!r}{hint or '; give codes such as ' + ', '.join(LANGS)}")
    if not codes:
        raise UsageError(f"no language given; give codes such as {', '.join(LANGS)}")
    return tuple(dict.fromkeys(codes))


def wrong_language(text: str, lang: str, asked: tuple[str, ...] = (), tags: bool = False) -> str | None:
    """Return why `text` is not in language `lang`, or None if it seems to be.

    The letters must be of the right script, and py3langid must not be confident of another language among
    `asked` and the five main ones. Short Japanese texts and `tags` may lack kana. The same applies to each
    sentence and clause that is long enough, and no word may mix two alphabets.
    """
    own_text = QUOTED.sub(" ", _LONG_QUOTES.sub(" ", text))
    own_text = own_text if sum(map(str.isalpha, own_text)) >= 8 else text
    if wrong := _wrong_script(own_text, lang, tags) or _detect_other_language(own_text, lang, asked):
        return wrong
    if mixed := _MIXED_ALPHABETS.search(own_text):
        return f"letters of two alphabets in one word: {mixed.group()!r}"
    return None if tags else _find_foreign_part(own_text, lang, asked)


def _find_foreign_part(text: str, lang: str, asked: tuple[str, ...]) -> str | None:
    """Return a message about the first sentence or clause in another language, or None."""
    sentences = [sentence for sentence in _ENDS.split(text) if sentence.strip()]
    clauses = [clause for sentence in sentences for clause in _CLAUSES.split(sentence)]
    for part in dict.fromkeys([*sentences, *clauses]):
        own_text = _NAMES.sub("", part.strip())
        counts = _count_scripts(own_text)
        total = sum(counts.values())
        if total < CLAUSE_LETTERS or (counts["Latin"] > total / 2 and len(own_text.split()) < CLAUSE_WORDS):
            continue
        own = sum(counts[name] for name in _SCRIPTS_OF.get(lang, ("Latin",)) or ("other",))
        kana = lang == "zh" and counts["kana"] > 0.3 * total
        if own < 0.2 * total or kana:
            return f"not in {NAMES[lang]}: {part.strip()[:40]!r}"
        if counts["Latin"] > total / 2 and (
            other := _detect_other_language(own_text, lang, asked, minimum=SURE_OF_CLAUSE)
        ):
            return f"{other}: {part.strip()[:40]!r}"
    return None


def _wrong_script(text: str, lang: str, tags: bool) -> str | None:
    counts = _count_scripts(text)
    total = sum(counts.values())
    own = sum(counts[name] for name in _SCRIPTS_OF.get(lang, ("Latin",)) or ("other",))
    if not total or own < 0.5 * total:
        main = max(counts, key=counts.get) if total else "no"
        return f"not in {NAMES[lang]}: {main} letters"
    if lang == "zh" and counts["kana"] > 0.05 * total:
        return "not in Chinese: kana letters"
    if lang == "ja" and not tags and not counts["kana"] and total > 8:
        return "not in Japanese: no kana letters"
    return None


def _count_scripts(text: str) -> dict[str, int]:
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    counts["other"] = max(sum(map(str.isalpha, text)) - sum(counts.values()), 0)
    return counts


def _detect_other_language(
    text: str, lang: str, asked: tuple[str, ...], minimum: float | None = None
) -> str | None:
    scripts = set(_SCRIPTS_OF.get(lang, ("Latin",)))
    rivals = {code for code in (*LANGS, *asked) if scripts & set(_SCRIPTS_OF.get(code, ("Latin",)))}
    if rivals <= {lang} or (lang in ("zh", "ja") and _LETTERS["kana"].search(text)):  # kana decide it
        return None
    found, confidence = identifier(tuple(sorted(rivals | {lang}))).classify(text)
    if found != lang and confidence >= (minimum or (SURE_OF_HAN if lang == "ja" else SURE)):
        return f"not in {NAMES[lang]}: reads as {NAMES[found]}"
    return None


@cache
def identifier(codes: tuple[str, ...]):
    """Return py3langid's identifier, restricted to `codes`.

    Raises:
        MissingDependency: if py3langid is not installed.
    """
    one = copy(_full_identifier())
    one.set_languages(codes)
    return one


@cache
def _full_identifier():
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingDependency("checks of languages need py3langid; `pip install py3langid`") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
