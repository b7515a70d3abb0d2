"""Malformed and malicious files, each with the expected reject code or notes."""

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

Expected = dict[str, tuple[str, ...] | str]


def noise(size=(32, 24), mode="RGB") -> Image.Image:
    random = np.random.default_rng(0)
    bands = [random.integers(0, 255, size[::-1], np.uint8) for _ in Image.new(mode, (1, 1)).getbands()]
    return Image.merge(mode, [Image.fromarray(band) for band in bands])


def encoded(image: Image.Image, format: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()


JPEG, PNG, WEBP, GIF = (encoded(noise(), each) for each in ("JPEG", "PNG", "WEBP", "GIF"))


SMOOTH = noise((8, 6)).resize((160, 120))
LARGE = {
    "jpeg": encoded(SMOOTH, "JPEG", quality=95),
    "progressive": encoded(SMOOTH, "JPEG", quality=95, progressive=True),
    "grey": encoded(SMOOTH.convert("L"), "JPEG", quality=95),
    "inks": encoded(SMOOTH.convert("CMYK"), "JPEG", quality=95),
    "restarts": encoded(SMOOTH, "JPEG", quality=95, restart_marker_rows=1),
    "mpo": encoded(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH]),
    "rgb": encoded(SMOOTH, "JPEG", quality=95, keep_rgb=True),
}


def closed(data: bytes, share: float) -> bytes:
    """A JPEG that ends early, and whose end marker says that this is all."""
    return data[: int(len(data) * share)] + b"\xff\xd9"


def blank(data: bytes) -> bytes:
    """A file whose middle has become zeros; for a JPEG, inside of its scan."""
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


DAMAGED = {f"{name}-closed": closed(data, 0.6) for name, data in LARGE.items() if name != "mpo"}
DAMAGED |= {f"{name}-closed-late": closed(data[:-2], 0.98) for name, data in LARGE.items() if name != "mpo"}
DAMAGED |= {f"{name}-blank": blank(data) for name, data in LARGE.items() if name != "mpo"}
DAMAGED["mpo-blank"] = blank(LARGE["mpo"][: len(LARGE["mpo"]) // 2]) + LARGE["mpo"][len(LARGE["mpo"]) // 2 :]
DAMAGED["left-over"] = LARGE["jpeg"][:-2] + b"what is this\xff\xd9"
_AT = LARGE["jpeg"].index(b"\xff\xdb")
ODD = {  # good ones that something is odd about
    "filling-before-a-marker": LARGE["jpeg"][:_AT] + b"\xff\xff\xff" + LARGE["jpeg"][_AT:],
    "bytes-before-a-marker": LARGE["jpeg"][:_AT] + b"\0\0\0" + LARGE["jpeg"][_AT:],
    "filling-before-the-end": LARGE["jpeg"][:-2] + bytes(40) + b"\xff\xd9",
    "two-of-them": LARGE["jpeg"] + LARGE["jpeg"],
    "another-jfif": LARGE["jpeg"].replace(b"JFIF\0\1", b"JFIF\0\3", 1),
    "adobe-seven": b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\7" + LARGE["jpeg"][2:],
}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, bits: int = 8, colours: int = 2, data: bytes = b"", extra: bytes = b""
) -> bytes:
    """A PNG whose checksums are right, whatever its pixels are."""
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + body + chunk(b"IEND", b"")


def frames(format: str) -> bytes:
    return encoded(noise(), format, save_all=True, append_images=[Image.new("RGB", (32, 24))])


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def turned(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


PALETTE = noise().quantize(8)
BMP_HUGE = b"BM" + struct.pack("<IHHIIiiHHI", 100, 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0) + bytes(60)
FLOAT = Image.fromarray(np.ones((4, 4), np.float32))
GREY_16 = Image.fromarray(np.full((4, 4), 25_700, np.uint16))
LONG = "n" * 251

FILES: dict[str, tuple[bytes, tuple[str, ...] | str]] = {
    "plain.jpg": (JPEG, ()),
    "plain.webp": (WEBP, ()),
    "jpeg-cut.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "jpeg-only-its-end-is-missing.jpg": (JPEG[:-2], "truncated"),
    "jpeg-and-more.jpg": (JPEG + b"trailing \xff bytes", ()),
    "jpeg-head.jpg": (JPEG[:20], "not_an_image"),
    "png-cut.png": (PNG[: len(PNG) // 2], "truncated"),
    "jpeg-head-and-end.jpg": (closed(JPEG[:20], 1), "not_an_image"),
    "png-blank.png": (blank(PNG), "truncated"),
    "gif-blank.gif": (blank(GIF), "not_an_image"),
    "webp-cut-in-its-length.webp": (WEBP[:4] + struct.pack("<I", 92) + WEBP[8:100], "truncated"),
    "png-without-end.png": (PNG[:-12], ()),  # every pixel is there: Pillow reads it, and so do we
    "png-flipped-bit.png": (flipped(PNG, len(PNG) // 2), "truncated"),
    "webp-cut.webp": (WEBP[: len(WEBP) // 2], "truncated"),
    "gif-cut.gif": (GIF[: len(GIF) // 2], "truncated"),
    "empty.png": (b"", "not_an_image"),
    "bomb.png": (png(60_000, 60_000), "too_large"),
    "bomb.bmp": (BMP_HUGE, "too_large"),
    "sixteen-grey.png": (encoded(GREY_16, "PNG"), ("16_bit",)),
    "sixteen-colour.png": (png(2, 2, 16, data=bytes(2 * 13)), ("16_bit",)),
    "floats.tiff": (encoded(FLOAT, "TIFF"), "floating_point"),
    "inks.jpg": (encoded(noise(mode="CMYK"), "JPEG"), ("cmyk",)),
    "animated.gif": (frames("GIF"), ("animated",)),
    "animated.webp": (frames("WEBP"), ("animated",)),
    "animated.png": (frames("PNG"), ("animated",)),
    "really-a-jpeg.png": (JPEG, ("suffix",)),
    "page.jpg": (b"<html><script>alert(1)</script></html>", "not_an_image"),
    "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", "not_an_image"),
    "random.png": (bytes(np.random.default_rng(1).integers(0, 255, 999, np.uint8)), "not_an_image"),
    "exif-broken.jpg": (encoded(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), ()),
    "exif-turned.jpg": (encoded(noise(), "JPEG", exif=turned(6)), ("rotated",)),
    "exif-turned.png": (encoded(noise(), "PNG", exif=turned(8)), ("rotated",)),
    "exif-turned-nine.jpg": (encoded(noise(), "JPEG", exif=turned(9)), ()),
    "icc-broken.jpg": (encoded(noise(), "JPEG", icc_profile=b"no profile"), ("icc_broken",)),
    "icc-srgb.jpg": (
        encoded(
            noise(), "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        ),
        (),
    ),
    "icc-bomb.png": (
        png(2, 2, data=bytes(14), extra=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(60 << 20)))),
        "truncated",
    ),
    "palette.png": (encoded(PALETTE, "PNG", transparency=0), ("alpha",)),
    "glass.png": (encoded(noise(mode="RGBA"), "PNG"), ("alpha",)),
    "dot.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), ()),
    "line.png": (encoded(Image.new("L", (1, 65_000)), "PNG"), ()),
    "a b  c.jpg": (JPEG, ()),
    "v1.2.final.JPG": (JPEG, ()),
    "-rf.jpg": (JPEG, ()),
    "$(touch x);`touch y`&|.jpg": (JPEG, ()),
    "two\nlines.jpg": (JPEG, ()),
    os.fsdecode(b"not-utf8-\xff\xfe.jpg"): (JPEG, ()),
    "日本語.jpg": (JPEG, ()),
    f"{LONG}.jpg": (JPEG, ()),
    "json-list.jpg": (JPEG, "bad_caption"),
    "json-cut.jpg": (JPEG, "bad_caption"),
    "json-deep.jpg": (JPEG, "bad_caption"),
    "json-deep-enough.jpg": (JPEG, ()),
    "json-nan.jpg": (JPEG, ()),
    "json-surrogate.jpg": (JPEG, "bad_caption"),
    "json-captions.jpg": (JPEG, "captions"),
    "json-elsewhere.jpg": (JPEG, ()),
    "json-types.jpg": (JPEG, ()),
    "text-latin1.jpg": (JPEG, "bad_caption"),
}
BESIDE = {
    "json-list.json": b"[1, 2]",
    "json-cut.json": b'{"caption": "a c',
    "json-deep.json": b'{"a":' * 100_000,
    "json-deep-enough.json": b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
    "json-nan.json": b'{"caption": "a cat", "score": NaN, "scores": {"x": Infinity, "y": 1.5}}',
    "json-surrogate.json": b'{"caption": "half \\ud83d of a pair", "source": "\\ud800"}',
    "json-captions.json": b'{"captions": {"en": ["a cat"]}}',
    "json-elsewhere.json": b'{"image": "/etc/passwd", "key": "../../../escape", "caption": "x"}',
    "json-types.json": b'{"key": 7, "width": "wide", "score": "high", "scores": [1], "depth": 3, "source": []}',
    "text-latin1.txt": "großer Hund".encode("latin-1"),
}


def files(root: Path) -> Expected:
    """Write a folder of pictures, with links, pipes and folders among them."""
    outside = root / "outside"
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(JPEG)
    (outside / "secret.txt").write_text("a secret")
    folder = root / "photos"
    (folder / "empty folder").mkdir(parents=True)
    (folder / "folder.jpg").mkdir()
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data)
    for name, data in BESIDE.items():
        (folder / name).write_bytes(data)
    (folder / "folder.jpg" / "inner.jpg").write_bytes(JPEG)
    (folder / "linked-caption.jpg").write_bytes(JPEG)
    (folder / ".hidden.jpg").write_bytes(JPEG)
    links = {"inside.jpg": "plain.jpg", "out.jpg": "../outside/secret.jpg", "absolute.jpg": "/etc/hostname"}
    links |= {
        "dangling.jpg": "gone.jpg",
        "loop.jpg": "loop.jpg",
        "linked-caption.txt": "../outside/secret.txt",
    }
    links |= {"way-out": "../outside", "way-round": "."}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "pipe.jpg")
    expected = {f"photos/{name}": outcome for name, (_, outcome) in FILES.items()}
    expected |= {"photos/folder.jpg/inner.jpg": (), "photos/inside.jpg": (), "photos/pipe.jpg": "not_a_file"}
    expected |= {"photos/out.jpg": "outside", "photos/absolute.jpg": "outside"}
    expected |= {"photos/linked-caption.jpg": "outside"}
    return expected | {"photos/dangling.jpg": "missing", "photos/loop.jpg": "missing"}


SCHEMES = (
    "jupyter", "gist", "dbfs", "reference", "zip", "hdfs", "webhdfs", "github", "s3", "gs", "sftp", "smb", "git",
    "libarchive", "simplecache", "unknown", "S3",
)  # fmt: skip


def row_with(**values: object) -> dict:
    """Return a row of a good image, with other values."""
    return {"image": "../photos/plain.jpg"} | values


def rows(root: Path) -> Expected:
    """Write a file of rows that name what they should not; keys are numbers."""
    table: list[tuple[object, tuple[str, ...] | str]] = [
        ({"image": "../outside/secret.jpg"}, ()),  # a row may name any file of its author; nothing goes there
        ({"image": "../photos/plain.jpg", "name": "../../etc/cron.d/x"}, ()),
        ({"image": "x" * 300 + ".jpg"}, "missing"),
        ({"image": "nul\0byte.jpg"}, "missing"),
        ({"image": "../photos"}, "missing"),
        ({"image": "/dev/zero"}, "not_a_file"),
        ({"image": "http://127.0.0.1:9/x.jpg"}, "web"),
        ({"image": "zip://a::memory://b"}, "scheme"),
        ({"image": "memory://hostile/gone.jpg"}, "missing"),
        ({"image": "../photos/plain.jpg#x.png"}, "missing"),
        ({"image": "nowhere.tar#x.png"}, "missing"),
        ({"image": 7}, "no_image"),
        ({"image": ["a.jpg"]}, "no_image"),
        ({"image": {"path": "a.jpg"}}, "no_image"),
        ({"image": " "}, "bad_row"),
        ({"img": "a.jpg"}, "bad_row"),
        ({"image": "../photos/plain.jpg", "captions": "a cat"}, "captions"),
        ({"image": "../photos/plain.jpg", "captions": {"en": {"short": 5}}}, "captions"),
        ({"image": "../photos/plain.jpg", "depth": "../photos/x.tar#y", "score": 10**200}, "missing"),
        (b'{"key": "row19", "image": "../photos/plain.jpg", "score": NaN}', ()),
        (b"[1, 2, 3]", "bad_row"),
        (b'{"image": ', "bad_row"),
        (b'{"a":' * 50_000, "bad_row"),
        (b'{"image": "\xff\xfe.jpg"}', "bad_row"),
        *((row_with(image=f"{scheme}://127.0.0.1:9/x.png"), "scheme") for scheme in SCHEMES),
        (row_with(depth="webhdfs://127.0.0.1:9/x.tar#y"), "scheme"),
        (row_with(masks="s3://bucket/000000.tar#y"), "scheme"),
        (row_with(image="https://host/000000.tar#y.png"), "web"),
        (row_with(image="jupyter:x"), "missing"),
        (b'{"image": "../photos/plain.jpg", "score": ' + b"9" * 4000 + b"}", "bad_row"),
        (b'{"image": "../photos/plain.jpg", "score": ' + b"9" * 5000 + b"}", "bad_row"),
        (b'{"image": "../photos/plain.jpg", "x": [[-' + b"9" * 301 + b"]]}", "bad_row"),
        (b'{"image": "../photos/plain.jpg", "x": ' + b"[" * 256 + b"]" * 256 + b"}", "bad_row"),
        (b'{"image": "../photos/plain.jpg", "x": ' + b"[" * 900 + b"]" * 900 + b"}", "bad_row"),
        (b'{"image": "../photos/plain.jpg", "x": "' + b"a" * (17 << 20) + b'"}', "bad_row"),
        (row_with(caption="half \ud83d of a pair"), "bad_caption"),
        (row_with(captions={"en": {"short": "\udc80"}}), "bad_caption"),
    ]
    (root / "lists").mkdir()
    expected = {}
    with (root / "lists" / "rows.jsonl").open("wb") as file:
        for number, (row, outcome) in enumerate(table):
            line = row if isinstance(row, bytes) else json.dumps({"key": f"row{number}"} | row).encode()
            file.write(line + b"\n")
            expected[f"row {number}"] = outcome
    return expected


def add(
    archive: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    archive.addfile(info, io.BytesIO(data))


def tars(root: Path) -> Expected:
    """Write a folder of tars of another tool: whole but hostile, cut off, lying, and none at all."""
    folder = root / "tars"
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in (
            "/etc/absolute.png",
            "../../up.png",
            "./dotted.png",
            "x" * 300 + ".png",
            "new\nline.png",
        ):
            add(archive, name, PNG)
        add(archive, "link.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add(archive, "hard.png", kind=tarfile.LNKTYPE, link="../../up.png")
        add(archive, "device.png", kind=tarfile.CHRTYPE)
        add(archive, "fifo.png", kind=tarfile.FIFOTYPE)
        add(archive, "folder.png", kind=tarfile.DIRTYPE)
        add(archive, "broken.jpg", b"\xff\xd8 no picture")
        for name, text in {"deep": b'{"a":' * 50_000, "list": b"[1]", "good": b'{"caption": "fine"}'}.items():
            add(archive, f"{name}.png", PNG)
            add(archive, f"{name}.json", text)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        add(archive, "first.png", PNG)
        add(archive, "second.png", PNG)
    start = whole.getvalue()[: 512 + len(PNG) + -len(PNG) % 512]
    (folder / "cut.tar").write_bytes(start + whole.getvalue()[len(start) : len(start) + 600])
    huge = tarfile.TarInfo("huge.png")
    huge.size = 1 << 62
    (folder / "lies.tar").write_bytes(start + huge.tobuf(tarfile.GNU_FORMAT) + PNG)
    (folder / "nothing.tar").write_bytes(b"")
    (folder / "text.tar").write_bytes(b"no tar at all\n" * 99)
    a: Expected = dict.fromkeys(("/etc/absolute", "../../up", "./dotted", "x" * 300, "new\nline", "good"), ())
    a |= {"broken": "not_an_image", "deep": "bad_json", "list": "bad_json"}
    expected: Expected = {f"a.tar {key}": outcome for key, outcome in a.items()}
    expected |= {f"{name}.tar": "bad_tar" for name in ("cut", "lies", "nothing", "text")}
    return expected | {"cut.tar first": (), "lies.tar first": ()}
