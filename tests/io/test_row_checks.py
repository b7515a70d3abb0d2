"""Values of rows: seeds, texts, and lines beyond the limits, in JSONL and CSV alike."""

import io
import json
import tracemalloc

import pytest

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.jsonl import read_rows
from lumina_cli.core.io.row_checks import LongLine, bounded_lines
from lumina_cli.core.limits import MAX_ROW


def row_of(path):
    (row,) = read_rows(path, key="prompt")
    return row


@pytest.mark.parametrize(
    ("seed", "wanted"),
    [
        (None, "absent"), ("", "absent"), (" ", "absent"), (7, 7), (7.0, 7), ("7", 7), ("7.0", 7), (" -3 ", -3),
        (1e3, 1000), (2**64 - 1, 2**64 - 1), (0, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_seeds_of_rows_become_integers(tmp_path, seed, wanted, suffix):
    path = tmp_path / f"prompts{suffix}"
    if suffix == ".csv":
        path.write_text(f"prompt,seed\na red ball,{'' if seed is None else seed}\n")
    else:
        path.write_text(json.dumps({"prompt": "a red ball", "seed": seed}) + "\n")
    assert row_of(path).get("seed", "absent") == wanted


@pytest.mark.parametrize("seed", ["seven", "7.5", "9" * 5000, "1e999", "0x7", "inf", str(2**64), "nan"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_other_seeds_are_refused(tmp_path, seed, suffix):
    path = tmp_path / f"prompts{suffix}"
    quoted = f"prompt,seed\na red ball,{seed}\n" if suffix == ".csv" else ""
    path.write_text(quoted or json.dumps({"prompt": "a red ball", "seed": seed}) + "\n")
    with pytest.raises(LuminaError, match=r"'seed' is '.*', but must") as caught:
        row_of(path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("seed", [True, 7.5, [7], {"a": 1}, float("nan"), 2**64, 10**299])
def test_seeds_of_other_types_are_refused(tmp_path, seed):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a red ball", "seed": seed}) + "\n")
    with pytest.raises(LuminaError, match=r"prompts\.jsonl line 1: 'seed' is .*, but must"):
        row_of(path)


@pytest.mark.parametrize(
    "line",
    [
        r'{"prompt": "half \ud83d"}',
        r'{"prompt": "a ball", "negative": "\udc00 pair"}',
        r'{"prompt": "\ud83d \ude00"}',
        r'{"prompt": "a ball", "captions": {"en": {"short": "caf\udce9"}}}',
    ],
)
def test_text_that_utf8_cannot_hold_is_refused(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(LuminaError, match=r"line 1: .* is not valid UTF-8 text"):
        row_of(path)


def test_a_whole_surrogate_pair_is_text(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(r'{"prompt": "a ball \ud83d\ude00"}' + "\n")
    assert row_of(path)["prompt"] == "a ball \N{GRINNING FACE}"


def test_other_empty_values_of_a_prompt(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a ball", "negative": null, "size": ""}\n')
    assert row_of(path) == {"prompt": "a ball", "negative": None}
    for value in ('""', "null", '"  "', "7", '["a"]'):
        path.write_text(f'{{"prompt": {value}}}\n')
        with pytest.raises(LuminaError, match=r"line 1: 'prompt' is"):
            row_of(path)


def stream(kind: str, text: str):
    return io.StringIO(text) if kind == "text" else io.BytesIO(text.encode())


@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_a_line_beyond_the_limit_is_skipped(kind, monkeypatch):
    monkeypatch.setattr("lumina_cli.core.io.row_checks.MAX_ROW", 20)
    found = list(
        bounded_lines(stream(kind, "a" * 20 + "\n" + "b" * 21 + "\n" + "c" * 90 + "\nd\n" + "e" * 21))
    )
    assert [isinstance(line, LongLine) for line in found] == [True, True, True, False, True]
    assert found[3] in ("d\n", b"d\n")


def test_a_line_of_a_hundred_megabytes_is_not_held_in_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"image": "a.png", "x": "')
        for _ in range(100):
            file.write(b"a" * 1_000_000)
        file.write(b'"}\n')
    tracemalloc.start()
    with pytest.raises(LuminaError, match=r"line 1 is longer than 16 MiB, the limit of a row"):
        list(read_rows(path, key="image"))
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_ROW
    tracemalloc.stop()
