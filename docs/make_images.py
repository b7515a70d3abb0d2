"""Generate the images of README and the guides: `python docs/make_images.py`.

Every image is real output of the bundled model. The screenshots need Chromium and are skipped without it.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from lumina_cli import load

IMAGES = Path(__file__).with_name("images")
SEED, SIZE, GAP = 2, 128, 4
PROMPTS = (
    "a red car left of a blue ball",
    "three purple mushrooms",
    "a pink heart above a black ring",
    "ein gelber Stern neben einem lila Ring",
    "на фото красный гриб слева от белой лодки",
    "一辆蓝色的汽车和一颗黄色的星星",
    "緑の木の右に赤い家",
    "a blue cylinder, a red cone and a yellow ball",
)
# name, page, window size of each screenshot
SCREENSHOTS = (
    ("gallery", "pictures/gallery.html", (1100, 640)),
    ("stats", "stats.html", (1100, 1160)),
    ("preview", "preview.html", (1100, 730)),
)


def lumina(folder: Path, command: str) -> None:
    """Run one command of lumina in a folder."""
    words = [sys.executable, "-m", "lumina_cli", *shlex.split(command)]
    subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def save(image: Image.Image, name: str) -> None:
    """Store an image as docs/images/NAME.webp."""
    image.convert("RGB").save(IMAGES / f"{name}.webp", quality=94, method=6)


def row(images: list[Image.Image]) -> Image.Image:
    """Return images of one size next to each other."""
    strip = Image.new("RGB", (len(images) * (SIZE + GAP) - GAP, SIZE), "white")
    for number, image in enumerate(images):
        strip.paste(image, (number * (SIZE + GAP), 0))
    return strip


def make_samples() -> None:
    """The strip of README and the table of prompts, all from one seed."""
    images = load("nano")(list(PROMPTS), seed=SEED)
    for number, image in enumerate(images, start=1):
        save(image, f"sample-{number}")
    save(row(images[:7]), "strip")


def make_outputs(folder: Path) -> None:
    """A grid, an attention map, an inpainted image and a regenerated one."""
    grid = '"a green lamp and a pink heart" --model nano --seed 3 --grid "guidance=1,2,4,7 x calls=4,8,34"'
    lumina(folder, f"sample {grid} --out grid")
    save(Image.open(next(folder.glob("grid/*-grid-*.png"))), "grid")
    lumina(
        folder, 'sample "a red car left of a blue ball" --model nano --attention car --attention ball --out .'
    )
    car = folder / "00000-a-red-car-left-of-a-blue-ball-s0.png"
    maps = [car.with_name(f"{car.stem}-attention-{word}.png") for word in ("car", "ball")]
    save(row([Image.open(path) for path in (car, *maps)]), "attention")
    car.rename(folder / "car.png")
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    mask.save(folder / "mask.png")
    star = '"a red car left of a yellow star" --model nano --init car.png --mask mask.png --strength 1'
    lumina(folder, f"sample {star} --out star")
    boat = '"a green boat left of a blue ball" --model nano --init car.png --strength 0.8'
    lumina(folder, f"sample {boat} --out boat")
    edits = [folder / "car.png", folder / "mask.png", *folder.glob("star/*.png"), *folder.glob("boat/*.png")]
    save(row([Image.open(path).convert("RGB") for path in edits]), "edits")


def make_pages(folder: Path) -> None:
    """The pages that commands write, as screenshots."""
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    lumina(folder, f"sample prompts.txt --model nano --seed {SEED} --gallery --out pictures")
    lumina(folder, "shard nano:300 data")
    lumina(folder, "shard score data")
    lumina(folder, "shard select data best --no-duplicates near --best 0.5 --by sharpness")
    lumina(folder, "shard stats best --page stats.html")
    lumina(folder, "shard preview best --by sharpness --page preview.html")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    for name, page, (width, height) in SCREENSHOTS if browser else ():
        shot = folder / f"{name}.png"
        options = ["--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=4000"]
        options += [f"--window-size={width},{height + 200}", f"--screenshot={shot}"]
        subprocess.run([browser, *options, (folder / page).as_uri()], check=True, capture_output=True)
        save(Image.open(shot).crop((0, 0, width, height)), name)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    make_samples()
    with TemporaryDirectory() as folder:
        make_outputs(Path(folder))
        make_pages(Path(folder))


if __name__ == "__main__":
    main()
