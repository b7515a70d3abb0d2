"""LoRAs: every dialect gives the same weights, removal restores them exactly, and misfits are one-line errors."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.convert import config_to_diffusers, to_diffusers
from lumina_cli.core.nextdit.lora.factors import LoraFactors, fuse, split
from lumina_cli.core.nextdit.lora.formats import WRITERS, detect_dialect, read_pairs
from lumina_cli.core.nextdit.lora.merge import apply_loras, convert_lora, parse_spec, remove_loras
from lumina_cli.core.nextdit.lora.names import find_site
from lumina_cli.core.weights.lora_files import AdapterFile, read_adapter, write_adapter

CONFIG = NextDiTConfig(
    dim=48, num_layers=2, num_refiner_layers=1, num_heads=4, num_kv_heads=2, multiple_of=16, text_dim=40,
    axes_dim=(4, 4, 4), axes_len=(64, 32, 32),
)  # fmt: skip
WIDTHS = {"q": 48, "k": 24, "v": 24}
LAYERS = ("layers.0.", "layers.1.", "noise_refiner.0.", "context_refiner.0.")
SHAPES = {"attention.out": (48, 48), "feed_forward.w1": (192, 48), "feed_forward.w2": (48, 192)}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = NextDiT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def pair(rank, out, inputs, alpha=None, dora=False):
    magnitude = 1 + torch.rand(out, 1) if dora else None
    return LoraFactors(torch.randn(rank, inputs) / 7, torch.randn(out, rank) / 7, alpha, magnitude)


def apart(rank=3, alpha=None, dora=False):
    """Return a LoRA as diffusers trains it: separate factors for queries, keys and values."""
    pairs = {
        (f"{layer}attention.qkv", part): pair(rank, out, 48, alpha, dora)
        for layer in LAYERS
        for part, out in WIDTHS.items()
    }
    return pairs | {
        (layer + name, None): pair(rank, *shape, alpha, dora)
        for layer in LAYERS
        for name, shape in SHAPES.items()
    }


def together(rank=3, alpha=None, dora=False):
    """Return a LoRA as trained on the official network: one pair of factors for qkv."""
    pairs = {site: old for site, old in apart(rank, alpha, dora).items() if site[1] is None}
    return pairs | {(f"{layer}attention.qkv", None): pair(rank, 96, 48, alpha, dora) for layer in LAYERS}


def write(pairs, dialect, path, header=None):
    tensors, config = WRITERS[dialect](pairs)
    write_adapter(AdapterFile(path, tensors, header or {}, config))
    return path


def expected(model, pairs, scale=1.0):
    """Return the weights changed by a LoRA, computed in float64 by the formula."""
    weights = {name: weight.double() for name, weight in model.state_dict().items()}
    rows = {"q": slice(0, 48), "k": slice(48, 72), "v": slice(72, 96), None: slice(None)}
    for (name, part), own in pairs.items():
        weight = weights[f"{name}.weight"]
        alpha = own.down.shape[0] if own.alpha is None else own.alpha
        value = weight[rows[part]] + scale * alpha / own.down.shape[0] * own.up.double() @ own.down.double()
        if own.magnitude is not None:
            value = own.magnitude * value / value.norm(dim=1, keepdim=True)
        weight[rows[part]] = value
    return weights


def assert_weights(model, wanted, tolerance=2e-6):
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight.double(), wanted[name], atol=tolerance, rtol=0), name


def assert_same_tensors(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one)


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("make", [apart, together])
@pytest.mark.parametrize("alpha", [None, 1.5, 7.0])
@pytest.mark.parametrize("dora", [False, True])
def test_every_dialect_gives_the_weights_of_the_formula(model, tmp_path, dialect, make, alpha, dora):
    pairs = make(3, alpha, dora)
    wanted = expected(model, pairs, 0.7)
    (applied,) = apply_loras(model, [f"{write(pairs, dialect, tmp_path / 'x.safetensors')}:0.7"])
    assert_weights(model, wanted)
    assert (applied.scale, applied.dialect, applied.dora, applied.unused) == (0.7, dialect, dora, ())


def test_removal_restores_the_exact_weights(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.to(torch.bfloat16).state_dict().items()}
    one, two = (
        write(make(), "kohya", tmp_path / f"{make.__name__}.safetensors") for make in (apart, together)
    )
    apply_loras(model, [one])
    assert not torch.equal(model.layers[0].attention.qkv.weight, before["layers.0.attention.qkv.weight"])
    apply_loras(model, [two, f"{one}:-0.5"])
    remove_loras(model)
    assert_same_tensors(dict(model.state_dict()), before)
    remove_loras(model)  # nothing is left to remove


def test_a_permanent_merge_keeps_no_original_weights(model, tmp_path):
    pairs = apart()
    wanted = expected(model, pairs)
    apply_loras(model, [write(pairs, "kohya", tmp_path / "x.safetensors")], keep=False)
    assert_weights(model, wanted)
    remove_loras(model)  # finds nothing that could come back
    assert_weights(model, wanted)


def test_a_second_call_replaces_the_first_and_order_does_not_matter(model, tmp_path):
    one, two = (
        write(pairs, "comfyui", tmp_path / f"{n}.safetensors")
        for n, pairs in enumerate((apart(dora=True), together()))
    )
    apply_loras(model, [one, f"{two}:0.5"])
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    apply_loras(model, [two])
    apply_loras(model, [f"{two}:0.5", one])
    assert all(torch.allclose(first[name], weight, atol=1e-6) for name, weight in model.state_dict().items())


def test_scale_zero_changes_nothing(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    path = write(apart(dora=True), "kohya", tmp_path / "x.safetensors")
    assert apply_loras(model, [f"{path}:0"])[0].modules == 16  # q, k and v are one
    assert_same_tensors(dict(model.state_dict()), before)


def test_a_partial_lora_with_tensors_of_other_networks(model, tmp_path):
    pairs = {("layers.1.attention.qkv", "v"): pair(2, 24, 48), ("final_layer.linear", None): pair(2, 64, 48)}
    tensors = WRITERS["diffusers"](pairs)[0] | {
        "lora_te1_text_model_q.alpha": torch.ones(()),
        "what.is.this": torch.ones(2),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    wanted = expected(model, pairs)
    (applied,) = apply_loras(model, [tmp_path / "x.safetensors"])
    assert_weights(model, wanted)
    assert applied.modules == 2
    assert applied.note == (
        f"{tmp_path}/x.safetensors: 2 of 4 layers are used; not used: 1 tensor (lora_te1_text_model_q.alpha) of a "
        "text encoder; "
        "1 tensor (what.is.this) unknown"
    )


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("transformer.layers.3.attn.to_q", ("layers.3.attention.qkv", "q")),
        ("diffusion_model.layers.3.attn.to_v", ("layers.3.attention.qkv", "v")),
        ("base_model.model.layers.3.attention.qkv", ("layers.3.attention.qkv", None)),
        ("lora_unet_context_refiner_1_attn_to_out_0", ("context_refiner.1.attention.out", None)),
        ("lora_unet_layers_25_adaLN_modulation_1", ("layers.25.adaLN_modulation.1", None)),
        ("lora_unet_t_embedder_mlp_2", ("t_embedder.mlp.2", None)),
        ("transformer.time_caption_embed.caption_embedder.1", ("cap_embedder.1", None)),
        ("layers.0.feed_forward.linear_3", ("layers.0.feed_forward.w3", None)),
        ("lora_te_layers_0_self_attn_q_proj", None),
        ("transformer.single_transformer_blocks.0.attn.to_q", None),
        ("layers.x.attention.out", None),
    ],
)
def test_names_in_files_are_resolved_to_sites(name, site):
    assert find_site(name) == site


def test_every_linear_layer_has_a_name_in_every_dialect(model):
    layers = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    pairs = {(name, None): pair(1, *model.get_submodule(name).weight.shape) for name in layers}
    for write_names in WRITERS.values():
        found, unused = read_pairs(AdapterFile("x", write_names(pairs)[0]))
        assert {name for name, _ in found} == layers
        assert not unused


def cast(own, dtype):
    down, up, magnitude = (None if x is None else x.to(dtype) for x in (own.down, own.up, own.magnitude))
    return LoraFactors(down, up, own.alpha, magnitude)


@pytest.mark.parametrize("alpha", [None, 4.0, float(torch.tensor(1 / 3))])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trips_are_exact(tmp_path, alpha, dora, dtype):
    for make, ways in [
        (apart, ["diffusers", "kohya", "comfyui", "diffusers"]),
        (together, ["kohya", "diffusers", "comfyui", "kohya"]),
    ]:
        tensors, config = WRITERS[ways[0]](
            {site: cast(own, dtype) for site, own in make(3, alpha, dora).items()}
        )
        first = tmp_path / "0.safetensors"
        write_adapter(AdapterFile(first, tensors, {"ss_note": "kept"}, config))
        path = first
        for number, way in enumerate(ways[1:], start=1):
            convert_lora(path, tmp_path / f"{number}.safetensors", way)
            path = tmp_path / f"{number}.safetensors"
        before, after = read_adapter(first), read_adapter(path)
        assert_same_tensors(before.tensors, after.tensors)
        assert (before.header, before.config) == (after.header, after.config)


def test_scales_that_differ_are_multiplied_in():
    pairs = {
        ("layers.0.attention.qkv", part): pair(2, out, 48, alpha)
        for (part, out), alpha in zip(WIDTHS.items(), (1.0, 3.0, 8.0), strict=True)
    }
    (whole,) = fuse(pairs).values()
    wanted = torch.cat([own.scale * own.up @ own.down for own in pairs.values()])
    assert torch.allclose(whole.scale * whole.up @ whole.down, wanted, atol=1e-7)
    for part, own in zip(
        split({("layers.0.attention.qkv", None): whole}).values(), pairs.values(), strict=True
    ):
        assert torch.allclose(part.scale * part.up @ part.down, own.scale * own.up @ own.down, atol=1e-7)


def test_factors_of_only_some_of_q_k_and_v_are_fused():
    pairs = {("layers.0.attention.qkv", part): pair(2, WIDTHS[part], 48) for part in "qv"}
    (whole,) = fuse(pairs).values()
    assert whole.rank == 4
    assert not whole.up[48:72].any()
    assert split({("layers.0.attention.qkv", None): whole}).keys() == pairs.keys()
    with pytest.raises(LuminaError, match="the width of k and v is unknown"):
        fuse({("layers.0.attention.qkv", "q"): pair(2, 48, 48)})


def test_loras_that_diffusers_does_not_support():
    half = {
        ("layers.0.attention.out", None): pair(2, 48, 48, dora=True),
        ("layers.1.attention.out", None): pair(2, 48, 48),
    }
    with pytest.raises(LuminaError, match="a LoRA in which only some layers are DoRA"):
        WRITERS["diffusers"](half)


def test_rank_stabilised_and_patterned_alphas(tmp_path, model):
    config = {
        "lora_alpha": 8,
        "use_rslora": True,
        "alpha_pattern": {r"layers\.0\.attn\.to_out\.0": 2},
        "r": 4,
    }
    tensors = WRITERS["diffusers"]({(f"layers.{n}.attention.out", None): pair(4, 48, 48) for n in (0, 1)})[0]
    tensors = {f"base_model.model.{name.removeprefix('transformer.')}": x for name, x in tensors.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pairs, _ = read_pairs(read_adapter(tmp_path))
    assert [own.scale for own in pairs.values()] == pytest.approx([2 / math.sqrt(4), 8 / math.sqrt(4)])
    assert detect_dialect(tensors) == "peft"
    (applied,) = apply_loras(model, [f"{tmp_path}:0.5"])
    assert (applied.modules, applied.path) == (2, str(tmp_path / "adapter_model.safetensors"))


def test_a_dora_of_columns(model):
    own = LoraFactors(torch.randn(2, 48), torch.randn(192, 2), None, 1 + torch.rand(1, 48))
    tensors, _ = WRITERS["kohya"]({("layers.0.feed_forward.w1", None): own})
    assert read_pairs(AdapterFile("x", tensors))[0]["layers.0.feed_forward.w1", None].magnitude.shape == (
        1,
        48,
    )


def test_specs_are_paths_with_an_optional_scale(tmp_path):
    assert parse_spec("a/b.safetensors:0.8")[1] == 0.8
    assert parse_spec("a/b.safetensors") == parse_spec("a/b.safetensors:1")
    odd = tmp_path / "x:2"
    odd.touch()
    assert parse_spec(str(odd)) == (odd, 1.0)
    with pytest.raises(UsageError, match="finite number"):
        parse_spec("a.safetensors:nan")
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UsageError, match=r"a.safetensors must be a number such as 0.8, not 'abc'"):
        parse_spec(f"{tmp_path}/a.safetensors:abc")


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            {"layers.99.attention.out": (48, 48)},
            "2 of 3 layers fit this model; it also targets layers.99.attention.out, which does not exist in "
            "this model",
        ),
        (
            {f"layers.{n}.attention.out": (48, 48) for n in (98, 99)},
            "2 of 4 layers fit this model; it also targets layers.98.attention.out, which does not exist in "
            "this model, and 1 more that do not fit",
        ),
        (
            {"noise_refiner.0.attention.out": (48, 64)},
            "2 of 3 layers fit this model; it also targets noise_refiner.0.attention.out from 64 to 48, but "
            "this model has 48 to 48",
        ),
    ],
)
def test_a_lora_that_fits_in_part_is_refused_with_the_fraction_that_fits(model, tmp_path, odd, words):
    shapes = {f"layers.{n}.attention.out": (48, 48) for n in (0, 1)} | odd
    pairs = {(name, None): pair(2, *shape) for name, shape in shapes.items()}
    file = write(pairs, "diffusers", tmp_path / "part.safetensors")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(LuminaError) as caught:
        apply_loras(model, [str(file)])
    assert str(caught.value) == f"{file} fits in part: {words}"
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_lora_for_another_model_names_its_layers(model, tmp_path):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    good = write(apart(), "kohya", tmp_path / "good.safetensors")
    for pairs, words in [
        ({("layers.0.attention.qkv", None): pair(2, 3840, 2304)}, "targets layers.0.attention.qkv from 2304 to 3840, but this model has 48 to 96$"),
        ({(f"layers.{n}.attention.out", None): pair(2, 48, 48) for n in range(1, 4)}, r"layers.2.attention.out, which does not exist in this model, and 1 more that do not fit$"),
        ({("layers.0.attention.qkv", "k"): pair(2, 48, 48), ("layers.0.attention.qkv", "v"): pair(2, 24, 48)}, r"attention.qkv \(k\) from 48 to 48, but this model has 48 to 24$"),
    ]:  # fmt: skip
        with pytest.raises(LuminaError, match=words):
            apply_loras(
                model,
                [good, write(pairs, "diffusers" if len(pairs) == 2 else "kohya", tmp_path / "x.safetensors")],
            )
    save_file(
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(2, 2)},
        tmp_path / "flux.safetensors",
    )
    with pytest.raises(
        LuminaError,
        match=r"flux.safetensors is not a LoRA for this kind of model: none of its 1 tensor \(lora_unet_double",
    ):
        apply_loras(model, [tmp_path / "flux.safetensors"])
    assert_same_tensors(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers.0.attention.out.lora_up.weight": None}, "has no up matrix for layers.0.attention.out, only down"),
        ({"layers.0.attention.out.lora_up.weight": torch.full((48, 2), math.nan)}, "NaN or inf in the up of"),
        ({"layers.0.attention.out.lora_up.weight": torch.ones(48, 3)}, "has rank 2 in down and 3 in up"),
        ({"layers.0.attention.out.lora_up.weight": torch.ones(48)}, r"the up of .* must be a matrix, not of shape \(48,\)"),
        ({"layers.0.attention.out.dora_scale": torch.ones(7)}, "the DoRA magnitude of .* has shape .*7.*; expected one value per output row or per input column"),
        ({"layers_0.x": None, "lora_unet_layers_0_attention_out.lora_A.weight": torch.ones(2, 48)}, "twice"),
    ],
)  # fmt: skip
def test_a_damaged_lora_is_a_one_line_error(change, words):
    tensors = {
        "layers.0.attention.out.lora_down.weight": torch.ones(2, 48),
        "layers.0.attention.out.lora_up.weight": torch.ones(48, 2),
    }
    tensors = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
    with pytest.raises(LuminaError, match=words):
        read_pairs(AdapterFile("x", tensors))


def test_missing_and_hostile_files(tmp_path, model):
    with pytest.raises(LuminaError, match=r"holds 0 .safetensors files; give the path of the LoRA file"):
        apply_loras(model, [tmp_path])
    with pytest.raises(LuminaError, match="does not exist"):
        apply_loras(model, [tmp_path / "gone.safetensors:0.5"])
    torch.save({"a": exec}, tmp_path / "x.pt")
    with pytest.raises(LuminaError, match="cannot be loaded: it is damaged, or contains exec"):
        apply_loras(model, [tmp_path / "x.pt"])


def theirs(model):
    """Return the same network in diffusers."""
    from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel

    fields = {name: value for name, value in config_to_diffusers(CONFIG).items() if not name.startswith("_")}
    network = Lumina2Transformer2DModel(**fields)
    network.load_state_dict(to_diffusers(model.state_dict()))
    return network.eval()


@pytest.mark.parametrize("make", [apart, together])
@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("dora", [False, True])
@torch.no_grad()
def test_diffusers_loads_our_files_with_the_same_output(model, tmp_path, make, alpha, dora):
    from diffusers.loaders.lora_pipeline import Lumina2LoraLoaderMixin as Loader

    path = write(make(3, alpha, dora), "diffusers", tmp_path / "pytorch_lora_weights.safetensors")
    network, pictures, text, t = (
        theirs(model),
        torch.randn(2, 16, 8, 8),
        torch.randn(2, 5, 40),
        torch.tensor([0.3, 0.8]),
    )
    plain = network(pictures, t, text, torch.ones(2, 5, dtype=torch.bool), return_dict=False)[0]
    state_dict, metadata = Loader.lora_state_dict(tmp_path, weight_name=path.name, return_lora_metadata=True)
    Loader.load_lora_into_transformer(state_dict, network, adapter_name="x", metadata=metadata)
    wanted = network(pictures, t, text, torch.ones(2, 5, dtype=torch.bool), return_dict=False)[0]
    apply_loras(model, [path])
    got = model(pictures, t, text)
    assert (wanted - plain).abs().max() > 0.01  # it does something
    assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()))
