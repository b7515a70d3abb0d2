"""Phrases that no caption should have, in five languages: refusals, empty openings, ends in mid-sentence."""

import re

REFUSALS = re.compile(
    r"\bI(?: a|')?m (?:sorry|unable)|\bI (?:can ?not|can't|am not able)|\bas an ai\b|"
    r"\b(?:no|without an?) (?:image|picture) (?:was |is |has been )?(?:provided|attached|given|visible)|"
    r"抱歉|对不起|我(?:无法|不能)|作为(?:一个|一名)?(?:AI|人工智能)|申し訳|お答えできません|"
    r"\bизвините|\bк сожалению|\bя не могу|\bкак (?:ИИ|языковая модель)|"
    r"\btut mir leid|\bich kann (?:leider )?(?:nicht|keine?)|\bals KI\b",
    re.IGNORECASE,
)

# Openings that speak of the picture and say nothing of it: "This image shows", "An image of". What tells its
# kind ("a photo of a car", "an oil painting of", "auf dem Foto") is style, and stays.
_EN = r"(?:image|picture|scene|visual)"
_VERB = (
    r"(?:shows?|depicts?|features?|displays?|captures?|presents?|portrays?|illustrates?"
    r"|contains?|showcases?|is of)"
)
_OPENINGS = (
    # In English "a picture of" is kept: it tells a drawing or a rendering from "a photo of".
    rf"(?:in )?(?:this|the|the given|the provided) (?:\w+ )?{_EN}(?: (?:here|above|provided))?,? "
    rf"(?:{_VERB}|there (?:is|are)|we (?:can )?see|you can see)\b",
    rf"(?:this|the) (?:photo|photograph|illustration|painting|drawing) {_VERB}\b",
    r"(?:this is |here is )?an? (?:image|visual) (?:of|showing|depicting|that shows|with)\b",
    rf"(?:this is |here is )an? {_EN} (?:of|showing|depicting|that shows|with)\b",
    rf"an? {_EN} (?:showing|depicting|that shows)\b",
    r"(?:here is|here's) (?:a|the) (?:\w+ )?(?:caption|description)\b|(?:sure|certainly|of course)[,!]|"
    "caption:",
    r"(?:这|此|该|本)(?:张|幅|个)?(?:图|图片|图像|画面|照片|插图)(?:中|里)?"
    r"(?:展示|显示|描绘|呈现|描述|展现|是一|为一|拍摄|有)",
    r"(?:图中|图片中|画面中)(?:展示|显示|可以看到)|一(?:张|幅)(?:图片|图像)[，,：]|以下是",
    r"(?:この|本)(?:画像|写真|絵|イラスト)(?:は|には|では|に写|に描|で示)|画像(?:に|で)は|以下は",
    r"(?:на )?(?:этом|данном) (?:изображении|снимке|фото|рисунке|картинке)\b|(?:это|данное) изображение\b",
    r"на (?:изображении|картинке) (?:показан|изображ|представлен|видн)",
    r"изображение (?:показывает|содержит|представляет)",
    r"(?:dieses|das) (?:bild|foto) (?:zeigt|stellt|ist ein|enthält)|(?:auf|in) diesem (?:bild|foto)\b",
    r"ein bild,? (?:das|auf dem)\b|hier ist (?:eine|die) (?:bild)?(?:beschreibung|unterschrift)\b",
)
BOILERPLATE = re.compile("|".join(_OPENINGS), re.IGNORECASE)

# A caption that ends with one of these was cut off, whatever its engine says.
_LAST_WORDS = (
    "and or the a an of with to in on at by from is are its "
    "und oder der die das ein eine mit von auf im ist sind и или на в с из под над от к для"
)
UNFINISHED = re.compile(
    rf"(?:[,;:(\[{{„«「『（，、；：]|\s[-–—]|\b(?:{'|'.join(_LAST_WORDS.split())})|(?:和|与|或|以及|と|や|が|を|は))\s*$",
    re.IGNORECASE,
)
