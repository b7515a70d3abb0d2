"""The inputs of the commands: images of every kind that people have, rows, and prompts."""

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

EXIF_ORIENTATION = 0x0112
SIZE = (160, 112)  # width, height
PHOTOGRAPHS = (
    ("skimage", "data", ("astronaut.png", "coffee.png", "chelsea.png", "camera.png")),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)


def write_inputs(work: Path) -> bool:
    """Write all inputs to `work`; return whether photographs are among them."""
    write_images(work / "photos", good_images())
    # --encode png embeds the sRGB profile of the conversion, which contains the time of day
    unprofiled = {name: data for name, data in good_images().items() if name != "profile.jpg"}
    write_images(work / "unprofiled", unprofiled)
    write_images(work / "mixed", good_images() | bad_images())
    write_rows(work)
    write_prompts(work)
    scene(9, (128, 128)).save(work / "init.png")
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 48:112] = 255
    Image.fromarray(mask).save(work / "mask.png")
    photographs = find_photographs()
    write_images(work / "photographs", photographs)
    return bool(photographs)


def scene(seed: int, size: tuple[int, int] = SIZE, bands: int = 3) -> Image.Image:
    """Return an image of smooth gradients, a few rectangles and some noise: (H, W, bands) uint8."""
    random = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    waves = random.uniform(2, 9, (bands, 2))
    pixels = np.stack([127 + 90 * np.sin(a * x + b * y) for a, b in waves], axis=2)
    for _ in range(4):
        left, top = random.integers(0, width - 20), random.integers(0, height - 20)
        pixels[top : top + 20, left : left + 20] = random.integers(0, 255, bands)
    pixels += random.normal(0, 6, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8).squeeze())


def encoded(image: Image.Image, format: str, **settings) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def good_images() -> dict[str, bytes]:
    """Return images of many modes and formats by file name; one of them twice."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    grey_16 = Image.fromarray(np.asarray(scene(5, bands=1)).astype(np.uint16) * 257)
    plain = encoded(scene(0), "JPEG", quality=92)
    return {
        "plain.jpg": plain,
        "copy.jpg": plain,
        "near.jpg": encoded(scene(0), "JPEG", quality=70),
        "rotated.jpg": encoded(scene(1), "JPEG", quality=92, exif=exif),
        "inks.jpg": encoded(scene(2, bands=4).convert("CMYK"), "JPEG", quality=92),
        "grey.jpg": encoded(scene(3, bands=1), "JPEG", quality=92),
        "profile.jpg": encoded(scene(4), "JPEG", quality=92, icc_profile=swapped_profile()),
        "progressive.jpg": encoded(scene(10, (640, 400)), "JPEG", quality=80, progressive=True),
        "deep.png": encoded(grey_16, "PNG"),
        "alpha.png": encoded(scene(6, bands=4), "PNG"),
        "palette.png": encoded(scene(7).quantize(16), "PNG"),
        "frames.gif": encoded(scene(8), "GIF", save_all=True, append_images=[scene(9)]),
        "lossy.webp": encoded(scene(11), "WEBP", quality=80),
        "lossless.webp": encoded(scene(12, bands=4), "WEBP", lossless=True),
        "bitmap.bmp": encoded(scene(13), "BMP"),
        "tiled.tif": encoded(scene(14), "TIFF", compression="tiff_lzw"),
        "wrong-suffix.jpg": encoded(scene(15, (96, 200)), "PNG"),
    }


def bad_images() -> dict[str, bytes]:
    """Return files that are not whole images."""
    jpeg, png = encoded(scene(20), "JPEG", quality=95), encoded(scene(21), "PNG")
    third = len(jpeg) // 3
    return {
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "damaged.jpg": jpeg[:third] + bytes(third) + jpeg[2 * third :],
        "empty.png": b"",
        "text.png": b"this is not an image",
        "cut.png": png[: len(png) // 2],
        "float.tif": encoded(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF"),
    }


def swapped_profile() -> bytes:
    """Return an ICC profile like sRGB with red and green exchanged, another name, and no date."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = bytes(12)  # date and time of creation
    count = int.from_bytes(data[128:132], "big")
    tags = {bytes(data[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data).replace("sRGB".encode("utf-16-be"), "xRGB".encode("utf-16-be"))


def write_images(folder: Path, images: dict[str, bytes]) -> None:
    """Write files, each with a caption next to it."""
    for number, (name, data) in enumerate(images.items()):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        caption = f"A photo of {number + 1} red blocks on a blurred blue wall, file {Path(name).stem}."
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def find_photographs() -> dict[str, bytes]:
    """Return the sample photographs of scikit-image and scikit-learn, of those that are installed."""
    found = {}
    for package, folder, names in PHOTOGRAPHS:
        spec = find_spec(package)
        for place in spec.submodule_search_locations if spec else ():
            paths = [Path(place, folder, name) for name in names]
            found |= {path.name: path.read_bytes() for path in paths if path.is_file()}
    return found


def write_rows(work: Path) -> None:
    """Write rows of images with captions, scores and sources, and rows for an overlay of shards/photos."""
    rows, overlay = [], []
    for number, name in enumerate(("plain.jpg", "rotated.jpg", "alpha.png", "lossy.webp", "deep.png")):
        captions = {"en": {"short": f"image {number}", "medium": f"a caption of the image {name}"}}
        captions |= {"de": {"short": f"Bild {number}"}} if number % 2 else {}
        row = {"key": f"row-{number}", "image": f"photos/{name}", "captions": captions}
        rows.append(row | {"score": number / 4, "source": "ab"[number % 2], "licence": "CC0"})
        fields = {"captions": {"en": {"short": f"another caption {number}"}}, "scores": {"mine": number / 3}}
        overlay.append({"key": Path(name).stem} | fields)
    files = {"rows.jsonl": rows, "rows-part.jsonl": rows[:3]}
    files |= {"overlay-1.jsonl": overlay[:3], "overlay-2.jsonl": overlay[3:]}
    for name, values in files.items():
        text = "".join(json.dumps(value) + "\n" for value in values)
        (work / name).write_text(text, encoding="utf-8")


def write_prompts(work: Path) -> None:
    """Write prompts as text, JSON Lines and CSV."""
    prompts = ["a green cube on a table", "two yellow cones", "ein roter Ball", "一个蓝色的杯子", "a boat"]
    (work / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    rows = [
        {"prompt": prompts[0], "seed": 5, "note": "kept"},
        {"prompt": prompts[1], "size": "96x160"},
        {"prompt": prompts[3], "negative": "a red ball", "seed": 2},
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (work / "prompts.jsonl").write_text(text, encoding="utf-8")
    (work / "prompts.csv").write_text(
        "prompt,seed,size\na red cup,3,64x128\na pink star,4,\n", encoding="utf-8"
    )
