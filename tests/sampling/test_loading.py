"""Model options through the command line: caches, kernels, LoRAs and int8, and the metadata of their images."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.cli.app import run
from lumina_cli.core.device import find_compiler
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.nextdit.lora.merge import remove_loras
from lumina_cli.core.sampling.loading import open_pipeline
from lumina_cli.core.sampling.model_options import ModelOptions
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.teacache.fit import CacheFit, write_cache_fit
from lumina_cli.core.sampling.teacache.policy import Curve
from lumina_cli.core.weights.fingerprint import (
    MOST,
    digest_adapter,
    fingerprint,
    fingerprint_weights,
    page_offsets,
)

MIB = 2**20
PLAN = "solver=euler,guide_until=1"


@pytest.fixture
def sample(tiny_folder, tmp_path, capfd, monkeypatch):
    """Run `lumina sample` with the tiny model; returns (exit code, rows, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words, model=tiny_folder, plan=("--plan", PLAN, "--steps", "4")):
        code = run(["sample", *words, "--model", str(model), *plan])
        done = capfd.readouterr()
        return code, [json.loads(line) for line in done.out.splitlines()], done.err

    return call


@pytest.fixture
def lora(tiny_folder, tmp_path):
    """A LoRA for the tiny model, in the working folder."""
    width = json.loads((tiny_folder / "transformer" / "config.json").read_text())["hidden_size"]
    random = torch.Generator().manual_seed(0)
    name = "transformer.layers.0.attn.to_q"
    pair = {f"{name}.lora_A.weight": (2, width), f"{name}.lora_B.weight": (width, 2)}
    tensors = {key: torch.randn(shape, generator=random) for key, shape in pair.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    return "a.safetensors"


@pytest.fixture
def fitted(tiny_folder, tmp_path):
    """The tiny model with a cache fitted to it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for part in tiny_folder.iterdir():
        (folder / part.name).symlink_to(part)
    write_cache_fit(CacheFit(fingerprint(folder), Curve((0.0, 1.0), 1.0), 1.0, 9), folder / "teacache.json")
    return folder


def differ(one, other):
    """Largest difference of two images in levels of 255."""
    first, second = (np.asarray(open_image(path), int) for path in (one, other))
    return abs(first - second).max()


@pytest.mark.slow
def test_cache_is_reported_in_the_row_and_resumes(sample):
    code, rows, talk = sample("two cups", "--cache", "first:0.2")
    assert (code, talk) == (0, "")
    told = rows[0]["cached"]
    assert (told["cache"], told["threshold"], told["rows"]) == ("first:0.2", 0.2, 8)
    assert 0 < told["skipped"] < 8
    code, again, _ = sample("two cups", "--cache", "first:0.2")
    assert (code, again[0]["resumed"], again[0]["image"]) == (0, True, rows[0]["image"])
    code, plain, _ = sample("two cups")
    assert plain[0]["image"] != rows[0]["image"]
    assert "cached" not in plain[0]


@pytest.mark.slow
def test_cache_off_disables_the_cache(sample, tmp_path):
    (plain,) = sample("two cups")[1]
    code, (off,), _ = sample("two cups", "--cache", "off")
    assert (code, off["resumed"], off["image"]) == (0, True, plain["image"])
    (cached,) = sample("two cups", "--cache", "first:0.2")[1]
    code, (again,), _ = sample("--from", cached["image"], "--cache", "off", plan=())
    assert (code, differ(again["image"], plain["image"])) == (0, 0)


def test_batch_with_a_cache_equals_single_images(tiny_folder):
    pipe = load_pipeline(tiny_folder)
    resolved = ResolvedRequest(Plan("euler", 6, guide_until=1.0, cache="first:0.2"))
    jobs = [Job("two cups", 1), Job("a red car left of a blue ball", 2), Job("a ball", 3, 2)]
    together = pipe.generate_batch(jobs, resolved)
    skipped = [pipe.cache.report(number)["skipped"] for number in range(3)]
    assert all(skipped)
    for number, job in enumerate(jobs):
        (alone,) = pipe.generate_batch([job], resolved)
        assert pipe.cache.report()["skipped"] == skipped[number]
        assert abs(np.asarray(alone, int) - np.asarray(together[number], int)).max() <= 1


def test_cache_releases_its_tensors_before_decoding(tiny_folder, monkeypatch):
    pipe, seen = load_pipeline(tiny_folder), []
    decode = pipe.vae.decode

    def watched(latents):
        seen.extend(memory.residual for one in pipe.cache.states for memory in one.branches)
        return decode(latents)

    monkeypatch.setattr(pipe.vae, "decode", watched)
    pipe.generate_batch([Job("two cups")], ResolvedRequest(Plan("euler", 3, cache="first:0.2")))
    assert seen == [None, None]
    assert pipe.cache.report(0)["rows"] > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile itself warns while it traces
def test_kernel_and_compiler_keep_the_image(sample):
    (plain,) = sample("two cups", "--out", "plain")[1]
    for more in (["--kernel", "sdpa"], ["--compile"]):
        if more == ["--compile"] and not find_compiler():
            continue
        code, (row,), talk = sample("two cups", *more, "--out", "-".join(more).strip("-"))
        assert (code, talk, "resumed" in row) == (0, "", False)
        assert row["kernel"] == (more[1] if more[1:] else plain["kernel"])
        assert differ(row["image"], plain["image"]) <= 1


def test_fitted_cache_with_loras_or_int8_notes_what_it_was_fitted_to(sample, fitted, lora):
    for words, what in ((["--lora", lora], "LoRAs"), (["--quantize", "int8-weights"], "int8-weights")):
        words += ["--cache", "tea:0.3", "--batch", "1"]
        code, rows, talk = sample("two cups", "a ball", *words, model=fitted)
        assert (code, len(rows)) == (0, 2)
        assert rows[0]["cached"]["threshold"] == 0.3
        assert talk == f"cache tea:0.3 was fitted to the model without {what}: its error may be larger\n"
    code, _, talk = sample("two cups", "--cache", "tea:0.3", model=fitted)
    assert (code, talk) == (0, "")


@pytest.mark.slow
def test_loras_and_int8_are_in_the_metadata_and_replayed(sample, lora, tmp_path):
    (plain,) = sample("two cups")[1]
    first = sample("two cups", "--lora", f"{lora}:0.7")[1][0]["image"]
    digest = digest_adapter(tmp_path / lora)
    assert read_metadata(first)["loras"] == [[lora, 0.7, digest]]
    code, (row,), talk = sample("--from", first, plan=())
    assert (code, row["apart"], talk) == (0, 0, "")
    assert read_metadata(row["image"])["loras"] == [[lora, 0.7, digest]]
    eight = sample("two cups", "--quantize", "int8-weights")[1][0]["image"]
    assert read_metadata(eight)["quantize"] == "int8-weights"
    code, (row,), talk = sample("--from", eight, plan=())
    assert (code, row["apart"], talk) == (0, 0, "")
    (tmp_path / lora).unlink()
    code, (row,), talk = sample("--from", first, plan=())
    assert (code, talk) == (
        0, f"{first} was generated with the LoRA {lora} at 0.7, which no longer exists; the result will differ\n"
    )  # fmt: skip
    assert differ(row["image"], plain["image"]) == 0
    code, _, talk = sample("--from", eight, "--memory", "2G", plan=())
    assert code == 0
    assert f"{eight} was generated in int8-weights, which is not used here; the result will differ\n" in talk


def test_loras_of_the_command_override_those_of_an_image(sample, lora):
    first = sample("two cups", "--lora", lora)[1][0]["image"]
    code, (row,), talk = sample("--from", first, "--lora", f"{lora}:0.2", plan=())
    assert (code, [scale for _, scale, _ in read_metadata(row["image"])["loras"]]) == (0, [0.2])
    assert f"with the LoRA {lora} at 1, which is not used here" in talk


def test_merged_loras_keep_no_original_weights(tiny_folder, lora, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    network = open_pipeline(ModelOptions(loras=(lora,)), tiny_folder, print).transformer
    merged = network.layers[0].attention.qkv.weight.clone()
    remove_loras(network)
    assert torch.equal(network.layers[0].attention.qkv.weight, merged)


def test_fingerprint_changes_with_any_page_of_a_small_file(tmp_path):
    path = tmp_path / "w.safetensors"
    found = set()
    for start in (None, MIB // 2, 3 * MIB // 2, 5 * MIB // 2, 9 * MIB // 2):  # a matrix of 1 MiB and a page
        data = bytearray(6 * MIB)
        if start is not None:
            data[start : start + MIB + 4096] = b"1" * (MIB + 4096)
        path.write_bytes(data)
        found.add(fingerprint_weights(tmp_path))
    assert len(found) == 5


@pytest.mark.parametrize("size", [0, 2 * MIB, 2 * MIB + 1, 5 * 10**9, 10**12])
def test_fingerprint_reads_few_pages_of_a_large_file(size):
    found = page_offsets(size)
    assert len(found) <= MOST
    assert bool(found) == (size > 2 * MIB)
    assert not found or size - MIB - found[-1] <= found.step


def test_digest_of_a_peft_adapter_includes_its_config(tmp_path):
    path, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    path.write_bytes(b"x")
    found = [digest_adapter(path)]
    for alpha in (1, 2):
        config.write_text(json.dumps({"lora_alpha": alpha}))
        found.append(digest_adapter(path))
    assert len(set(found)) == 3
    other = path.rename(tmp_path / "x.safetensors")  # with this name, no config next to it is read
    assert digest_adapter(other) == found[0]


def test_cache_fit_of_another_model_is_rejected_with_loras_too(fitted, lora, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_cache_fit(CacheFit("other", Curve((0.0, 1.0), 1.0), 1.0, 9), fitted / "teacache.json")
    pipe = open_pipeline(ModelOptions(loras=(lora,)), fitted, print)
    with pytest.raises(LuminaError, match="was calibrated for different weights"):
        pipe.generate([Job("two cups")], Plan("euler", 2, cache="tea:0.1"))
