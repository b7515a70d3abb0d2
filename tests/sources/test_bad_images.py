"""Unreadable images of shards: `score` and `encode` report and record them, and exit with 3 if there are many."""

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.curation.scores import score_shards
from lumina_cli.core.dataset.precomputed import PrecomputedLatents
from lumina_cli.core.errors import LuminaError, TooManyRejects
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.reader import newest_version
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.sources.source import read_source

COUNT, BAD = 20, (1, 2, 5, 7, 11, 13, 17)


@pytest.fixture
def shards(tmp_path) -> str:
    """Shards with seven damaged images that pass `--check quick`."""
    return packed(tmp_path / "s", BAD)


def packed(dest, bad: tuple[int, ...]) -> str:
    rows = []
    for i in range(COUNT):
        noise = np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)
        file = BytesIO()
        Image.fromarray(noise).save(file, "JPEG", quality=90)
        data = bytearray(file.getvalue())
        if i in bad:
            data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
        rows.append(
            {"key": f"k{i:02d}", "image": bytes(data), "captions": {"en": {"short": f"noise number {i}"}}}
        )
    assert sum(row["samples"] for row in write_shards(rows, dest, per_shard=8)) == COUNT
    return str(dest)


VERBS = {
    "score": (["--scores", "entropy"], "measured", "scores"),
    "encode": (["--size", "64", "--size", "128"], "encoded", "latents-64"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_unreadable_images_are_reported_recorded_and_reported_again(shards, tiny_folder, capsys, verb):
    words, done, overlay = VERBS[verb]
    words = [*words, "--model", str(tiny_folder)] if verb == "encode" else words
    for counts in ({done: 13, "reused": 0, "unreadable": 7}, {done: 0, "reused": 13, "unreadable": 7}):
        assert run(["shard", verb, shards, *words]) == 3
        out, err = capsys.readouterr()
        rows = [json.loads(line) for line in out.splitlines()][:3]
        assert {name: sum(row[name] for row in rows) for name in counts} == counts
        messages = err.splitlines()
        assert [line.split(" cannot be read: ")[0] for line in messages[:5]] == [
            f"{shards}/00000{i // 8}.tar: the image of k{i:02d}" for i in BAD[:5]
        ]
        assert all(line.split(": ")[-1].startswith("damaged") for line in messages[:5])
        assert len(messages) == 6
        assert "7 of 20 images cannot be read, more than --max-bad-rate allows; " in messages[5]
    assert run(["shard", verb, shards, *words, "--max-bad-rate", "0.4"]) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    folder = newest_version(shards, overlay).folder
    assert last == f"7 of 20 images cannot be read; 'unreadable' in {folder}/*.index.jsonl lists them"
    lines = b"".join(filesystem.read_file(f"{folder}/00000{i}.index.jsonl") for i in range(3)).splitlines()
    assert [
        row["key"] for row in map(json.loads, lines) if row.get("unreadable", "").startswith("damaged")
    ] == [f"k{i:02d}" for i in BAD]
    assert run(["shard", "verify", shards]) == 0


def test_another_score_tries_them_again_and_workers_report_the_same(shards, tmp_path, capsys):
    list(score_shards(shards, ["entropy"]))
    said = []
    rows = list(score_shards(shards, ["entropy", "sharpness"], notify=said.append, workers=2))
    assert [(row["measured"], row["unreadable"]) for row in rows] == [(4, 4), (6, 2), (3, 1)]
    assert len(said) == 6
    again = list(
        score_shards(shards, ["caption"])
    )  # opens no image, and keeps the record of the unreadable ones
    assert [(row["measured"], row["unreadable"]) for row in again] == [(0, 4), (0, 2), (0, 1)]
    with pytest.raises(TooManyRejects, match="7 of 20 images"):
        list(score_shards(shards, ["caption"], max_bad_rate=0.3))


def test_readable_images_cause_no_messages(tmp_path, capsys):
    whole = packed(tmp_path / "whole", ())
    assert run(["shard", "score", whole, "--scores", "entropy"]) == 0
    assert capsys.readouterr().err == ""


def test_unreadable_images_have_no_latents(shards, tiny_folder, tmp_path):
    from lumina_cli.core.dataset.precompute import encode_shards

    list(encode_shards(shards, tiny_folder, ["latents"], [64]))
    found = PrecomputedLatents(tiny_folder, [64])
    known = [bool(found(row)) for row in read_source(shards)]
    assert known == [i not in BAD for i in range(COUNT)]


def test_a_storage_error_is_not_recorded_as_an_unreadable_image(shards, monkeypatch):
    def refused(place, offset, length):
        raise filesystem.Unreachable(f"{place} cannot be read (timed out)")

    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "read_part", refused)
        with pytest.raises(LuminaError, match="timed out"):
            list(score_shards(shards, ["entropy"]))
    assert sum(row["measured"] for row in score_shards(shards, ["entropy"])) == COUNT - len(BAD)
