"""What the captioner is told: one instruction per level and language, in that language."""

from collections.abc import Sequence

from lumina_cli.core.errors import UsageError

LEVELS = ("detailed", "medium", "short", "tags")
LANGS = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ru": "Russian", "de": "German"}

# New tokens that a caption of each level may take before it counts as cut off.
MAX_TOKENS = {"detailed": 1024, "medium": 320, "short": 96, "tags": 192}

# The five perspectives of the detailed level: style, main object, all objects, attributes, spatial relations.
_INSTRUCTIONS = {
    "en": {
        "detailed": (
            "Write a detailed caption for this picture in English, as one flowing paragraph. Say what kind "
            "of picture it is and its style; the main object; every other object in it; the colour, "
            "material, size and number of each; and where they are in relation to one another. "
            "Mention only what can be seen."
        ),
        "medium": (
            "Describe this picture in English in two or three sentences: its style, the main objects with "
            "their most important attributes, and how they are arranged."
        ),
        "short": "Describe this picture in English in one short sentence.",
        "tags": (
            "List English tags for this picture, separated by commas: style, objects, attributes and "
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
            "この画像を日本語の二、三文で説明してください。作風、主な物とその重要な特徴、配置を述べてください。"
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


def instruction(level: str, lang: str) -> str:
    """Return what to ask for a caption of this level in this language."""
    check_names("level", [level], LEVELS)
    check_names("language", [lang], LANGS)
    return _INSTRUCTIONS[lang][level]


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return `names` without repeats; raise UsageError for an unknown one, or where there is none."""
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {kind} {name!r}; choose from {', '.join(known)}")
    if not names:
        raise UsageError(f"no {kind} given; choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names))
