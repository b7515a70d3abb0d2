"""Real photographs pass through the whole pipeline: captions, shards, scores, a selection, pages, training, scores.

The photographs are samples that scikit-image and scikit-learn ship: PNG and JPEG, grey, RGB and RGBA, 128 to 1411 pixels.
"""

import json
import os
import shutil
from importlib.metadata import files
from pathlib import Path

import pytest
from local_endpoint import Endpoint, said

from lumina_cli.core.registry import ASSETS

PHOTOGRAPHS = {
    "scikit-image": ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
                     "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg", "logo.png"),
    "scikit-learn": ("china.jpg", "flower.jpg"),
}  # fmt: skip
COUNT = sum(map(len, PHOTOGRAPHS.values()))
CAPTION = "A photograph of a scene with one clear subject in the middle, lit from the left side"
RECIPE = """\
data: best
stages:
  hq: {size: 128, steps: 2, batch: 4, lr: 1.0e-4}
"""


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Return a folder with the photographs, in the current directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for package, names in PHOTOGRAPHS.items():
        for path in files(package):
            if path.name in names and path.parent.name in ("data", "images"):
                shutil.copy(path.locate(), folder / path.name)
    assert len(os.listdir(folder)) == COUNT
    return folder


@pytest.fixture
def endpoint():
    """A captioning server that answers every question with a sentence about a photograph."""
    server = Endpoint(lambda number, request: (200, said(f"{CAPTION}.")))
    yield server
    server.close()


@pytest.mark.slow
def test_photographs_from_files_to_scores(photos, endpoint, lumina, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    engine = f"--engine openai --endpoint {endpoint.url} --model photos"
    code, _, err = lumina(f"caption photos {engine} --levels short --langs en --out rows.jsonl")
    assert code == 0, err
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert len(rows) == COUNT
    assert {row["captions"]["en"]["short"].rstrip(".") for row in rows} == {CAPTION}
    assert {Path(row["image"]).name for row in rows} == set(os.listdir(photos))

    code, shards, err = lumina("shard rows.jsonl data --per-shard 8")
    assert (code, [shard["samples"] for shard in shards]) == (0, [8, COUNT - 8]), err
    assert not Path("data/rejects.jsonl").exists()
    assert lumina("shard score data --scores sharpness,entropy,phash")[0] == 0
    code, _, err = lumina("shard select data best --where 'shorter >= 300' --best 8 --by entropy")
    assert code == 0, err
    samples = lumina("shard cat best")[1]
    assert len(samples) == 8
    assert all(min(sample["width"], sample["height"]) >= 300 for sample in samples)

    code, stats, err = lumina("shard stats best --page stats.html")
    assert (code, stats[0]["samples"]) == (0, 8), err
    assert lumina("shard preview best --by sharpness --page preview.html")[0] == 0
    assert Path("stats.html").stat().st_size > 10_000
    assert Path("preview.html").stat().st_size > 10_000

    Path("photos.yaml").write_text(RECIPE)
    code, metrics, err = lumina(f"train photos.yaml model={ASSETS / 'nano'} out=run compile=false")
    assert code == 0, err
    assert metrics[-1]["step"] == 2
    assert Path("run/model/transformer").is_dir()

    for number, name in enumerate(("astronaut.png", "china.jpg")):
        samples = Path(f"images/{number:05d}/samples")
        samples.mkdir(parents=True)
        shutil.copy(photos / name, samples / f"0000{Path(name).suffix}")
        row = {
            "tag": "single_object",
            "include": [{"class": "car", "count": 1}],
            "prompt": "a photo of a car",
        }
        (samples.parent / "metadata.jsonl").write_text(json.dumps(row))
    code, scores, err = lumina("eval geneval --images images --out scores")
    assert code == 0, err
    assert [row["correct"] for row in scores[:2]] == [False, False]
    assert scores[2]["overall"] == 0
