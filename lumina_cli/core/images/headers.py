"""Headers of JPEG, PNG and WebP files: size, color profile and completeness, without decoding.

Sources: ITU-T T.81 (JPEG), W3C PNG third edition, RFC 9649 (WebP).
"""

import struct
import zlib
from dataclasses import dataclass, field

_FRAMES = frozenset((0xC0, 0xC1, 0xC2))  # JPEG frames that Pillow decodes: baseline, extended, progressive
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SPACES = {0: "GRAY", 4: "GRAY"}  # color type -> color space; all others are RGB
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_SHORT = 1 << 10  # bytes of a compressed text; only Pillow judges longer ones
MAX_SCANS = 1000  # progressive files have about ten; each takes as long to decode as the whole image
MAX_PARTS = 100_000  # segments of a JPEG before its first scan, chunks of a PNG
_MOST = 1 << 20  # bytes of anything unpacked; Pillow refuses a PNG beyond


@dataclass
class ImageHeader:
    """The header of an image file.

    format         Pillow's name of the format
    width, height  in pixels, as stored, before rotation
    space          the color space that a profile must have: "RGB ", "GRAY" or "CMYK"
    profile        the embedded ICC profile
    turned         whether the file holds metadata that may contain an orientation
    notes          keys of NOTES (images/ingest.py)
    """

    format: str
    width: int = 0
    height: int = 0
    space: str = "RGB "
    profile: bytes | None = None
    turned: bool = False
    notes: set[str] = field(default_factory=set)


def read_header(data: bytes) -> ImageHeader | None:
    """Return the header of a complete JPEG, PNG or WebP file; None if truncated or of another format.

    Complete means: the scan of a JPEG is followed by an end marker, every chunk of a PNG up to IEND has a
    valid checksum, and every chunk of a WebP has its full length. Other damage is not detected: changed or
    missing bytes inside a JPEG scan need a strict decoder (images/jpeg_check.py), and those of a lossy WebP
    cannot be detected.
    """
    try:
        if data[:2] == b"\xff\xd8":
            head = _jpeg(data)
        elif data[:8] == _SIGNATURE:
            head = _png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            head = _webp(data)
        else:
            return None
    except (struct.error, IndexError, zlib.error):
        return None
    return head if head and head.width and head.height else None


def find_excess(data: bytes) -> str | None:
    """Return what a JPEG or PNG file has far too many of, so that decoding would take minutes; else None."""
    if data[:2] == b"\xff\xd8":
        if data.count(b"\xff\xda") > MAX_SCANS:
            return f"{MAX_SCANS} scans"
        return f"{MAX_PARTS} segments" if _has_many_segments(data) else None
    return f"{MAX_PARTS} chunks" if data[:8] == _SIGNATURE and _has_many_chunks(data) else None


def _has_many_segments(data: bytes) -> bool:
    """Whether a JPEG has more than MAX_PARTS segments, padding or stray bytes before its first scan."""
    at = 2
    for _ in range(MAX_PARTS):
        if at + 4 > len(data) or (data[at] == 0xFF and data[at + 1] in (0xD9, 0xDA)):
            return False
        kind = data[at + 1]
        if data[at] != 0xFF or kind == 0xFF:
            at += 1
        else:
            at += 2 if kind in _BARE else 2 + max(2, data[at + 2] << 8 | data[at + 3])
    return True


def _has_many_chunks(data: bytes) -> bool:
    at = 8
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _jpeg(data: bytes) -> ImageHeader | None:
    head, at, profile = ImageHeader("JPEG"), 2, {}
    while True:
        if data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if kind == 0xFF:  # padding
            at += 1
            continue
        if kind in _BARE:
            at += 2
            continue
        length = data[at + 2] << 8 | data[at + 3]
        if length < 2 or kind == 0xD9:
            return None
        if kind in _FRAMES:
            bits, head.height, head.width, parts = struct.unpack_from(">BHHB", data, at + 4)
            if bits != 8 or parts not in (1, 3, 4):
                return None
            head.space = {1: "GRAY", 3: "RGB ", 4: "CMYK"}[parts]
            if parts == 4:
                head.notes.add("cmyk")
        elif kind == 0xE1:
            start = data[at + 4 : at + 33]
            head.turned |= start.startswith((b"Exif\0", b"http://ns.adobe.com/xap/1.0/"))
        elif kind == 0xE2 and data[at + 4 : at + 16] == b"ICC_PROFILE\0":
            profile[data[at + 16]] = data[at + 18 : at + 2 + length]
        elif kind == 0xDA:
            break
        at += 2 + length
    if profile:
        head.profile = b"".join(profile[number] for number in sorted(profile))
    return head if data.rfind(b"\xff\xd9", at) > at else None


def _png(data: bytes) -> ImageHeader | None:
    head, at, view = ImageHeader("PNG"), 8, memoryview(data)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return None
        if kind == b"IHDR":
            head.width, head.height, bits, colours = struct.unpack_from(">IIBB", data, at + 8)
            head.space = _PNG_SPACES.get(colours, "RGB ")
            head.notes |= ({"16_bit"} if bits == 16 else set()) | ({"alpha"} if colours in (4, 6) else set())
        elif kind == b"IEND":
            return head
        elif kind != b"IDAT":
            _png_extra(head, kind, data[at + 8 : end])
        at = end + 4


def _png_extra(head: ImageHeader, kind: bytes, body: bytes) -> None:
    if kind == b"tRNS":
        head.notes.add("alpha")
    elif kind == b"acTL" and struct.unpack_from(">I", body)[0] > 1:
        head.notes.add("animated")
    elif kind == b"iCCP":
        packed = body.partition(b"\0")[2][1:]
        head.profile = zlib.decompressobj().decompress(packed, _MOST + 1)
        if len(head.profile) > _MOST:
            raise zlib.error("too large for a profile")
    elif kind in _TEXTS[1:] and len(body) > _SHORT:
        raise zlib.error("a long compressed text, left to Pillow")
    elif kind == b"eXIf" or (kind in _TEXTS and body.startswith((b"Raw profile type", b"XML:com.adobe.xmp"))):
        head.turned = True


def _webp(data: bytes) -> ImageHeader | None:
    whole = 8 + struct.unpack_from("<I", data, 4)[0]
    if whole > len(data):
        return None
    head, at = ImageHeader("WEBP"), 12
    while at + 8 <= whole:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if body + length > whole:
            return None
        if kind == b"VP8X":
            flags = data[body]
            head.notes |= ({"alpha"} if flags & 0x10 else set()) | ({"animated"} if flags & 0x02 else set())
            head.turned = bool(flags & 0x0C)
            head.width = 1 + int.from_bytes(data[body + 4 : body + 7], "little")
            head.height = 1 + int.from_bytes(data[body + 7 : body + 10], "little")
        elif kind == b"VP8 " and not head.width:
            if data[body + 3 : body + 6] != b"\x9d\x01\x2a":
                return None
            width, height = struct.unpack_from("<HH", data, body + 6)
            head.width, head.height = width & 0x3FFF, height & 0x3FFF
        elif kind == b"VP8L" and not head.width:
            packed = struct.unpack_from("<I", data, body + 1)[0]
            head.width, head.height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
            head.notes |= {"alpha"} if packed >> 28 & 1 else set()
        elif kind == b"ICCP":
            head.profile = data[body : body + length]
        at = body + length + (length & 1)
    return head
