"""The bundled model: size, components, the same image in diffusers, and images that follow the prompt."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from lumina_cli import load
from lumina_cli.core.evals.geneval.ground_truth import ground_truth_generator
from lumina_cli.core.evals.geneval.rules import GenEval, check, group_detections
from lumina_cli.core.evals.judges.nano import NanoJudge
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.images.io import open_image
from lumina_cli.core.models.locate import find_nano
from lumina_cli.core.nano.rendering.renderer import render
from lumina_cli.core.nano.scene import draw_scene
from lumina_cli.core.sampling.pipeline import Job
from lumina_cli.core.training.nano.autoencoder import UNSEEN, psnr, to_pixels

FOLDER = find_nano()
FLOOR = 0.6  # of a mean over 96 pictures
PROMPTS = ["a red car left of a blue ball", "ein gelber Stern"]


@pytest.fixture(scope="module")
def pipe():
    return load("nano")


def test_the_model_is_small_and_contains_no_code():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.parent.name != "captioner"]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    assert json.loads((FOLDER / "model_index.json").read_text())["_class_name"] == "Lumina2Pipeline"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers' and transformers' own making
def test_diffusers_generates_the_same_image(pipe):
    from diffusers import Lumina2Pipeline

    theirs = Lumina2Pipeline.from_pretrained(FOLDER, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(PROMPTS):
        noise = draw_noise(3, number, (16, 16, 16))[None]
        drawn = theirs(
            prompt=prompt, latents=noise, height=128, width=128, num_inference_steps=8, guidance_scale=4.0,
            cfg_normalization=False, cfg_trunc_ratio=1.0, output_type="np",
        ).images[0]  # fmt: skip
        plan = Plan(
            "euler", steps=8, shift=theirs.scheduler.config.shift, guidance=4.0, guide_until=1.0, renorm=None
        )
        ours = pipe.generate([Job(prompt, 3, number)], plan)[0]
        assert (
            np.abs(np.asarray(ours, float) - drawn * 255).max() <= 2.5
        )  # 2 levels, and half of one for rounding


@pytest.mark.slow
def test_the_autoencoder_preserves_scenes(pipe):
    pictures = np.stack([np.asarray(p.image) for p in render([draw_scene(UNSEEN, i) for i in range(24)])])
    pixels = to_pixels(pictures)
    assert psnr(pipe.vae.decode(pipe.vae.encode(pixels)), pixels).mean() >= 33


@pytest.mark.slow
def test_the_judge_detects_rendered_objects():
    benchmark, judge = GenEval(), NanoJudge()
    rows = benchmark.prompts("nano", 4, ["en"], 0, "test")
    pictures = ground_truth_generator(seed=5).generate(rows, list(range(len(rows))))
    least = judge.thresholds["default"]
    seen = [group_detections(things, least, max_overlap=1.0) for things in judge.detect(pictures)]
    assert np.mean([check(things, row)[0] for things, row in zip(seen, rows, strict=True)]) >= 0.95


@pytest.mark.slow
def test_generated_images_match_their_prompts(pipe):
    """A small sample of the benchmark, far below the measured score: a network that draws nothing gets 0."""
    judge = NanoJudge()
    rows = GenEval().prompts("nano", 8, ["en", "ru"], 0, "test")
    pictures = pipe([row["prompt"] for row in rows], seed=11)
    seen = [group_detections(things, judge.thresholds["default"]) for things in judge.detect(pictures)]
    right = [check(things, row)[0] for things, row in zip(seen, rows, strict=True)]
    assert np.mean(right) >= FLOOR


# what any program with such a model has to import: the measure of this machine at this moment
IMPORTS = """
import torch, diffusers.models.autoencoders.autoencoder_kl
import transformers.models.gemma.tokenization_gemma, transformers.models.gemma2.modeling_gemma2
"""


@pytest.mark.slow
def test_a_cold_start_generates_within_its_budget(tmp_path):
    """8 seconds on an idle machine, of which imports take most; processor time, in units of these, is bounded."""

    def seconds(*words):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=True, timeout=300
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout

    taken, rows = seconds("-m", "lumina_cli", "sample", PROMPTS[0], "--model", "nano", "--out", str(tmp_path))
    assert open_image(json.loads(rows)["image"]).size == (128, 128)
    assert taken < 3 * seconds("-c", IMPORTS)[0]
