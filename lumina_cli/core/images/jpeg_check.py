"""Whether all of a JPEG is there, by decoding it with a reader that hides nothing.

Pillow fills what is missing of a JPEG with grey and says nothing. libjpeg knows better, and simplejpeg passes
on what it says. An eighth of the picture's size is enough: every bit of the data is read for that, too.
"""

import re

import simplejpeg

_DAMAGE = re.compile(r"(Corrupt JPEG data: |(?=Premature end))(.*)")
_BEYOND = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a length
_TALK = frozenset((*range(0xE0, 0xF0), 0xFE))  # segments that say nothing about how to decode


def find_fault(data: bytes) -> str | None:
    """Return what is wrong with the data of a JPEG file in a few words; None where nothing is.

    None for other files, too, and for the kinds of JPEG that simplejpeg does not read. What follows the end
    marker, filling before it and oddities of the segments before the data are no faults.
    """
    if data[:2] != b"\xff\xd8":
        return None
    bare, inks = _bare(data)
    try:
        simplejpeg.decode_jpeg(
            bare, "CMYK" if inks == 4 else "GRAY", min_height=1, min_width=1, min_factor=8, strict=True
        )
    except ValueError as error:
        found = _DAMAGE.match(str(error))
        return None if found is None or _is_filling(bare, found[2]) else found[2].strip()
    return None


def _is_filling(data: bytes, fault: str) -> bool:
    """Whether what is left over before the end marker is one byte repeated, as some cameras write it."""
    found = _BEYOND.match(fault)
    end = data.rfind(b"\xff\xd9")
    return bool(found) and len(set(data[end - int(found[1]) : end])) == 1


def _bare(data: bytes) -> tuple[bytes, int]:
    """Return a JPEG with nothing before its data but what decoding needs, and its number of inks."""
    kept, at, inks = [b"\xff\xd8"], 2, 3
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF:  # filling, or bytes between segments
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
            inks = data[at + 9] if at + 9 < len(data) else 3
        if kind not in _TALK:
            kept.append(data[at:end])
        at = max(end, at + 4)
    return b"".join([*kept, data[at:]]), inks
