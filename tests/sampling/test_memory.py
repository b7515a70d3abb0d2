"""Memory budget: plans, identical images under them, and the peak of the process."""

import json
import mmap
import subprocess
import sys

import conftest
import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.models.locate import ModelChoice, find_nano
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig, load_transformer, save_transformer
from lumina_cli.core.nextdit.convert import to_dialect
from lumina_cli.core.nextdit.lora.merge import LoraStack, apply_loras
from lumina_cli.core.sampling import draw_latents
from lumina_cli.core.sampling.loading import generate, open_pipeline
from lumina_cli.core.sampling.memory import offload
from lumina_cli.core.sampling.memory.allocator import watch_peak
from lumina_cli.core.sampling.memory.budget import plan_memory
from lumina_cli.core.sampling.memory.offload import ComponentPool, MemoryManager, load_components
from lumina_cli.core.sampling.memory.plan import MemoryPlan, format_bytes, parse_memory
from lumina_cli.core.sampling.memory.streaming import StreamedLinear, read_transformer, streamable
from lumina_cli.core.sampling.model_options import ModelOptions
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.runner import generate_rows
from lumina_cli.core.weights.files import read_weights, write_weights
from lumina_cli.core.weights.lazy import LazyWeights

CPU = torch.device("cpu")
MIB = 2**20
PLAN = Plan(solver="euler", steps=2, guidance=3.0)


@pytest.fixture(scope="session")
def large_folder(tmp_path_factory):
    """A model folder of 290 MB; the transformer is its largest component."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Model

    folder = tmp_path_factory.mktemp("large")
    conftest.write_tokenizer(folder / "tokenizer")
    text = Gemma2Config(
        vocab_size=8000, hidden_size=512, intermediate_size=1536, num_hidden_layers=7, num_attention_heads=8,
        num_key_value_heads=4, head_dim=64, query_pre_attn_scalar=64, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    Gemma2Model(text).save_pretrained(folder / "text_encoder")
    AutoencoderKL(
        block_out_channels=(32, 64, 64, 64), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=16, norm_num_groups=8,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159, sample_size=512,
    ).save_pretrained(folder / "vae")  # fmt: skip
    config = NextDiTConfig(
        dim=512, num_layers=6, num_heads=8, num_kv_heads=4, text_dim=512, axes_dim=(24, 20, 20),
        axes_len=(300, 64, 64), sample_size=64,
    )  # fmt: skip
    save_transformer(NextDiT(config), folder / "transformer")
    return folder


@pytest.mark.parametrize(
    ("text", "size"), [("8G", 8 * 2**30), ("1.5GiB", 3 * 2**29), ("800m", 800 * MIB), ("4096", 4096)]
)
def test_parse_memory_accepts_units(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "8X", "-1G", "0", "G", "many"])
def test_parse_memory_rejects_other_text(text):
    with pytest.raises(UsageError, match="is not a size; write 8G or 800M"):
        parse_memory(text)


def test_format_bytes_rounds_up():
    assert [format_bytes(size) for size in (310 * MIB, 310 * MIB + 1, 5 * 2**29, 2**30 + 1)] == [
        "310M",
        "311M",
        "2.5G",
        "1.1G",
    ]


@pytest.mark.slow
def test_smaller_budgets_take_more_measures(large_folder):
    plans = [plan_memory(large_folder, megabytes * MIB, (512, 512)) for megabytes in (2000, 300, 200, 160)]
    assert [plan.offload for plan in plans] == [False, True, True, True]
    shares = [plan.streamed_fraction for plan in plans]
    assert shares[:2] == [0, 0]
    assert 0 < shares[2] < shares[3] < 1
    assert plans[0].tile is plans[1].tile is None
    assert plans[3].tile in (32, 48)
    assert all(plan.peak <= plan.budget for plan in plans)
    assert plans[0].summary() == "memory 2.0G: all components stay in memory"
    assert (
        plans[3]
        .summary()
        .startswith("memory 160M: text encoder, transformer and autoencoder one at a time; ")
    )
    assert "images are decoded in tiles" in plans[3].summary()


def test_error_of_a_small_budget_names_the_smallest_that_fits(large_folder):
    with pytest.raises(
        UsageError, match=r"^--memory 20M is too small: .* tiling, the transformer needs (\d+)M"
    ) as caught:
        plan_memory(large_folder, 20 * MIB, (512, 512))
    least = int(str(caught.value).split(" needs ")[1].split("M")[0])
    assert plan_memory(large_folder, least * MIB, (512, 512)).peak <= least * MIB
    with pytest.raises(UsageError):
        plan_memory(large_folder, (least - 2) * MIB, (512, 512))


def test_plan_includes_the_tensors_of_a_layer_cache(large_folder):
    plain, cached = (plan_memory(large_folder, 2**40, (256, 256), 16, cached=on) for on in (False, True))
    tokens = 16 * 2 * (16 * 16 + 299)  # images, branches, image and text tokens
    assert cached.peak - plain.peak == 3 * 4 * 512 * tokens


def test_peak_grows_with_batch_and_dtype(large_folder):
    one, two = (plan_memory(large_folder, 2**40, (512, 512), batch).peak for batch in (1, 8))
    assert two > one
    assert plan_memory(large_folder, 2**40, (512, 512), dtype=torch.bfloat16).peak < one


MEASURE = """
import json, sys, torch
from pathlib import Path
from lumina_cli.core.flow import Plan
from lumina_cli.core.sampling import draw_latents
from lumina_cli.core.sampling.memory.allocator import release_memory, watch_peak
from lumina_cli.core.sampling.memory.budget import plan_memory
from lumina_cli.core.sampling.memory.offload import load_components
large, tiny, budgets = Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]]
cpu = torch.device("cpu")
def generate(folder, budget, size):
    network, text, vae = load_components(folder, plan_memory(folder, budget, (size, size)), cpu, torch.float32)
    captions, null = text.encode(["a red car left of a blue ball " * 20]), text.encode([""])
    noise = torch.randn(1, 16, size // 8, size // 8)
    latents = draw_latents(network, noise, *captions, *null, Plan(solver="euler", steps=1, guidance=4.0))
    assert vae.decode(latents).shape == (1, 3, size, size)
generate(tiny, 2**40, 64)  # the memory of the program itself
for budget in budgets:
    release_memory(cpu)
    with watch_peak() as peak:
        generate(large, budget, 256)
    print(json.dumps(peak.bytes))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts the peak")
def test_process_stays_within_its_budget(large_folder, tiny_folder):
    budgets = [megabytes * MIB for megabytes in (2000, 220, 120)]
    words = [sys.executable, "-c", MEASURE, str(large_folder), str(tiny_folder), *map(str, budgets)]
    peaks = [
        json.loads(line)
        for line in subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    ]
    assert len(peaks) == len(budgets)
    assert all(peak <= 1.1 * budget for peak, budget in zip(peaks, budgets, strict=True)), peaks
    assert peaks[0] > 250 * MIB  # a large budget keeps all weights in memory
    assert peaks == sorted(peaks, reverse=True)


def test_watch_peak_counts_freed_memory():
    with watch_peak() as peak, mmap.mmap(-1, 64 * MIB) as block:  # new pages, not those that malloc caches
        for start in range(0, len(block), mmap.PAGESIZE):
            block[start] = 1
    assert 60 * MIB < peak.bytes < 80 * MIB


@pytest.fixture
def streamed(tiny_folder):
    names = frozenset(streamable(load_transformer(tiny_folder / "transformer")))
    return MemoryPlan(2**40, offload=True, stream_text=True, streamed=names)


@pytest.mark.slow
def test_streaming_keeps_features_and_latents_identical(tiny_folder, streamed):
    noise = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = []
    whole = (
        load_transformer(tiny_folder / "transformer").eval(),
        TextEncoder(tiny_folder),
        Autoencoder(tiny_folder),
    )
    for network, text, vae in (whole, load_components(tiny_folder, streamed, CPU, torch.float32)):
        captions, null = text.encode(["a red car", "two green cups"]), text.encode([""])
        latents = draw_latents(network, noise, *captions, *null, PLAN)
        pictures.append((captions[0], latents, vae.decode(latents)))
    assert torch.equal(pictures[0][0], pictures[1][0])
    assert torch.equal(pictures[0][1], pictures[1][1])
    assert torch.allclose(pictures[0][2], pictures[1][2], atol=1e-5)


def test_lazy_components_answer_known_attributes_without_loading(tiny_folder, streamed):
    network, text, vae = load_components(tiny_folder, streamed, CPU, torch.float32)
    here = TextEncoder(tiny_folder), Autoencoder(tiny_folder)
    assert (text.dim, text.max_tokens, text.dropped(["a car"])) == (here[0].dim, 256, [0])
    assert (vae.channels, vae.factor, vae.scale, vae.shift) == (
        16,
        here[1].factor,
        here[1].scale,
        here[1].shift,
    )
    assert network.config == load_transformer(tiny_folder / "transformer").config
    assert not network._pool.components
    assert isinstance(network.layers[0].attention.qkv, StreamedLinear)
    assert network._pool.components.keys() == {"transformer"}


@pytest.mark.slow
def test_pool_keeps_one_component_if_offloading():
    for in_turn, left in [(True, ["b"]), (False, ["a", "b"])]:
        pool = ComponentPool({"a": list, "b": dict}, MemoryPlan(1, in_turn), CPU)
        assert pool.get("a") is pool.get("a")
        pool.get("b")
        assert list(pool.components) == left


@pytest.mark.slow
def test_texts_of_a_window_are_encoded_before_the_transformer_loads(tiny_folder, tmp_path, streamed):
    parts = load_components(tiny_folder, streamed, CPU, torch.float32)
    pool, came = parts[0]._pool, []
    for name, load in list(pool.loaders.items()):
        pool.loaders[name] = lambda name=name, load=load: came.append(name) or load()
    pipeline = Pipeline(ModelChoice("tiny", tiny_folder), *parts)
    assert not came  # in particular not the text encoder, which a bound method would keep in memory
    pipeline.memory_manager = MemoryManager(parts, lambda *wanted: streamed, 1, print)
    rows = [{"prompt": prompt} for prompt in ("a red car", "two cups", "a red car", "a ball")]
    drawn = list(generate_rows(rows, pipeline, tmp_path, batch=1, plan={"solver": "euler", "steps": 1}))
    assert len(drawn) == 4
    assert came == ["text", *["transformer", "vae"] * 4]


PLANS = {
    64: MemoryPlan(9),
    128: MemoryPlan(9, True, True, frozenset({"a"}), 0.2, 32),
    96: MemoryPlan(9, True, tile=48),
}


def test_plans_merge_measures_of_larger_sizes_but_not_tiles(tiny_folder):
    parts = load_components(tiny_folder, MemoryPlan(9), CPU, torch.float32)
    pool, asked, notes = parts[0]._pool, [], []
    manager = MemoryManager(
        parts, lambda size, *more: asked.append((size, *more)) or PLANS[size[0]], 2, notes.append
    )
    found = []
    for side in (64, 96, 64, 128, 64):
        manager.prepare((side, side), 1, side == 96)
        plan = pool.plan
        found.append((plan.offload, plan.stream_text, plan.streamed_fraction, plan.tile))
    assert found == [
        (False, False, 0.0, None), (True, False, 0.0, 48), (True, False, 0.0, None),
        (True, True, 0.2, 32), (True, True, 0.2, None),
    ]  # fmt: skip
    # planned for a full batch, and each size once
    assert asked == [((64, 64), 2, False), ((96, 96), 2, True), ((128, 128), 2, False)]
    assert notes[0] == "memory 1M: all components stay in memory"
    assert notes[1].startswith(
        "for 96x96 memory 1M: text encoder, transformer and autoencoder one at a time;"
    )


def test_adopting_a_plan_drops_components_loaded_differently(monkeypatch):
    monkeypatch.setattr(
        offload, "release_memory", lambda device: None
    )  # slow, and there is nothing to release
    made = {"text": list, "transformer": dict, "vae": set}
    for plan, left in (
        (MemoryPlan(1), ["text", "transformer", "vae"]),
        (MemoryPlan(1, stream_text=True), ["transformer", "vae"]),
        (MemoryPlan(1, streamed=frozenset("a")), ["text", "vae"]),
        (MemoryPlan(1, tile=32), ["text", "transformer"]),
        (MemoryPlan(1, offload=True), []),
    ):
        pool = ComponentPool(made, MemoryPlan(1), CPU)
        for name in made:
            pool.get(name)
        pool.adopt(plan)
        assert list(pool.components) == left


@pytest.fixture
def tight(large_folder, tmp_path):
    """Generate rows with the larger model in 150 MB; returns (rows, notes)."""

    def call(rows, **settings):
        notes, options = [], ModelOptions(memory="150M")
        settings = {"size": "64", "plan": {"solver": "euler", "steps": 1}} | settings
        drawn = generate(rows, large_folder, tmp_path / "out", options, note=notes.append, **settings)
        return list(drawn), notes

    return call


@pytest.mark.slow
def test_each_row_size_gets_its_plan(tight):
    rows, notes = tight([{"prompt": "a"}, {"prompt": "b", "size": "256"}])
    assert [row["size"] for row in rows] == ["64x64", "256x256"]
    assert notes[0].startswith("memory 150M")
    assert notes[1].startswith("for 256x256 memory 150M")
    assert share(notes[1]) > share(notes[0])


def share(line):
    """The percentage of the transformer that is streamed."""
    return int(line.split("% of the transformer")[0].split()[-1]) if "%" in line else 0


@pytest.mark.slow
def test_error_of_a_row_beyond_the_budget_names_its_size(tight, tmp_path):
    with pytest.raises(
        UsageError, match=r"^--memory 150M is too small: .* needs \d+M for a batch of 1 at 1024x1024; "
    ):
        tight([{"prompt": "a"}, {"prompt": "b", "size": "1024"}])
    assert len(list((tmp_path / "out").iterdir())) == 1  # the first image is saved


@pytest.mark.slow
def test_default_size_may_exceed_the_budget_if_rows_are_smaller(large_folder):
    budget, notes = 110 * MIB, []
    with pytest.raises(UsageError):
        plan_memory(large_folder, budget, (512, 512))
    pipeline = open_pipeline(ModelOptions(memory=str(budget)), large_folder, notes.append)
    assert notes == []
    with pytest.raises(UsageError, match="for a batch of 1 at 512x512"):
        pipeline.generate_batch([Job("a")], ResolvedRequest(PLAN))
    (picture,) = pipeline.generate_batch([Job("a")], ResolvedRequest(PLAN), (64, 64))
    assert picture.size == (64, 64)
    with pytest.raises(UsageError, match=r"--memory 9M is too small: .* for a batch of 1 at 512x512"):
        open_pipeline(ModelOptions(memory="9M"), large_folder, notes.append)


@pytest.mark.slow
def test_edits_are_planned_for_the_size_of_their_image(large_folder, tmp_path):
    Image.new("RGB", (256, 256), "red").save(tmp_path / "red.png")
    notes = []
    pipeline = open_pipeline(
        ModelOptions(memory="150M", init=tmp_path / "red.png"), large_folder, notes.append
    )
    pipeline.generate_batch([Job("a")], ResolvedRequest(PLAN))
    peak = plan_memory(large_folder, 150 * MIB, (256, 256))
    assert pipeline.memory_manager.pool.plan == peak
    assert notes == [peak.summary()]


@pytest.mark.parametrize("dialect", ["diffusers", "comfyui", "official", "lumina"])
def test_every_dialect_can_be_streamed(tiny_folder, tmp_path, dialect):
    model = load_transformer(tiny_folder / "transformer")
    (tmp_path / "config.json").write_bytes((tiny_folder / "transformer" / "config.json").read_bytes())
    write_weights(to_dialect(model.state_dict(), dialect), tmp_path / "model.safetensors")
    streamed = read_transformer(tmp_path, torch.float32, CPU, streamable(model))
    for name in streamable(model):
        assert torch.equal(
            streamed.get_submodule(name.removesuffix(".weight")).weight, model.get_parameter(name)
        )


def test_lora_merges_into_streamed_weights(tiny_folder, tmp_path):
    model = load_transformer(tiny_folder / "transformer", dtype=torch.bfloat16)
    start = "diffusion_model.layers.1.attention.qkv.lora_"
    tensors = {f"{start}A.weight": torch.randn(2, 24), f"{start}B.weight": torch.randn(48, 2)}
    write_weights(tensors, tmp_path / "x.safetensors")
    specs = [f"{tmp_path / 'x.safetensors'}:0.5"]
    streamed = read_transformer(
        tiny_folder / "transformer", torch.bfloat16, CPU, streamable(model), LoraStack(model.config, specs)
    )
    before = model.layers[1].attention.qkv.weight.clone()
    apply_loras(model, specs)
    assert torch.equal(streamed.layers[1].attention.qkv.weight, model.layers[1].attention.qkv.weight)
    assert not torch.equal(streamed.layers[1].attention.qkv.weight, before)


def test_window_keeps_one_block(tiny_folder):
    model = load_transformer(tiny_folder / "transformer")
    streamed = read_transformer(tiny_folder / "transformer", torch.float32, CPU, streamable(model))
    first, second = streamed.layers[0].attention, streamed.layers[1].attention
    assert first.qkv.weight is first.qkv.weight
    old = first.qkv.weight
    assert first.qkv.window.kept.keys() == {"layers.0.attention.qkv.weight"}
    assert second.out.weight is not None
    assert first.qkv.window.kept.keys() == {"layers.1.attention.out.weight"}
    assert first.qkv.weight is not old


def test_damaged_files_are_reported(tiny_folder, tmp_path):
    with pytest.raises(LuminaError, match=r"holds 0 .safetensors files; expected one, or an index"):
        LazyWeights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not this")
    with pytest.raises(LuminaError, match="is not weights but text"):
        LazyWeights(tmp_path)
    weights = read_weights(tiny_folder / "transformer")
    weights.pop("layers.1.attn.to_k.weight")
    write_weights(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((tiny_folder / "transformer" / "config.json").read_bytes())
    with pytest.raises(LuminaError, match=r"the weights have no layers.1.attn.to_k.weight"):
        read_transformer(tmp_path, torch.float32, CPU)


@pytest.mark.slow
@torch.no_grad()
def test_tiled_decoding_leaves_no_seams():
    from lumina_cli.core.nano.rendering.renderer import render
    from lumina_cli.core.nano.scene import draw_scene

    picture = np.array(render([draw_scene(3, 0)], 384)[0].image)
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    vae, tiled = Autoencoder(find_nano()), Autoencoder(find_nano()).enable_tiling(32)
    latents = vae.encode(pixels)
    error = tiled.decode(latents) - vae.decode(latents)
    assert 0 < 127.5 * float(error.abs().mean()) < 4  # levels of 255
    # the error does not grow faster at the borders of tiles than elsewhere
    slope = error.diff(dim=-1).abs().mean((0, 1, 2))
    borders = slope[[191, 255]]  # start of the blend with the second tile, and its end
    assert float(borders.max()) < 2 * float(slope.quantile(0.9))
