"""Image files of every mode, orientation and kind of damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.images.io import MAX_PIXELS, open_image, open_with_format, read_metadata, save_image
from lumina_cli.core.images.metadata.infotext import read_infotext, write_infotext


def encoded(image: Image.Image, format: str = "PNG", **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


def colour(data: bytes) -> tuple[int, ...]:
    image = open_image(data)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


RED_GLASS = Image.new("RGBA", (4, 4), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", (10, 20, 30)),
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (9, 255)), "PNG", (9, 9, 9)),
        (RED_GLASS, "PNG", (255, 255, 255)),
        (RED_GLASS, "WEBP", (255, 255, 255)),
        (Image.new("RGB", (4, 4), (0, 128, 0)).quantize(2), "PNG", (0, 128, 0)),
        (Image.new("RGB", (4, 4), (0, 128, 0)).quantize(4), "GIF", (0, 128, 0)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "BMP", (10, 20, 30)),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "TIFF", (10, 20, 30)),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "mode", ""),
)
def test_every_mode_becomes_rgb(image, format, expected):
    assert colour(encoded(image, format)) == expected


def png_16(pixels: np.ndarray, transparent: tuple[int, ...]) -> bytes:
    """Return a 16-bit PNG of pixels (H, W) or (H, W, 3) with a transparent level or color."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)),
        (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("key", [0, 5, 1000, 40_000, 65_535])
def test_16_bit_transparency_is_honoured_as_8_bit_is(key):
    other = 30_000
    grey = np.array([[key, other], [other, key]], np.uint16)
    image = open_image(png_16(grey, (key,)))
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == ((255,) * 3, (round(other / 257),) * 3)
    image = open_image(png_16(np.stack([grey, np.full_like(grey, 700), grey], axis=-1), (key, 700, key)))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == (other >> 8, 700 >> 8, other >> 8)


def test_a_transparent_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putdata([0, 1])
    found = open_image(encoded(image, transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_are_rotated_upright(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (8, 4)).save(tmp_path / "x.jpg", exif=exif)
    assert open_image(tmp_path / "x.jpg").size == ((8, 4) if turn < 5 else (4, 8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_is_ignored():
    data = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert open_image(data).size == (8, 4)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_one_clear_line(format, share, tmp_path):
    data = encoded(NOISE, format)
    path = tmp_path / "broken.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(LuminaError, match=r"broken\.img: truncated or not an image") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"hello", b"\x89PNG\r\n\x1a\n" + b"\x00" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"]
)
def test_other_files_are_not_images(data):
    with pytest.raises(LuminaError, match="image: truncated or not an image"):
        open_image(data)


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [9_500, 12_000, 60_000])
def test_decompression_bombs_are_refused(side):
    assert side * side > MAX_PIXELS
    with pytest.raises(LuminaError, match="image: more than 89 million pixels; resize it first"):
        open_image(huge_png(side, side))


@pytest.mark.parametrize(
    ("name", "message"), [("gone.png", "no such image"), ("", "is a folder, not an image")]
)
def test_missing_files(name, message, tmp_path):
    with pytest.raises(LuminaError, match=message):
        open_image(tmp_path / name)


def test_the_format_is_returned_with_the_image():
    format, image = open_with_format(encoded(NOISE, "WEBP"))
    assert (format, image.size) == ("WEBP", (64, 64))


PLAN = {"prompt": 'ein "roter" Würfel 红色', "seed": 7, "plan": {"steps": 17, "renorm": None}}


KINDS = [".png", ".webp", ".jpg", ".JPEG", ".avif"]


@pytest.mark.parametrize("suffix", KINDS)
def test_metadata_comes_back(suffix, tmp_path):
    path = save_image(NOISE, tmp_path / "deep" / f"x{suffix}", PLAN)
    assert read_metadata(path) == PLAN
    assert open_image(path).size == NOISE.size


def test_png_keeps_every_pixel(tmp_path):
    path = save_image(NOISE, tmp_path / "x.png", {"a": "ü"})
    assert open_image(path).tobytes() == NOISE.tobytes()
    assert b"iTXt" in path.read_bytes()


def test_images_without_metadata_return_none(tmp_path):
    assert read_metadata(save_image(NOISE, tmp_path / "x.png")) == {}
    assert read_metadata(encoded(NOISE, "JPEG")) == {}


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(
        UsageError,
        match=r"x\.xyz: unsupported file extension '\.xyz'; use \.png, \.webp, \.jpg, \.jpeg, \.avif",
    ):
        save_image(NOISE, tmp_path / "x.xyz")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        (next(iter(args[1:])) if len(args) > 1 else kwargs["fp"]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_image(NOISE, tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


ORIGIN = {
    "prompt": "ein roter Würfel 红色\nund ein Ball, groß",
    "negative": "blurry: grey, dull",
    "seed": 7,
    "number": 2,
    "model": "runs/first, again",
    "weights": "0f3a",
    "size": [64, 48],
    "plan": {"solver": "midpoint", "steps": 17, "guidance": 4.5, "shift": 6.0},
    "version": "0.1.0",
}
TEXT = (
    "ein roter Würfel 红色\nund ein Ball, groß\nNegative prompt: blurry: grey, dull\n"
    "Steps: 17, Sampler: midpoint, CFG scale: 4.5, Seed: 7, Size: 64x48, Model hash: 0f3a, "
    'Model: "runs/first, again", Shift: 6, Image number: 2, Version: lumina 0.1.0'
)


def exif_comment(path) -> bytes | None:
    with Image.open(path) as image:
        return image.getexif().get_ifd(0x8769).get(0x9286)


def test_other_programs_find_their_text_in_a_png(tmp_path):
    path = save_image(NOISE, tmp_path / "x.png", ORIGIN)
    with Image.open(path) as image:
        assert image.info["parameters"] == TEXT
    plain = save_image(NOISE, tmp_path / "y.png", {**ORIGIN, "prompt": "a cup", "negative": ""})
    assert b"tEXtparameters\0a cup\nSteps: 17" in plain.read_bytes()


@pytest.mark.parametrize("suffix", KINDS[1:])
def test_other_programs_find_their_text_in_exif(suffix, tmp_path):
    path = save_image(NOISE, tmp_path / f"x{suffix}", ORIGIN)
    comment = exif_comment(path)
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT


def test_the_text_of_parameters_comes_back():
    known = {key: ORIGIN[key] for key in ("prompt", "negative", "seed", "size", "model", "plan")}
    found = read_infotext(write_infotext(ORIGIN))
    assert {key: found[key] for key in known} == known
    assert write_infotext({"seed": 3}) is None


WEB_UI = (
    "masterpiece, (red car:1.2)\nNegative prompt: lowres, bad\nhands\n"
    "Steps: 28, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, "
    'Model hash: 6ce0161689, Model: v1-5, Lora hashes: "a: b, c: d", Version: v1.9.4'
)


@pytest.mark.parametrize("order", ["be", "le"])
def test_parameters_of_other_programs_are_mapped(order, tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + WEB_UI.encode(f"utf-16-{order}")
    NOISE.save(tmp_path / "x.jpg", exif=exif)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", WEB_UI)
    NOISE.save(tmp_path / "x.png", pnginfo=info)
    for name in ("x.jpg", "x.png"):
        found = read_metadata(tmp_path / name)
        assert found["prompt"] == "masterpiece, (red car:1.2)"
        assert found["negative"] == "lowres, bad\nhands"
        assert (found["seed"], found["size"], found["model"]) == (1234567890, [512, 768], "v1-5")
        assert found["plan"] == {"steps": 28, "solver": "dpm", "guidance": 7.0}
        assert found["parameters"]["Lora hashes"] == "a: b, c: d"


@pytest.mark.parametrize(
    "text",
    ["", "a picture of a cup", "red, blue: two cups", "Steps: many", "Steps:, Seed:\x00", "\n\n", '"' * 99],
)
def test_other_texts_are_not_parameters(text):
    assert read_infotext(text) == {}


def test_invalid_settings_are_dropped():
    assert read_infotext("cup\nSteps: many, Seed: 1e3, Size: large, Sampler: Lyapunov") == {
        "prompt": "cup",
        "plan": {},
        "parameters": {"Steps": "many", "Seed": "1e3", "Size": "large", "Sampler": "Lyapunov"},
        "unused": ["seed", "size", "steps", "solver"],
    }


def test_a_prompt_too_long_for_a_jpeg_is_refused(tmp_path):
    long = {**ORIGIN, "prompt": "red cup " * 5000}
    path = save_image(NOISE, tmp_path / "x.jpg", long)
    assert read_metadata(path) == long
    assert exif_comment(path) is None
    longer = {**ORIGIN, "prompt": "red cup " * 9000}
    with pytest.raises(LuminaError, match=r"y\.jpg: metadata exceeds JPEG's 64 KiB limit; use --format png"):
        save_image(NOISE, tmp_path / "y.jpg", longer)
    assert read_metadata(save_image(NOISE, tmp_path / "z.avif", longer)) == longer
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.jpg", "z.avif"]


def test_a_format_missing_from_pillow_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("lumina_cli.core.images.io.features.check", lambda name: False)
    with pytest.raises(MissingDependency, match="this Pillow cannot write AVIF"):
        save_image(NOISE, tmp_path / "x.avif")
