"""What models add to a caption: alternatives, notes, lists of tags, hashtags, coordinates, marks of the end.

Of several alternatives ("Caption 1: ...", "Option B: ...") the first is the caption.
"""

import re

_ANY = re.IGNORECASE
_LABEL_NAMES = (
    r"(?:caption|option|version|variant|variation|alternative|candidate|suggestion|description|answer"
    r"|choice|prompt"
    r"|title|beschreibung|vorschlag|légende|opción|вариант|описание|候选|选项|描述|标题|方案|キャプション|候補)"
)
_NUMBER = r"(?:\d{1,2}|[A-H]|one|two|three|I{1,3}|[一二三])"
# "Caption 1:", "**Option A (short):**", "### Version 2" and a line break, "Short caption:".
_ALTERNATIVE = re.compile(
    rf"(?:^|\n|(?<=[.!?。\"”])\s)[ \t>#*_-]*(?:{_LABEL_NAMES}\s?#?{_NUMBER}\b(?:\s*\([^()\n]{{1,40}}\))?"
    r"[*_]*(?:\s*[:：.)–—][*_]*|[ \t]*(?=\n))"
    r"|(?P<level>short|brief|concise|medium|detailed|long)(?:er)?(?: (?:captions?|versions?"
    r"|descriptions?))?[*_]*"
    r"\s*[:：][*_]*)\s*",
    _ANY,
)
_LEVELS = {"brief": "short", "concise": "short", "long": "detailed"}
# What follows a caption: "Alternatively: ...", "Or: ...".
_OTHER = re.compile(
    r"\n[#*_>\s-]*(?:or|alternatively|alternative(?: (?:captions?|versions?|options?))?s?|another (?:option"
    r"|version"
    r"|caption|possibility)|other (?:options|versions|captions)|oder|alternativ|或者|另一个)"
    r"[*_]*\s*[:：,，].*",
    _ANY | re.DOTALL,
)
_TAG_NAMES = (
    r"(?:tags?|tag list|key ?words?|hash ?tags|schlagwörter|schlüsselwörter|stichwörter|теги|ключевые слова"
    r"|хештеги"
    r"|标签|关键词|关键字|タグ|キーワード|mots-clés|etiquetas|palabras clave|parole chiave)"
)
_TAG_LINE = re.compile(
    rf"(?P<before>\S)(?:\s*\n\s*|(?<=[.!?。…\"”)])\s*)[#*_-]*\s*(?:(?:suggested|relevant|related|image)"
    rf" )?{_TAG_NAMES}"
    r"[*_]*\s*[:：][*_]*\s*(?P<tags>.*)$",
    _ANY | re.DOTALL,
)
_NOTE_NAMES = (
    r"(?:(?:please |side ?)?notes?(?: that)?|n\.?b\.?|disclaimer|remark|comment|edit|hinweis|anmerkung"
    r"|remarque|nota"
    r"|примечание|注意?|备注|说明|補足)"
)
_NOTE = re.compile(
    # (Note: ...), [NB: ...], *(Note that ...)*
    rf"(?<!\s)\s*[*_]*[(（\[]\s*[*_]*{_NOTE_NAMES}[*_]*(?:\s*[:：,]|\s)(?:[^()（）\[\]]|[(（\[][^"
    rf"()（）\[\]]*[)）\]])*[)）\]][\s.*_。]*$"
    # a last line that begins with it
    rf"|(?<!\s)\s*\n\s*[*_]*{_NOTE_NAMES}[*_]*\s*[:：][^\n]*$",
    _ANY,
)
_ENDS = re.compile(
    r"(?<!\s)(?:\s*(?:(?i:</?(?:end|stop|eot|eom|eos|done|finish(?:ed)?|e|caption|answer)\s*/?>|\[(?:end"
    r"|stop|done"
    r"|eos)\])"
    r"|<\|\w{0,20}|</\w{0,8})"
    r"|\s+#{2,}(?:[ \t]*(?i:end|stop|done)\b)?[ \t]*#*|(?<=[.!?。])#{2,}|\s*\n\s*(?:END|STOP|DONE)\.?"
    r"|(?<=[.!?。])\s+(?:END|STOP)\.?)\s*$",
)
_HASHTAG = r"[#＃][^\W\d_][\w-]*[#＃]?"
_HASHTAGS = re.compile(
    # on lines of their own, after the end of a sentence, or several at the end
    rf"(?P<line>(?<!\s)\s*\n(?:\s*{_HASHTAG}[,;]?)+\s*|(?<=[.!?。…\"”)])\s*{_HASHTAG}"
    rf"(?:[\s,;]*{_HASHTAG})*\s*)$"
    rf"|(?P<word>[^\s]{{1,40}})\s+{_HASHTAG}(?:[\s,;]*{_HASHTAG})+\s*$"
)
# A caption that names hashtags: "a mug with the text #blessed #coffee".
_NAMED = re.compile(
    r"(?:reads?|reading|says?|saying|texts?|words?|hashtags?|slogans?|letters|labell?ed|titled|tags?|with"
    r"|and|of|the|or"
    r"|mit|und|steht|text|aufschrift|[:：\"“„«])$",
    _ANY,
)
_NUMBERS = r"\s?-?\d{1,4}(?:\.\d+)?\s?"
_COORDINATES = re.compile(
    # of Qwen, two corners or the four of a quadrangle, and one list of four numbers
    rf"(?P<word>[^\s(\[{{<]{{0,40}})(?P<place>\s?\({_NUMBERS},{_NUMBERS}\)"
    rf"(?:\s?,\s?\({_NUMBERS},{_NUMBERS}\))+"
    rf"|\s?[\[(]{_NUMBERS}(?:,{_NUMBERS}){{3}}[\])]|\s?\{{?(?:<\d{{1,3}}>){{4}}\}}?)"
)
_PLOTTED = re.compile(
    r"(?:points?|coordinates?|vertices|corners?|pairs?|from|between|through|at|vectors?|lists?|array"
    r"|numbers?|values?"
    r"|tuples?|sequence|reads?|says?|text|and|to|the|of|with|[:=\"“])$",
    _ANY,
)
# "Image 1:", "Figure 2.", "图1："; several of them are the panels of one image.
_IMAGE_NUMBER = re.compile(
    r"[*_#\s]*(?:the )?(?:image|picture|photo(?:graph)?|figure|fig\.|img|frame|bild|foto|abbildung"
    r"|изображение|рис\."
    r"|图片?|画像|写真)\s?(?:#|no\. ?)?(?P<number>\d{1,3})"
    r"[*_]*\s*(?:[:：)]|\.(?=\s)|\s[-–—](?=\s))[*_]*\s*(?=\S)",
    _ANY,
)
_SOLE_NUMBER = re.compile(r"\(?1[.)]\s+(?=\S)")
# "1. FC Köln", "1. Mai": an ordinal number of German and other languages.
_ORDINAL = re.compile(
    r"(?:[A-ZÄÖÜ]{2,}\b|(?:Bundesliga|Liga|Klasse|Platz|Stock|Weltkrieg|Etage|Advent|Januar|Februar|März"
    r"|April|Mai"
    r"|Juni|Juli|August|September|Oktober|November|Dezember|Mannschaft|Reihe|Akt)\b)"
)


def take_first(text: str, level: str) -> str:
    """Return the first of several alternative captions, or the one with the name of the level.

    A text with one caption only is returned as it is.
    """
    marks = list(_ALTERNATIVE.finditer(text))
    if len(marks) > 1 and not _before(text, marks[0]):
        names = [_LEVELS.get((mark["level"] or "").lower(), (mark["level"] or "").lower()) for mark in marks]
        at = names.index(level) if level in names else 0
        end = marks[at + 1].start() if at + 1 < len(marks) else len(text)
        return text[marks[at].end() : end].strip()
    return _OTHER.sub("", text) if _OTHER.search(text, 1) else text


def _before(text: str, mark: re.Match) -> bool:
    """Return whether a caption precedes the first alternative; an introduction ends with a colon."""
    before = text[: mark.start()].strip(" \n*_#")
    return bool(before) and not before.endswith((":", "：")) and len(before.split()) > 12


def strip_extras(text: str, level: str) -> str:
    """Return a text without notes, lists of tags, hashtags, coordinates and marks before and after it.

    level    of an answer with a caption and a list of tags, the tags are kept if they were requested
    """
    for _ in range(4):
        before = text
        text = _ENDS.sub("", text.strip())
        if (note := _NOTE.search(text)) and text[: note.start()].strip():
            text = text[: note.start()]
        if tags := _TAG_LINE.search(text):
            text = tags["tags"] if level == "tags" else text[: tags.end("before")]
        text = _strip_hashtags(text)
        if text == before:
            break
    return _strip_numbers(_COORDINATES.sub(_remove_coordinates, text))


def _strip_hashtags(text: str) -> str:
    found = _HASHTAGS.search(text)
    if not found or not text[: found.start()].strip():
        return text
    if found["line"] is not None:
        return text[: found.start("line")]
    return text if _NAMED.search(found["word"]) else text[: found.end("word")]


def _remove_coordinates(found: re.Match) -> str:
    """Return the word before coordinates; they are kept if the caption names them or all are below ten."""
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", found["place"])]
    named = _PLOTTED.search(found["word"]) or (not found["word"] and found.start() == 0)
    list_like = found["place"].lstrip()[:1] == "[" or found["place"].count("(") == 1
    return found.group() if named or max(numbers) < (100 if list_like else 10) else found["word"]


def _strip_numbers(text: str) -> str:
    """Return a text without the number of its image, or of the only item of a list."""
    if (image := _IMAGE_NUMBER.match(text)) and not any(
        other["number"] != image["number"] for other in _IMAGE_NUMBER.finditer(text, image.end())
    ):
        text = text[image.end() :]
    sole = _SOLE_NUMBER.match(text)
    if sole and not re.search(r"(?:^|\s)\(?2[.)]\s", text) and not _ORDINAL.match(text, sole.end()):
        text = text[sole.end() :]
    return text
