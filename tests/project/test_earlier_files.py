"""Files that version 2ec6820 wrote are still read: shards, overlays, a selection, captions, an image's settings.

`tests/golden/earlier` was written by that version with `lumina shard nano:3 scenes --per-shard 2`, `score`, `overlay`,
`select`, `sample "a red ball" --model nano --steps 1 --size 64x64` and `caption scenes --engine noop`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EARLIER = Path(__file__).parents[1] / "golden" / "earlier"


@pytest.fixture
def earlier(tmp_path, monkeypatch) -> Path:
    """Return a copy of the files, in the current directory."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shards_and_overlays_are_read(earlier, lumina):
    code, rows, _ = lumina("shard verify scenes")
    assert (code, [row["ok"] for row in rows]) == (0, [True] * 4)
    samples = lumina("shard cat scenes")[1]
    assert [sample["key"] for sample in samples] == [f"nano-0-00000{n}" for n in range(3)]
    assert samples[1]["captions"]["en"]["short"] == "an own caption"
    assert all({"sharpness", "entropy"} <= set(sample["scores"]) for sample in samples)
    assert lumina("shard stats scenes")[1][0]["samples"] == 3


def test_a_selection_is_read_and_can_be_narrowed(earlier, lumina):
    best = lumina("shard cat best")[1]
    assert len(best) == 2
    assert lumina("shard select best one --best 1 --by sharpness")[0] == 0
    one = lumina("shard cat one")[1][0]
    assert one["scores"]["sharpness"] == max(sample["scores"]["sharpness"] for sample in best)


def test_a_folder_of_shards_grows(earlier, lumina):
    old = (earlier / "scenes/000000.tar").read_bytes()
    code, _, err = lumina("shard nano:5 scenes --per-shard 2")
    assert code == 0, err
    assert (earlier / "scenes/000000.tar").read_bytes() == old
    assert "the overlays of scenes (captions, scores) keep the values of unchanged images" in err
    assert len(lumina("shard cat 'scenes?overlay='")[1]) == 5
    code, rows, err = lumina("shard cat scenes")
    assert (code, ["scores" in row for row in rows]) == (0, [True] * 3 + [False] * 2), err
    assert "3 of 5 samples of scenes have no values of" in err


def test_a_finished_caption_file_is_not_written_again(earlier, lumina):
    before = (earlier / "rows.jsonl").read_bytes()
    code, rows, err = lumina("caption scenes --engine noop --levels short --out rows.jsonl")
    assert (code, rows[0]["captions"]) == (0, 0), err
    assert (earlier / "rows.jsonl").read_bytes() == before
    assert all(json.loads(line)["captions"] for line in before.splitlines())


@pytest.mark.slow
def test_an_image_is_generated_again_from_its_settings(earlier, lumina):
    code, rows, err = lumina("sample --from ball.png --out again")
    assert code == 0, err
    first, again = (np.asarray(Image.open(path), np.int16) for path in ("ball.png", rows[0]["image"]))
    assert first.shape == (64, 64, 3)
    assert abs(first - again).max() <= 2  # other processors round differently
