"""Draws docs/nano.png, the pictures that README shows: `python docs/make_nano.py`."""

from pathlib import Path

from PIL import Image

from lumina_cli import load

PROMPTS = (
    "a red car left of a blue ball",
    "a photo of a yellow rocket",
    "three purple mushrooms",
    "a green lamp and a pink heart",
    "a white snowman on a light blue backdrop",
    "a black cup above an orange cube",
    "an orange house in front of a brown tree",
    "ein gelber Stern neben einem lila Ring",
    "на фото красный гриб слева от белой лодки",
    "一辆蓝色的汽车和一颗黄色的星星",
    "緑の木の右に赤い家",
    "a blue cylinder, a red cone and a yellow ball",
)
COLUMNS, GAP, SIZE = 6, 4, 128


def main() -> None:
    pictures = load("nano")(list(PROMPTS), seed=1)
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIZE + GAP) - GAP, rows * (SIZE + GAP) - GAP), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(picture, ((number % COLUMNS) * (SIZE + GAP), (number // COLUMNS) * (SIZE + GAP)))
    sheet.save(Path(__file__).with_name("nano.png"), optimize=True)


if __name__ == "__main__":
    main()
