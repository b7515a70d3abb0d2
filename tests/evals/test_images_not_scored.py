"""`lumina eval --images`: images of every format are scored, and other files are counted in one note."""

import json

from PIL import Image

from lumina_cli.core.evals.geneval.rules import GenEval
from lumina_cli.core.evals.judges.nano import NanoJudge
from lumina_cli.core.evals.run import Evaluation


def test_files_that_are_not_scored_are_counted(tmp_path):
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    row = {"prompt": "a red ball", "tag": "single_object", "include": [{"class": "ball", "count": 1}]}
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(row))
    for name in ("00000.png", "00001.jpg", "00002.WEBP", "grid.png"):
        Image.new("RGB", (32, 32)).save(samples / name)
    (samples / "00003.heic").write_bytes(b"x")
    notes = []
    evaluation = Evaluation(GenEval(), NanoJudge())
    evaluation.use_images(tmp_path, notes.append)
    assert [path.name for path, _ in evaluation.images] == ["00000.png", "00001.jpg", "00002.WEBP"]
    assert notes == [
        f"{tmp_path}: not scored: 2 images that cannot be used (1 .heic, 1 not named by a number; convert them to "
        "JPEG or PNG)"
    ]
