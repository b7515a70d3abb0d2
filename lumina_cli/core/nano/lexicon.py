"""Words for nano's synthetic scenes in five languages: nouns, tints and backdrops, inflected by format specs.

A `Phrase` names one object, or several equal ones. Templates select its form after the colon: `{a}` is the
plain one ("a red car"), `{a:def}` that for a thing already named ("the car"),
`{a:bare}` that in a list of
tags ("red car"). German also has `dat` and `one`, Russian `gen`, `ins`, `one` and `two`, Chinese and
Japanese `n` (number and counter), Chinese also `m` (the counter alone).
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: the kind, and optionally tint, size ("small" or "large") and number."""

    kind: str
    tint: str | None = None
    size: str | None = None
    count: int = 1
    digits: bool = False
    terse: bool = False  # Chinese: no number and counter in front
    tight: bool = False  # Chinese: 红色汽车 for 红色的汽车

    def number(self, words: dict[int, str]) -> str:
        return str(self.count) if self.digits else words[self.count]


class English(Phrase):
    PLURALS: ClassVar = {"snowman": "snowmen"}
    NUMBERS: ClassVar = {2: "two", 3: "three", 4: "four"}

    def __format__(self, form: str) -> str:
        if form == "def":
            return f"the {self.kind}"
        noun = self.kind if self.count == 1 else self.PLURALS.get(self.kind, f"{self.kind}s")
        name = " ".join(word for word in (self.size, self.tint, noun) if word)
        if self.count > 1:
            return name if form == "bare" else f"{self.number(self.NUMBERS)} {name}"
        if form == "bare":
            return name
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"


class German(Phrase):
    NOUNS: ClassVar = {  # gender, singular, plural; the dative is made from them
        "ball": "m Ball Bälle", "cube": "m Würfel Würfel", "cylinder": "m Zylinder Zylinder",
        "cone": "m Kegel Kegel", "ring": "m Ring Ringe", "star": "m Stern Sterne", "heart": "n Herz Herzen",
        "house": "n Haus Häuser", "tree": "m Baum Bäume", "mushroom": "m Pilz Pilze", "car": "n Auto Autos",
        "boat": "n Boot Boote", "cup": "f Tasse Tassen", "lamp": "f Lampe Lampen",
        "snowman": "m Schneemann Schneemänner", "rocket": "f Rakete Raketen",
    }  # fmt: skip
    TINTS: ClassVar = {
        "red": "rot", "orange": "orangefarben", "yellow": "gelb", "green": "grün", "blue": "blau",
        "purple": "lila", "pink": "rosa", "brown": "braun", "black": "schwarz", "white": "weiß",
        "small": "klein", "large": "groß",
    }  # fmt: skip
    NUMBERS: ClassVar = {2: "zwei", 3: "drei", 4: "vier"}
    STRONG: ClassVar = {"m": "er", "f": "e", "n": "es"}  # ein roter Ball, eine rote Tasse, ein rotes Auto

    def __format__(self, form: str) -> str:
        gender, one, many = self.NOUNS[self.kind].split()
        if form == "def":
            return f"{ {'m': 'der', 'f': 'die', 'n': 'das'}[gender] } {one}"
        if form == "one":
            return {"m": "einer", "f": "eine", "n": "eines"}[gender]
        if self.count > 1:
            noun = many + "n" if form == "dat" and many[-1] not in "ns" else many
            name = self._adjectives("en" if form == "dat" else "e") + noun
            return name if form == "bare" else f"{self.number(self.NUMBERS)} {name}"
        if form == "dat":
            noun = "Herzen" if self.kind == "heart" else one
            return f"{'einer' if gender == 'f' else 'einem'} {self._adjectives('en')}{noun}"
        name = self._adjectives(self.STRONG[gender]) + one
        return name if form == "bare" else f"{'eine' if gender == 'f' else 'ein'} {name}"

    def _adjectives(self, ending: str) -> str:
        return "".join(german_adjective(self.TINTS[w], ending) + " " for w in (self.size, self.tint) if w)


def german_adjective(stem: str, ending: str) -> str:
    """Inflect a German adjective: "rot" + "er"; words such as "rosa" and "lila" are invariant."""
    return stem if stem.endswith("a") else stem + ending


class Russian(Phrase):
    NOUNS: ClassVar = {  # gender, nominative, genitive (also the form after 2, 3 and 4), instrumental
        "ball": "m шар шара шаром", "cube": "m куб куба кубом", "cylinder": "m цилиндр цилиндра цилиндром",
        "cone": "m конус конуса конусом", "ring": "n кольцо кольца кольцом",
        "star": "f звезда звезды звездой",
        "heart": "n сердце сердца сердцем", "house": "m дом дома домом", "tree": "n дерево дерева деревом",
        "mushroom": "m гриб гриба грибом", "car": "f машина машины машиной", "boat": "f лодка лодки лодкой",
        "cup": "f чашка чашки чашкой", "lamp": "f лампа лампы лампой",
        "snowman": "m снеговик снеговика снеговиком", "rocket": "f ракета ракеты ракетой",
    }  # fmt: skip
    TINTS: ClassVar = {
        "red": "красн", "orange": "оранжев", "yellow": "жёлт", "green": "зелён", "blue": "син",
        "purple": "фиолетов", "pink": "розов", "brown": "коричнев", "black": "чёрн", "white": "бел",
        "small": "маленьк", "large": "больш",
    }  # fmt: skip
    ENDINGS: ClassVar = {  # nominative, genitive, instrumental by gender; then the plural after numbers
        "hard": {"nom": {"m": "ый", "f": "ая", "n": "ое"}, "gen": {"m": "ого", "f": "ой", "n": "ого"},
                 "ins": {"m": "ым", "f": "ой", "n": "ым"}, "many": {"m": "ых", "f": "ые", "n": "ых"}},
        "soft": {"nom": {"m": "ий", "f": "яя", "n": "ее"}, "gen": {"m": "его", "f": "ей", "n": "его"},
                 "ins": {"m": "им", "f": "ей", "n": "им"}, "many": {"m": "их", "f": "ие", "n": "их"}},
    }  # fmt: skip
    SIZES: ClassVar = {"маленьк": "ий", "больш": "ой"}  # the nominative masculine; "ым" is "им" after к and ш
    NUMBERS: ClassVar = {2: "два", 3: "три", 4: "четыре"}

    def __format__(self, form: str) -> str:
        gender, nominative, genitive, instrumental = self.NOUNS[self.kind].split()
        if form == "def":
            return nominative
        if form == "one":
            return {"m": "один", "f": "одна", "n": "одно"}[gender]
        if form == "two":
            return "две" if gender == "f" else "два"
        if self.count > 1:
            number = "две" if self.count == 2 and gender == "f" else self.NUMBERS[self.count]
            return f"{self.count if self.digits else number} {self._adjectives('many', gender)}{genitive}"
        case = form if form in ("gen", "ins") else "nom"
        noun = {"nom": nominative, "gen": genitive, "ins": instrumental}[case]
        return self._adjectives(case, gender) + noun

    def _adjectives(self, case: str, gender: str) -> str:
        return "".join(
            self._adjective(self.TINTS[w], case, gender) + " " for w in (self.size, self.tint) if w
        )

    def _adjective(self, stem: str, case: str, gender: str) -> str:
        ending = self.ENDINGS["soft" if stem == "син" else "hard"][case][gender]
        if stem in self.SIZES:
            ending = {"ый": self.SIZES[stem], "ым": "им"}.get(ending, ending)
        return stem + ending


class Chinese(Phrase):
    NOUNS: ClassVar = {  # measure word, noun
        "ball": "个 球", "cube": "个 立方体", "cylinder": "个 圆柱体", "cone": "个 圆锥体", "ring": "个 圆环",
        "star": "颗 星星", "heart": "颗 爱心", "house": "座 房子", "tree": "棵 树", "mushroom": "个 蘑菇",
        "car": "辆 汽车", "boat": "艘 船", "cup": "个 杯子", "lamp": "盏 台灯", "snowman": "个 雪人",
        "rocket": "枚 火箭",
    }  # fmt: skip
    TINTS: ClassVar = {
        "red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色",
        "purple": "紫色", "pink": "粉色", "brown": "棕色", "black": "黑色", "white": "白色",
    }  # fmt: skip
    NUMBERS: ClassVar = {1: "一", 2: "两", 3: "三", 4: "四"}

    def __format__(self, form: str) -> str:
        measure, noun = self.NOUNS[self.kind].split()
        number = self.number(self.NUMBERS) + measure
        if form in ("m", "n", "def"):
            return {"m": measure, "n": number, "def": noun}[form]
        noun = {"small": "小", "large": "大", None: ""}[self.size] + noun
        if self.tint:  # monosyllabic nouns keep 的
            noun = (
                self.TINTS[self.tint]
                + ("" if (self.tight or form == "bare") and len(noun) > 1 else "的")
                + noun
            )
        return noun if form == "bare" or self.terse else number + noun


class Japanese(Phrase):
    NOUNS: ClassVar = {  # counter, noun
        "ball": "個 ボール", "cube": "個 立方体", "cylinder": "個 円柱", "cone": "個 円錐",
        "ring": "個 リング",
        "star": "個 星", "heart": "個 ハート", "house": "軒 家", "tree": "本 木", "mushroom": "本 きのこ",
        "car": "台 車",
        "boat": "隻 船", "cup": "個 カップ", "lamp": "台 ランプ", "snowman": "個 雪だるま",
        "rocket": "機 ロケット",
    }  # fmt: skip
    TINTS: ClassVar = {
        "red": "赤い", "orange": "オレンジ色の", "yellow": "黄色い", "green": "緑の", "blue": "青い",
        "purple": "紫の", "pink": "ピンクの", "brown": "茶色い", "black": "黒い", "white": "白い",
    }  # fmt: skip
    SIZES: ClassVar = {"small": "小さな", "large": "大きな", None: ""}
    NUMBERS: ClassVar = {1: "一", 2: "二", 3: "三", 4: "四"}

    def __format__(self, form: str) -> str:
        counter, noun = self.NOUNS[self.kind].split()
        number = self.number(self.NUMBERS) + counter
        if form in ("n", "def"):
            return number if form == "n" else noun
        name = self.SIZES[self.size] + (self.TINTS[self.tint] if self.tint else "") + noun
        return name if form == "bare" or self.count == 1 else f"{number}の{name}"


class Backdrop(str):
    """A backdrop adjective; the format spec is its ending, in languages that inflect it."""

    def __format__(self, ending: str) -> str:
        if ending == "ый" and self.endswith("голуб"):
            return f"{self!s}ой"
        return german_adjective(str(self), ending)


BACKDROP_WORDS = {
    "en": {
        "sky": ("pale blue", "sky blue"), "sand": ("sand-coloured", "tan"), "mint": ("pale green", "mint"),
        "rose": ("pale pink", "rose"), "slate": ("dark grey", "slate"), "mist": ("light grey", "misty"),
    },
    "de": {
        "sky": ("hellblau", "himmelblau"), "sand": ("sandfarben", "beigefarben"), "mint": ("hellgrün",
        "mintgrün"),
        "rose": ("hellrosa", "zartrosa"), "slate": ("dunkelgrau", "schiefergrau"), "mist": ("hellgrau",
        "nebelgrau"),
    },
    "ru": {
        "sky": ("голуб", "светло-голуб"), "sand": ("песочн", "бежев"), "mint": ("светло-зелён", "мятн"),
        "rose": ("светло-розов", "бледно-розов"), "slate": ("тёмно-сер", "сиз"), "mist": ("светло-сер",
        "дымчат"),
    },
    "zh": {
        "sky": ("浅蓝色", "天蓝色"), "sand": ("沙色", "米色"), "mint": ("浅绿色", "薄荷色"),
        "rose": ("浅粉色", "淡玫瑰色"), "slate": ("深灰色", "石板灰"), "mist": ("浅灰色", "雾灰色"),
    },
    "ja": {
        "sky": ("水色", "空色"), "sand": ("砂色", "ベージュ"), "mint": ("薄緑色", "ミント色"),
        "rose": ("薄いピンク", "バラ色"), "slate": ("濃い灰色", "青灰色"), "mist": ("薄い灰色", "明るい灰色"),
    },
}  # fmt: skip

PHRASES: dict[str, type[Phrase]] = {"en": English, "zh": Chinese, "ja": Japanese, "ru": Russian, "de": German}
