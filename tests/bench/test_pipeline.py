"""`lumina bench sample`: both sides generate whole images, uncached in each round."""

import json

import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.bench.pipeline import compare_pipelines
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.text_cache import TextCache


@pytest.mark.slow
def test_both_sides_generate_and_cache_nothing_between_rounds(tiny_folder, monkeypatch):
    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    pipe, ours, theirs = load_pipeline(tiny_folder), [], []
    pipe.text_cache = TextCache(lambda texts: ours.extend(texts) or pipe.text.encode(texts))
    call = Lumina2Pipeline.__call__

    def counted(self, prompt, **settings):
        theirs.append((prompt, settings["num_inference_steps"], settings["width"]))
        return call(self, prompt, **settings)

    monkeypatch.setattr(Lumina2Pipeline, "__call__", counted)
    rows = list(
        compare_pipelines(pipe, plan={"solver": "euler", "steps": 2}, prompts=["cups"], repeats=2, pictures=2)
    )
    assert theirs == [("cups", 30, 64)] * 3
    assert len(ours) == 3 * 2  # the prompt and the empty prompt, in three rounds
    first, second = rows
    assert [row["side"] for row in rows] == ["lumina", "diffusers"]
    for row in rows:
        assert 0 < row["seconds_p20"] <= row["seconds_p50"] <= row["seconds_p80"]
        assert (row["size"], row["pictures"], row["repeats"], row["dtype"]) == ("64x64", 2, 2, "float32")
    assert (first["calls"], second["calls"], second["times_diffusers"]) == (2, 60, 1.0)
    assert first["times_diffusers"] > 1  # 2 steps against 30


@pytest.mark.slow
def test_command_writes_a_row_per_side(tiny_folder, capfd):
    words = [
        "bench",
        "sample",
        "--model",
        str(tiny_folder),
        "--calls",
        "2",
        "--repeats",
        "1",
        "--plan",
        "solver=euler",
    ]
    assert run(words) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["side"], row["calls"]) for row in rows] == [("lumina", 2), ("diffusers", 60)]
