"""Next-DiT against the official implementation, against diffusers, and by its own properties."""

import random

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from safetensors.torch import load_file

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.blocks import RMSNorm, time_waves
from lumina_cli.core.nextdit.convert import config_to_diffusers, from_official, to_diffusers
from lumina_cli.core.nextdit.rope import rotate
from lumina_cli.core.nextdit.sequence import (
    image_rotation,
    padded_layout,
    patchify,
    text_rotation,
    unpatchify,
)

GOLDEN = "tests/golden/official_nextdit_tiny.safetensors"
TINY = NextDiTConfig(
    dim=48, num_layers=3, num_heads=3, num_kv_heads=1, multiple_of=16, text_dim=40, axes_dim=(8, 4, 4)
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden(request):
    return load_file(request.config.rootpath / GOLDEN)


@pytest.fixture
def model(golden):
    model = NextDiT(TINY)
    weights = {name[8:]: tensor for name, tensor in golden.items() if name.startswith("weights.")}
    model.load_state_dict(from_official(weights, TINY))
    return model


@pytest.fixture
def inputs(golden):
    return golden["in.x"], golden["in.t"], golden["in.caption_features"], golden["in.caption_mask"]


def assert_close(found, wanted, tolerance=1e-5):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def randomised(config, seed=0):
    """Return a network in which every weight affects the output: the published initialization zeroes gates."""
    torch.manual_seed(seed)
    model = NextDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    return model


# --- the official implementation


def test_outputs_are_the_official_ones(model, golden, inputs):
    with torch.no_grad():
        assert_close(model(*inputs), golden["out.batch"])


def test_mixed_sizes_are_the_official_ones(model, golden, inputs):
    x, t, text, mask = inputs
    with torch.no_grad():
        found = model([x[0], golden["in.x_small"]], t[:2], text[:2], mask[:2])
    assert isinstance(found, list)
    assert_close(found[0], golden["out.mixed_0"])
    assert_close(found[1], golden["out.mixed_1"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_the_official_ones(model, golden, inputs, checkpointing):
    _, t, text, mask = inputs
    model.checkpointing = checkpointing
    losses = (
        (model(golden["out.x_t"], t, text, mask) - golden["out.velocity_target"]).square().mean((1, 2, 3))
    )
    assert_close(losses, golden["out.loss_per_sample"])
    losses.mean().backward()
    parameters = dict(model.named_parameters())
    names = [name for name in golden if name.startswith("grad.")]
    assert len(names) == 7
    for name in names:
        assert_close(parameters[name[5:]].grad, golden[name])


# --- diffusers

SHAPES = random.Random(7)
CONFIGS = [
    NextDiTConfig(
        dim=heads * sum(axes),
        num_layers=SHAPES.randint(1, 3),
        num_refiner_layers=SHAPES.randint(1, 2),
        num_heads=heads,
        num_kv_heads=kv_heads,
        multiple_of=multiple_of,
        ffn_dim=ffn_dim,
        text_dim=SHAPES.choice([20, 32, 41]),
        axes_dim=axes,
        in_channels=SHAPES.choice([4, 16]),
    )
    for heads, kv_heads, axes, multiple_of, ffn_dim in [
        (4, 2, (4, 4, 4), 16, None),
        (6, 1, (8, 4, 4), 32, 96),
        (3, 3, (4, 6, 2), 8, 88),
        (8, 4, (8, 8, 8), 64, 512),
    ]
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"dim{config.dim}")
def test_outputs_are_those_of_diffusers(config):
    model = randomised(config)
    theirs = Lumina2Transformer2DModel.from_config(config_to_diffusers(config))
    theirs.load_state_dict(to_diffusers(model.state_dict()))
    generator = torch.Generator().manual_seed(config.dim)
    for height, width, lengths in [(8, 8, (5, 5)), (4, 12, (9, 1)), (6, 10, (3, 9))]:
        latents = torch.randn(2, config.in_channels, height, width, generator=generator)
        t = torch.rand(2, generator=generator)
        text = torch.randn(2, 9, config.text_dim, generator=generator)
        mask = torch.arange(9) < torch.tensor(lengths)[:, None]
        with torch.no_grad():
            assert_close(model(latents, t, text, mask), theirs(latents, t, text, mask).sample)


# --- sizes


@pytest.mark.parametrize(
    ("name", "official_count"),
    [
        ("lumina-image-2", 2_609_771_456),
        ("lumina-image-2-3b", 3_734_828_912),
        ("lumina-image-2-4b", 4_792_618_496),
        ("lumina-image-2-7b", 8_247_662_336),
    ],
)
def test_parameter_counts_are_the_published_ones(name, official_count):
    """The official count includes the unused `norm_final`, as wide as the model, which ours omits."""
    config = NextDiTConfig.named(name)
    with torch.device("meta"):
        model = NextDiT(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == official_count - config.dim
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_released_config():
    config = NextDiTConfig.named("lumina-image-2")
    assert (config.head_dim, config.hidden_dim, config.time_dim, config.max_text_tokens) == (
        96,
        9216,
        1024,
        299,
    )
    with torch.device("meta"):
        model = NextDiT(config)
    assert len(model.state_dict()) == 399
    assert len(to_diffusers(model.state_dict())) == 459
    assert sum(p.numel() for p in model.parameters()) == 2_609_769_152


def test_an_unknown_name_is_a_usage_error():
    with pytest.raises(UsageError, match="unknown model size 'nanno'; did you mean 'nano'"):
        NextDiTConfig.named("nanno")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 50}, "dim 50 is not a multiple of num_heads 3"),
        ({"num_kv_heads": 2}, "num_heads 3 is not a multiple of num_kv_heads 2"),
        ({"axes_dim": (8, 4, 8)}, "must add up to head_dim 16"),
        ({"axes_dim": (8, 5, 3)}, "three even integers"),
        ({"ffn_dim": 100}, "ffn_dim 100 is not a multiple of multiple_of 16"),
    ],
)
def test_an_invalid_config_is_refused(change, words):
    fields = {"dim": 48, "num_layers": 3, "num_heads": 3, "num_kv_heads": 1, "multiple_of": 16}
    with pytest.raises(ValueError, match=words):
        NextDiTConfig(**{**fields, "text_dim": 40, "axes_dim": (8, 4, 4), **change})


# --- initialization


def test_a_new_network_predicts_exactly_zero(inputs):
    torch.manual_seed(0)
    assert NextDiT(TINY)(*inputs).abs().max() == 0


def test_a_new_network_has_the_published_distributions():
    torch.manual_seed(0)
    model = NextDiT(NextDiTConfig.named("nano"))
    weights = dict(model.named_parameters())
    qkv = weights["layers.0.attention.qkv.weight"]
    bound = (6 / sum(qkv.shape)) ** 0.5
    assert bound * 0.99 < qkv.abs().max() <= bound
    assert weights["t_embedder.mlp.0.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    assert weights["cap_embedder.1.weight"].std().item() == pytest.approx(0.02, rel=0.02)
    zeros = [n for n in weights if n.endswith("bias") or "adaLN" in n or n.startswith("final_layer")]
    assert all((weights[name] == 0).all() for name in zeros)
    norms = [n for n in weights if "norm" in n or n == "cap_embedder.0.weight"]
    assert all((weights[name] == 1).all() for name in norms)


# --- padding, batches and text computed once


@pytest.mark.parametrize("junk", [1e4, float("nan"), float("inf")])
def test_padding_of_a_caption_does_not_leak(model, inputs, junk):
    x, t, text, mask = inputs
    assert 0 < mask.sum(1).min() < mask.shape[1]
    spoiled = torch.where(mask.bool()[..., None], text, junk)
    with torch.no_grad():
        assert torch.equal(model(x, t, spoiled, mask), model(x, t, text, mask))


def test_gradients_are_finite_and_nothing_flows_to_padding(model, inputs):
    x, t, text, mask = inputs
    text = text.clone().requires_grad_()
    model(x, t, text, mask).square().mean().backward()
    assert (text.grad[~mask.bool()] == 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_a_sample_does_not_depend_on_its_batch(model, golden, inputs):
    x, t, text, mask = inputs
    sizes = [x[0], golden["in.x_small"], x[2]]
    with torch.no_grad():
        together = model(sizes, t, text, mask)
        for index, picture in enumerate(sizes):
            alone = model(picture[None], t[index, None], text[index, None], mask[index, None])[0]
            assert_close(together[index], alone)


def test_text_can_be_encoded_once_for_all_steps(model, inputs):
    x, t, text, mask = inputs
    with torch.no_grad():
        encoded = model.encode_text(text, mask)
        assert encoded.lengths == tuple(mask.sum(1).tolist())
        assert torch.equal(model(x, t / 2, encoded), model(x, t / 2, text, mask))


def test_no_mask_means_that_all_tokens_are_real(model, inputs):
    x, t, text, mask = inputs
    with torch.no_grad():
        assert torch.equal(model(x, t, text), model(x, t, text, torch.ones_like(mask)))
    assert padded_layout(TINY, (9, 9), ((2, 3), (2, 3)), CPU).joint_mask is None
    assert padded_layout(TINY, (9, 9), ((2, 3), (2, 3)), CPU).joint.cos.shape == (1, 15, 8)
    assert padded_layout(TINY, (9, 4), ((2, 3), (2, 3)), CPU).joint_mask.sum(-1).flatten().tolist() == [
        15,
        10,
    ]


def test_tables_built_while_sampling_are_usable_in_training(model, inputs):
    x, t, text, _ = inputs
    padded_layout.cache_clear()
    text_rotation.cache_clear()
    with torch.inference_mode():
        model(x, t, text)
    model(x, t, text).square().mean().backward()


# --- precision and compilation


def test_autocast_keeps_the_residual_stream_in_float32(model, inputs):
    seen = []
    for block in [*model.layers, *model.noise_refiner, *model.context_refiner]:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.no_grad():
        exact = model(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(*inputs)
    assert set(seen) == {torch.float32}
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_a_bfloat16_network_returns_the_dtype_of_its_latents(model, inputs):
    with torch.no_grad():
        exact = model(*inputs)
        rough = model.to(torch.bfloat16)(*inputs)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.06 * exact.norm()


def test_norms_compute_their_statistics_in_float32():
    x = torch.full((1, 4096), 300.0, dtype=torch.float16)
    assert torch.equal(RMSNorm(4096, 1e-5).half()(x), torch.ones_like(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler itself warns while it traces
@pytest.mark.parametrize("autocast", [False, True])
def test_a_block_compiles_whole_and_computes_the_same(model, autocast):
    block = model.layers[0]
    layout = padded_layout(TINY, (6, 3), ((2, 3), (2, 3)), CPU)
    x, c = torch.randn(2, 12, 48, requires_grad=True), torch.randn(2, 48)
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    for mask in (None, layout.joint_mask):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = compiled(x, mask, *layout.joint, c)
            assert_close(found, block(x, mask, *layout.joint, c))
        found.sum().backward()


# --- positions


def test_positions_are_as_published():
    text = text_rotation(TINY, 3, CPU)
    assert (text.cos[0, 0] == 1).all()
    assert (text.sin[0, 0] == 0).all()
    rates = 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    assert torch.equal(text.cos[0, 2, :4], (2 * rates).cos().float())
    assert (text.cos[0, 2, 4:] == 1).all()
    image = image_rotation(TINY, (1,), ((2, 3),), CPU)
    assert torch.equal(image.sin[0, 0, :4], rates.sin().float())
    assert (image.sin[0, 0, 4:] == 0).all()
    last = 10000.0 ** -(torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    assert torch.equal(image.sin[0, 5, 4:], torch.cat([last.sin(), (2 * last).sin()]).float())


def test_rotation_is_a_complex_product():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float32)
    angles = torch.randn(2, 5, 4)
    turned = (
        torch.view_as_complex(x.unflatten(-1, (4, 2)))
        * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    )
    assert torch.allclose(
        rotate(x, angles.cos(), angles.sin()), torch.view_as_real(turned).flatten(-2), atol=1e-6
    )


def test_time_waves_start_with_cosines():
    waves = time_waves(torch.tensor([0.0, 0.5]))
    assert waves[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert waves[1, 128].item() == pytest.approx(0.479426, abs=1e-6)


def test_patches_have_channels_last_and_unpatchify_inverts_them():
    latents = torch.randn(2, 16, 6, 10)
    tokens = patchify(latents, 2)
    assert tokens.shape == (2, 15, 64)
    assert torch.equal(tokens[1, 7].view(2, 2, 16), latents[1, :, 2:4, 4:6].permute(1, 2, 0))
    assert torch.equal(unpatchify(tokens, (6, 10), 2), latents)


# --- inputs that do not fit


def arguments(height=8, width=8, tokens=4, channels=16, text_dim=40, mask=None):
    return torch.zeros(1, channels, height, width), torch.zeros(1), torch.zeros(1, tokens, text_dim), mask


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 7}, "latent height 7 is not a multiple of the patch size 2"),
        ({"width": 9}, "latent width 9 is not a multiple of the patch size 2"),
        ({"width": 0}, "latent width 0 is not a multiple of the patch size 2"),
        ({"height": 1026}, "latent height 1026 is too large; the position table ends at 1024"),
        ({"tokens": 300}, "a caption has 300 tokens; at most 299 fit"),
        ({"tokens": 0}, "a caption has no token"),
        ({"channels": 4}, r"latents have shape \(4, 8, 8\); each image must be \(16, H, W\)"),
        ({"text_dim": 41}, r"text has shape \(1, 4, 41\); it must be \(B, M, 40\)"),
        ({"mask": torch.tensor([[1, 0, 1, 0]])}, "text_mask has a gap"),
        ({"mask": torch.zeros(1, 4)}, "a caption has no token"),
        ({"mask": torch.ones(1, 5)}, r"text_mask has shape \(1, 5\); it must be \(1, 4\)"),
    ],
)
def test_an_input_that_does_not_fit_is_a_value_error_of_one_line(change, words):
    model = NextDiT(TINY)
    with pytest.raises(ValueError, match=words) as caught:
        model(*arguments(**change))
    assert isinstance(caught.value, LuminaError)
    assert "\n" not in str(caught.value)


def test_the_longest_caption_and_a_padded_wider_one_fit():
    model = randomised(TINY)
    with torch.no_grad():
        assert model(*arguments(tokens=299)).isfinite().all()
        mask = torch.arange(310)[None] < 299
        assert model(*arguments(tokens=310, mask=mask)).isfinite().all()


def test_batch_sizes_that_differ_are_refused():
    latents, _, text, _ = arguments()
    with pytest.raises(ValueError, match="batch sizes differ: 1 latents, 2 times, 1 captions"):
        NextDiT(TINY)(latents, torch.zeros(2), text)
