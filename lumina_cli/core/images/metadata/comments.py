"""Text of EXIF user comments: programs write several encodings after one and the same mark."""

_MARKS = {b"UNICODE\0": "utf-16-be", b"ASCII\0\0\0": None, b"JIS\0\0\0\0\0": "iso2022_jp", bytes(8): None}
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
# Latin, Greek and Cyrillic; punctuation; kana; Chinese characters; Hangul; full-width forms
_COMMON = (
    (0x09, 0x24F),
    (0x370, 0x52F),
    (0x2010, 0x2040),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0xFF01, 0xFF65),
)


def decode_comment(data: bytes | str | None) -> str | None:
    """Return the text of an EXIF user comment, or of any other field of text.

    The comment begins with eight bytes that name its encoding. Programs write UTF-16 in both byte orders
    after "UNICODE", with or without a byte order mark, or UTF-8; so the content decides.
    """
    if not isinstance(data, bytes):
        return data
    mark = data[:8].upper()
    claimed, body = (_MARKS[mark], data[8:]) if mark in _MARKS else (None, data)
    for order, encoding in _BYTE_ORDER_MARKS.items():
        if body.startswith(order):
            return body[len(order) :].decode(encoding, "replace").strip("\0")
    encoding = claimed if claimed == "iso2022_jp" else _detect(body, claimed)
    return body.decode(encoding, "replace").strip("\0")


def _detect(body: bytes, claimed: str | None) -> str:
    """Return the encoding of text without a byte order mark."""
    text = body.strip(b"\0")
    if 0 not in text and (claimed is None or _is_utf8(text)):
        return "utf-8" if _is_utf8(text) else "latin-1"
    return max(("utf-16-be", "utf-16-le"), key=lambda code: _plausibility(body, code))


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _plausibility(body: bytes, encoding: str) -> int:
    """Return how much of a text is ASCII, or of a common script; in the wrong byte order, little is."""
    text = body.decode(encoding, "replace")
    common = sum(any(low <= ord(letter) <= high for low, high in _COMMON) for letter in text)
    return common - 2 * (len(text) - common) + sum(" " <= letter <= "~" for letter in text)
