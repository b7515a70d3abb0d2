"""Inference: packed batches, the last layer on image tokens, int8 layers, and code that runs the main layers."""

import pytest
import torch

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.kernels import attention
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.packed import fused
from lumina_cli.core.nextdit.packed.quantize import LinearInt8, quantize
from lumina_cli.core.registry import QUANTIZERS
from lumina_cli.core.sampling.latents import draw_latents

TINY = NextDiTConfig(
    dim=48, num_layers=3, num_heads=6, num_kv_heads=2, multiple_of=16, text_dim=40, axes_dim=(4, 2, 2)
)
SIZES = [(8, 8), (8, 8), (4, 12), (8, 8)]
LENGTHS = [5, 5, 9, 1]


def randomised(config=TINY, seed=0):
    """Return a network in which every weight affects the output."""
    torch.manual_seed(seed)
    model = NextDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    return model


def inputs(seed, rows=4, lengths=LENGTHS, side=8):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(rows, 16, side, side, generator=generator)
    text = torch.randn(rows, max(lengths), 40, generator=generator)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return latents, torch.rand(rows, generator=generator), text, mask


def error(found, wanted):
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("one_time", [False, True])
def test_packed_equals_padded(seed, one_time):
    """With gradients the padded path runs, without them the packed one."""
    model, (x, t, text, mask) = randomised(seed=seed), inputs(seed)
    t = t[:1].expand(4) if one_time else t
    padded = model(x, t, text, mask)
    assert padded.requires_grad
    with torch.inference_mode():
        packed = model(x, t, text, mask)
    assert not torch.equal(packed, padded)  # two paths, not one
    assert error(packed, padded) < 1e-5


def test_packed_equals_padded_for_images_of_mixed_sizes():
    model, (_, t, text, mask) = randomised(), inputs(3)
    x = [torch.randn(16, *size) for size in SIZES]
    padded = model(x, t, text, mask)
    with torch.no_grad():
        packed = model(x, t, text, mask)
    for one, two in zip(packed, padded, strict=True):
        assert error(one, two) < 1e-5


@pytest.mark.parametrize("one_time", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_images_with_two_captions_each_equal_a_doubled_batch(gradients, one_time):
    model, (x, t, text, mask) = randomised(), inputs(3)
    t = t[:1].expand(4) if one_time else t
    with torch.set_grad_enabled(gradients):
        twice = model(torch.cat([x[:2], x[:2]]), t[:2].repeat(2), text, mask)
        assert error(model(x[:2], t[:2], text, mask), twice) < 1e-5
        pictures = [x[0], x[1, :, :4]]
        rows = model(pictures * 2, t[:2].repeat(2), text, mask)
        for one, two in zip(model(pictures, t[:2], text, mask), rows, strict=True):
            assert one.shape == two.shape
            assert error(one, two) < 1e-5


def test_guidance_refines_an_image_once_for_both_captions(monkeypatch):
    model, (x, _, text, mask) = randomised(), inputs(4)
    seen = []
    embed = model.x_embedder.forward
    monkeypatch.setattr(model.x_embedder, "forward", lambda tokens: seen.append(len(tokens)) or embed(tokens))
    draw_latents(model, x, text, mask, text[:1, :1], None, Plan(solver="euler", steps=2, guide_until=1.0))
    assert seen == [x[:, 0].numel() // 4] * 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_batch_of_eight_equals_eight_singles(seed):
    model = randomised()
    x, t, text, mask = inputs(seed, 8, [1, 4, 4, 9, 2, 2, 2, 7])
    with torch.inference_mode():
        together = model(x, t, text, mask)
        for i in range(8):
            alone = model(x[i, None], t[i, None], text[i, None], mask[i, None])[0]
            assert error(together[i], alone) < 1e-5


def test_the_packed_path_is_automatic_and_gradients_use_the_padded_one(monkeypatch):
    model, called = randomised(), []
    packed = model.velocity_packed
    monkeypatch.setattr(model, "velocity_packed", lambda *words: called.append(1) or packed(*words))
    model(*inputs(0)).sum().backward()
    assert not called
    with torch.no_grad():
        model(*inputs(0))
        assert len(called) == 1
        with torch.autocast("cpu", torch.bfloat16):
            model(*inputs(0))
    assert len(called) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler itself warns while it traces
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_loops_compute_the_same(dtype):
    model, (x, t, text, mask) = randomised().to(dtype), inputs(5)
    limit = 1e-5 if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        plain = model(x, t, text, mask)
        model.fused = True
        assert error(model(x, t, text, mask), plain) < limit
        assert error(model(x[:1], t[:1], text[:1], mask[:1]), plain[:1]) < limit


def test_compiling_without_a_compiler_names_what_to_install(monkeypatch):
    monkeypatch.setattr(fused, "find_compiler", lambda: None)
    with pytest.raises(MissingDependency, match="needs a C"):
        fused.check_compiler()


def test_inputs_and_encoded_text_are_left_as_they_were():
    model, (x, t, text, mask) = randomised(), inputs(0)
    with torch.inference_mode():
        encoded = model.encode_text(text, mask)
        before = [part.clone() for part in (x, encoded.features)]
        first = model(x, t, encoded)
        assert torch.equal(model(x, t, encoded), first)
    assert all(torch.equal(*pair) for pair in zip(before, (x, encoded.features), strict=True))


# --- run_layers


def test_running_all_layers_by_hand_changes_nothing():
    model, words = randomised(), inputs(1)
    with torch.no_grad():
        assert torch.equal(
            model.velocity_packed(*words, run_layers=lambda stage: stage.run(range(stage.entries))),
            model(*words),
        )


def test_rows_may_run_in_any_order_and_continue_from_their_first_layer():
    model, words = randomised(), inputs(1)

    def bit_by_bit(stage):
        assert stage.entries == 4
        done = dict(zip([2, 0], stage.run([2, 0]), strict=True))
        started = stage.first([3])[0].clone()
        done |= dict(zip([1, 3], stage.run([1, 3]), strict=True))
        assert torch.equal(stage.first([3])[0], started)
        return [done[row] for row in range(4)]

    with torch.no_grad():
        assert error(model.velocity_packed(*words, run_layers=bit_by_bit), model(*words)) < 1e-6


def test_first_layer_and_signal_are_those_of_the_network():
    model, (x, t, text, mask) = randomised(), inputs(1, 1, [5])
    block, seen = model.layers[0], {}
    hooks = [
        block.attention.register_forward_pre_hook(lambda _, args: seen.update(signal=args[0][0])),
        block.register_forward_pre_hook(lambda _, args: seen.update(before=args[0][0, 5:])),
        block.register_forward_hook(lambda _, args, out: seen.update(after=out[0, 5:])),
    ]
    model(x, t, text, mask)
    for hook in hooks:
        hook.remove()

    def look(stage):
        assert error(stage.signal(0), seen["signal"].detach()) < 1e-5
        assert error(stage.image(0), seen["before"].detach()) < 1e-5
        assert error(stage.first([0])[0], seen["after"].detach()) < 1e-5
        return stage.run([0])

    with torch.no_grad():
        model.velocity_packed(x, t, text, mask, run_layers=look)


def test_skipped_rows_are_not_computed(monkeypatch):
    model, words, tokens = randomised(), inputs(1), []
    run = attention.grouped
    monkeypatch.setattr(
        attention, "grouped", lambda q, *rest, **more: tokens.append(q.shape[0]) or run(q, *rest, **more)
    )
    with torch.no_grad():
        model.velocity_packed(
            *words, run_layers=lambda stage: [stage.image(0), *stage.run([1]), stage.image(2), stage.image(3)]
        )
    assert sum(tokens[-len(model.layers) :]) == len(model.layers)


def test_a_network_of_one_layer_runs():
    model = randomised(NextDiTConfig(**{**vars(TINY), "num_layers": 1}))
    x, t, text, mask = inputs(5)
    with torch.no_grad():
        whole = model(x, t, text, mask)
        begun = model.velocity_packed(
            x, t, text, mask, run_layers=lambda stage: (stage.first([1]), stage.run(range(4)))[1]
        )
    assert error(whole, model(x, t, text, mask).detach()) < 1e-5
    assert error(begun, whole) < 1e-6


# --- bfloat16 and int8


@pytest.fixture(scope="module")
def wide():
    """Return a network wide enough for rounding errors to average out."""
    config = NextDiTConfig(
        dim=192, num_layers=3, num_heads=4, num_kv_heads=2, multiple_of=16, ffn_dim=512, text_dim=40,
        axes_dim=(16, 16, 16),
    )  # fmt: skip
    torch.manual_seed(0)
    model = NextDiT(config)
    for name, parameter in model.named_parameters():
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.1
        torch.nn.init.normal_(
            parameter, mean=float("norm" in name or name == "cap_embedder.0.weight"), std=spread
        )
    return model.bfloat16()


def exact_and(model, change):
    """Return the relative error, against float32, of a bfloat16 copy of the model after `change`."""
    words = inputs(2, side=16)
    rough = NextDiT(model.config).bfloat16()
    rough.load_state_dict(model.state_dict())
    exact = NextDiT(model.config)
    exact.load_state_dict(model.state_dict())
    with torch.inference_mode():
        return error(change(rough)(*words), exact(*words))


def test_bfloat16_is_at_least_as_accurate_as_diffusers(wide):
    from diffusers import Lumina2Transformer2DModel

    from lumina_cli.core.nextdit.convert import config_to_diffusers, to_diffusers

    def theirs(model):
        other = Lumina2Transformer2DModel.from_config(config_to_diffusers(wide.config)).bfloat16()
        other.load_state_dict(to_diffusers(wide.state_dict()))
        return lambda x, t, text, mask: other(x.bfloat16(), t, text.bfloat16(), mask).sample

    assert exact_and(wide, lambda model: model) <= exact_and(wide, theirs)


@pytest.mark.parametrize(("kind", "limit"), [("int8", 0.06), ("int8-weights", 0.04)])
def test_int8_adds_little_error(wide, kind, limit):
    plain = exact_and(wide, lambda model: model)
    assert plain < exact_and(wide, lambda model: quantize(model, kind)) < limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_int8_layer_is_the_matmul_of_rounded_factors(dtype):
    torch.manual_seed(0)
    layer = torch.nn.Linear(70, 33, bias=False).to(dtype)
    x = torch.randn(2, 65, 70, dtype=dtype) * torch.logspace(-3, 3, 65)[:, None].to(dtype)
    x[0, 0] = 0
    weight = layer.weight.detach().double()
    scale, levels = weight.abs().amax(1, keepdim=True) / 127, None
    levels = (weight / scale).round() * scale
    tops = x.double().abs().amax(-1, keepdim=True) / 127
    rounded = (x.double() / tops.clamp(min=1e-300)).round() * tops
    with torch.inference_mode():
        found = LinearInt8(layer)(x)
    assert (found.shape, found.dtype) == ((2, 65, 33), dtype)
    assert (found[0, 0] == 0).all()
    for one, two in zip(found.flatten(0, 1)[1:], (rounded @ levels.T).flatten(0, 1)[1:], strict=True):
        assert error(one, two) < (1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_only_the_large_layers_of_blocks_change():
    model = quantize(randomised(), "int8")
    kinds = {name for name, layer in model.named_modules() if isinstance(layer, LinearInt8)}
    assert len(kinds) == 5 * (3 + 2 + 2)
    assert {name.rpartition(".")[2] for name in kinds} == {"qkv", "out", "w1", "w2", "w3"}
    assert all(isinstance(layer, torch.nn.Linear) for layer in (model.x_embedder, model.final_layer.linear))


def test_models_that_cannot_be_quantized_are_one_line_errors():
    with pytest.raises(UsageError, match="unknown quantization 'int4'; did you mean 'int8'"):
        quantize(randomised(), "int4")
    for kind in QUANTIZERS:
        with pytest.raises(LuminaError, match="the model is quantized already; its layers"):
            quantize(quantize(randomised(), kind), kind)
    with pytest.raises(LuminaError, match="int8 on a CPU needs a model in bfloat16 or float32"):
        quantize(randomised().half(), "int8")
