"""Prompts of the captioner: an instruction per level, language and domain, in that language."""

from collections.abc import Sequence

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.jsonl import LEVELS
from lumina_cli.core.unicap.checks.languages import LANGS, NAMES, check_languages

__all__ = [
    "DOMAINS",
    "LANGS",
    "LEVELS",
    "MAX_TOKENS",
    "check_languages",
    "check_names",
    "hint",
    "instruction",
]

# Kinds of images: a photo, a rendering, a page with text, several images in one.
DOMAINS = ("auto", "natural", "synthetic", "document", "panels")

# Token limits of the answers, per level.
MAX_TOKENS = {"detailed": 1024, "medium": 320, "short": 96, "tags": 192}

# The five perspectives of the detailed level: style, main object, all objects, attributes, spatial relations.
_INSTRUCTIONS = {
    "en": {
        "detailed": (
            "Write a detailed caption for this picture in {language}, as one flowing paragraph. Say "
            "what kind "
            "of picture it is and its style; the main object; every other object in it; the colour, "
            "material, size and number of each; and where they are in relation to one another. "
            "Mention only what can be seen."
        ),
        "medium": (
            "Describe this picture in {language} in two or three sentences: its style, the main objects with "
            "their most important attributes, and how they are arranged."
        ),
        "short": "Describe this picture in {language} in one short sentence.",
        "tags": (
            "List {language} tags for this picture, separated by commas: style, objects, attributes and "
            "relations. Write nothing but the tags."
        ),
    },
    "zh": {
        "detailed": (
            "请用中文为这张图片写一段详细连贯的描述：图片的类型和风格；主要物体；画面中的其他所有物体；"
            "每个物体的颜色、材质、大小和数量；以及它们之间的空间位置关系。只写看得见的内容。"
        ),
        "medium": "请用中文以两到三句话描述这张图片：风格、主要物体及其最重要的特征，以及它们的位置。",
        "short": "请用中文以一个短句描述这张图片。",
        "tags": "请用中文列出这张图片的标签，用逗号分隔，包括风格、物体、特征和空间关系。只写标签。",
    },
    "ja": {
        "detailed": (
            "この画像について、日本語で詳しい説明文を一つの段落にまとめて書いてください。画像の種類と作風、"
            "主な被写体、そのほかに写っているすべての物、それぞれの色・素材・大きさ・数、"
            "そして互いの位置関係を述べてください。見えるものだけを書いてください。"
        ),
        "medium": (
            "この画像を日本語の二、三文で説明してください。作風、主な物とその重要な特徴、"
            "配置を述べてください。"
        ),
        "short": "この画像を日本語の短い一文で説明してください。",
        "tags": (
            "この画像のタグを日本語で、読点で区切って挙げてください。作風、物、特徴、位置関係を含め、"
            "タグだけを書いてください。"
        ),
    },
    "ru": {
        "detailed": (
            "Напишите по-русски подробное описание этого изображения одним связным абзацем: вид и стиль "
            "изображения; главный объект; все остальные объекты; цвет, материал, размер и количество "
            "каждого; их расположение относительно друг друга. Пишите только о том, что видно."
        ),
        "medium": (
            "Опишите это изображение по-русски в двух-трёх предложениях: стиль, главные объекты с их "
            "важнейшими признаками и то, как они расположены."
        ),
        "short": "Опишите это изображение по-русски одним коротким предложением.",
        "tags": (
            "Перечислите по-русски через запятую теги этого изображения: стиль, объекты, признаки и "
            "расположение. Напишите только теги."
        ),
    },
    "de": {
        "detailed": (
            "Schreibe auf Deutsch eine ausführliche Beschreibung dieses Bildes als einen zusammenhängenden "
            "Absatz: Art und Stil des Bildes; das Hauptobjekt; alle weiteren Objekte; Farbe, Material, Größe "
            "und Anzahl von jedem; und wie sie zueinander angeordnet sind. Nenne nur, was zu sehen ist."
        ),
        "medium": (
            "Beschreibe dieses Bild auf Deutsch in zwei oder drei Sätzen: den Stil, die wichtigsten Objekte "
            "mit ihren wesentlichen Merkmalen und ihre Anordnung."
        ),
        "short": "Beschreibe dieses Bild auf Deutsch in einem kurzen Satz.",
        "tags": (
            "Nenne auf Deutsch Schlagwörter zu diesem Bild, durch Kommas getrennt: Stil, Objekte, Merkmale "
            "und Anordnung. Schreibe nur die Schlagwörter."
        ),
    },
}


# Sentences before the instruction that describe the kind of image. Renderings have none; the last line of all
# other domains asks the model to omit empty openings.
_DOMAINS = {
    "en": {
        "auto": "If there is text in the picture, quote it; if it is made of several panels, describe each.",
        "natural": "This is a photograph: say also what the light, the place and the moment are, and "
        "how it is framed.",
        "document": "This is a page with text, a chart, a form or a screen: quote what is written in "
        "it, word for "
        "word and in its own language, in reading order, and say how it is laid out.",
        "panels": "This picture is made of several panels: describe each by its place, then what they "
        "have in "
        "common and how they differ.",
        "opening": "Begin with the subject itself, not with words such as 'This image shows'.",
    },
    "zh": {
        "auto": "如果画面中有文字，请引用；如果由多个分格组成，请逐一描述。",
        "natural": "这是一张照片：也请写出光线、地点、瞬间和构图。",
        "document": "这是带有文字的页面、图表、表单或屏幕：请按阅读顺序用原文逐字引用其中的文字，"
        "并说明版面布局。",
        "panels": "这张图由多个分格组成：请按位置逐一描述，再说明它们的共同点和不同点。",
        "opening": "请直接从主体写起，不要用“这张图片展示了”之类的开头。",
    },
    "ja": {
        "auto": "画像の中に文字があれば引用し、複数のコマからなる場合はそれぞれを説明してください。",
        "natural": "これは写真です。光、場所、瞬間、構図についても述べてください。",
        "document": "これは文字のあるページ、図表、書式または画面です。"
        "書かれている文字を読む順に原文のまま引用し、"
        "レイアウトも述べてください。",
        "panels": "この画像は複数のコマからなります。位置ごとにそれぞれを説明し、"
        "共通点と相違点を述べてください。",
        "opening": "「この画像は」などの前置きをせず、被写体そのものから書き始めてください。",
    },
    "ru": {
        "auto": "Если на изображении есть текст, процитируйте его; если оно состоит из нескольких "
        "панелей, опишите "
        "каждую.",
        "natural": "Это фотография: укажите также освещение, место, момент и построение кадра.",
        "document": "Это страница с текстом, схема, форма или экран: процитируйте написанное дословно, "
        "на языке "
        "оригинала, в порядке чтения, и опишите расположение частей.",
        "panels": "Изображение состоит из нескольких панелей: опишите каждую по её месту, затем что у "
        "них общего и "
        "чем они различаются.",
        "opening": "Начните с самого предмета, без слов вроде «На этом изображении показано».",
    },
    "de": {
        "auto": "Steht Text im Bild, so zitiere ihn; besteht es aus mehreren Teilbildern, so "
        "beschreibe jedes.",
        "natural": "Dies ist ein Foto: nenne auch Licht, Ort, Augenblick und Bildausschnitt.",
        "document": "Dies ist eine Seite mit Text, ein Diagramm, ein Formular oder ein Bildschirm: "
        "zitiere wörtlich, "
        "in der Sprache des Originals und in Leserichtung, was dort steht, und sage, wie es angeordnet ist.",
        "panels": "Dieses Bild besteht aus mehreren Teilbildern: beschreibe jedes nach seiner Lage, "
        "dann was sie "
        "gemeinsam haben und worin sie sich unterscheiden.",
        "opening": "Beginne mit dem Gegenstand selbst, nicht mit Worten wie 'Dieses Bild zeigt'.",
    },
}  # fmt: skip

# Sentences that a retry adds, by the code of the rejection (see checks/rules.py).
_HINTS = {
    "boilerplate": "Begin with the subject itself, not with words such as 'This image shows'.",
    "language": "Write in {language} only.",
    "too short": "Say more.",
    "too long": "Be brief.",
    "cut off": "Be brief, and come to an end.",
    "repetition": "Say everything only once.",
    "refusal": "Just say what can be seen.",
    "tags": "Write sentences, not a list of tags.",
    "sentence": "Write only tags, separated by commas.",
    "labels": "Write plain text without labels.",
}


def instruction(level: str, lang: str, domain: str = "synthetic") -> str:
    """Return the prompt for a caption of a level in a language, for an image of a domain.

    The prompt is in the language itself for the five main languages, else in English. "synthetic" is the
    plain instruction; other domains add a sentence before it and one after it.

    Raises:
        UsageError: if the level, the language or the domain is unknown.
    """
    check_names("level", [level], LEVELS)
    check_names("domain", [domain], DOMAINS)
    check_languages([lang])
    own = lang if lang in LANGS else "en"
    text = _INSTRUCTIONS[own][level].replace("{language}", NAMES[lang])
    if domain == "synthetic":
        return text
    space = "" if own in ("zh", "ja") else " "
    before = "" if domain == "auto" and level in ("short", "tags") else _DOMAINS[own][domain] + space
    after = "" if level == "tags" else space + _DOMAINS[own]["opening"]
    return before + text + after


def check_instruction(text: str, levels: Sequence[str], langs: Sequence[str], derive: str) -> None:
    """Check an instruction of the user, which asks for one caption unless it has placeholders.

    Raises:
        UsageError: if it is empty, or does not distinguish the requested captions.
    """
    if not text.strip():
        raise UsageError("--instruction is empty; give a text or a file with text")
    if derive == "once":
        raise UsageError("--derive once has a question of its own; omit it or --instruction")
    asked = (levels, langs) if derive == "picture" else ((), ())
    for option, values, placeholder in zip(
        ("--levels", "--langs"), asked, ("{level}", "{language}"), strict=True
    ):
        if len(values) > 1 and placeholder not in text:
            raise UsageError(
                f"--instruction asks for one caption, but {option} has {len(values)} values; choose one, or "
                f"write {placeholder} into the text"
            )


def own_instruction(text: str, level: str, lang: str) -> str:
    """Return an instruction of the user with its placeholders filled in."""
    return text.strip().replace("{level}", level).replace("{language}", NAMES[lang])


def add_prefix(text: str, prefix: str) -> str:
    """Return a caption after a prefix and a comma; punctuation or a space at the end replaces the comma."""
    start = prefix.strip()
    if not start or text.lower().startswith(start.lower()):
        return text
    comma = "" if start[-1] in ",.;:!?-–—)，。：" or prefix != prefix.rstrip() else ","
    return f"{start}{comma} {text}"


def hint(code: str, lang: str) -> str:
    """Return a sentence about the problem of the previous answer, or "" if there is none for this code."""
    text = _HINTS.get(code, "").replace("{language}", NAMES[lang])
    return f"\n{text}" if text else ""


def format_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return `names` without duplicates.

    Raises:
        UsageError: if a name is unknown or the list is empty.
    """
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    if not names:
        raise UsageError(f"no {kind} given; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names))
