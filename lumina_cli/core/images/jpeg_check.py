"""Detection of damaged JPEGs by decoding them with libjpeg in strict mode.

Pillow fills missing parts of a JPEG with grey without an error. libjpeg reports them, and simplejpeg passes
its warnings on. Decoding at an eighth of the size suffices, because it still reads all of the entropy-coded
data.
"""

import re

import simplejpeg

_DAMAGE = re.compile(r"(Corrupt JPEG data: |(?=Premature end))(.*)")
_BEYOND = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_METADATA = frozenset((*range(0xE0, 0xF0), 0xFE))  # segments that decoding does not need


def find_fault(data: bytes) -> str | None:
    """Return a short description of what is wrong with the data of a JPEG file, or None.

    Other files, and JPEG variants that simplejpeg does not support, give None, too. Bytes after the end
    marker, padding before it and oddities of the segments before the image data are not faults.
    """
    if data[:2] != b"\xff\xd8":
        return None
    bare, components = _bare(data)
    try:
        simplejpeg.decode_jpeg(
            bare, "CMYK" if components == 4 else "GRAY", min_height=1, min_width=1, min_factor=8, strict=True
        )
    except ValueError as error:
        found = _DAMAGE.match(str(error))
        return None if found is None or _is_filling(bare, found[2]) else found[2].strip()
    return None


def _is_filling(data: bytes, fault: str) -> bool:
    """Whether the bytes left over before the end marker repeat one value, as some cameras write them."""
    found = _BEYOND.match(fault)
    end = data.rfind(b"\xff\xd9")
    return bool(found) and len(set(data[end - int(found[1]) : end])) == 1


def _bare(data: bytes) -> tuple[bytes, int]:
    """Return a JPEG without the segments that decoding does not need, and its number of color components."""
    kept, at, components = [b"\xff\xd8"], 2, 3
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:  # padding, or stray bytes between segments
            at += 1
            continue
        kind = data[at + 1]
        if kind in _BARE or not kind:
            at += 2
            continue
        if kind == 0xDA:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if 0xC0 <= kind <= 0xC2:
            components = data[at + 9] if at + 9 < len(data) else 3
        if kind not in _METADATA:
            kept.append(data[at:end])
        at = max(end, at + 4)
    return b"".join([*kept, data[at:]]), components
