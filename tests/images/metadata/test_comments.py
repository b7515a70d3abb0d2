"""EXIF user comments are decoded in the encoding that they have, not the one that they claim."""

import pytest

from lumina_cli.core.images.metadata.comments import decode_comment

TEXTS = (
    "a red car\nSteps: 20, Seed: 7",
    "ein grüner Würfel\nSteps: 20, Seed: 7",
    "一个红色的球，在蓝色杯子的左边\nSteps: 20, Seed: 7",
    "一个红色的球",
    "красный шар",
)
MARK = b"UNICODE\0"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
        lambda text: text.encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: text.encode() + b"\0\0",
        lambda text: text.encode("utf-16-le") + b"\0\0",
    ],
    ids=["be", "le", "be-bom", "le-bom", "utf-8", "utf-8-bom", "utf-8-nul", "le-nul"],
)
def test_unicode_comments_in_any_encoding(text, encode):
    assert decode_comment(MARK + encode(text)) == text


@pytest.mark.parametrize("mark", [b"", b"ASCII\0\0\0", bytes(8), b"Unicode\0"])
@pytest.mark.parametrize("text", TEXTS)
def test_comments_with_other_marks_are_utf_8(mark, text):
    assert decode_comment(mark + text.encode()) == text


def test_other_comments():
    assert decode_comment(b"ASCII\0\0\0gr\xfcn") == "grün"
    assert decode_comment(b"JIS\0\0\0\0\0" + "赤い車".encode("iso2022_jp")) == "赤い車"
    assert decode_comment(b"UNICODE\0") == ""
    assert decode_comment(b"UNICODE\0a") == "a"
    assert decode_comment(None) is None
    assert decode_comment("as it is") == "as it is"
