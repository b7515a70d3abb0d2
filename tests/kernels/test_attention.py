"""Each implementation of each operation against its float64 reference, on shapes that do not fit its blocks."""

import sys
import types
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from lumina_cli.core.bench.kernels import compare
from lumina_cli.core.errors import MissingDependency, UsageError
from lumina_cli.core.kernels import Implementation, Op, attention
from lumina_cli.core.kernels.attention import (
    BLOCK,
    OP,
    attend,
    blockwise,
    direct,
    flash,
    naive,
    reference,
    varlen,
)
from lumina_cli.core.kernels.dispatch import VARIABLE, choose_kernel
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.registry import KERNELS

SHAPES = [(2, 4, 2, 88, 48), (1, 6, 2, 7, 24), (2, 3, 3, 1, 8), (1, 3, 1, 70, 16)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def error(out, exact):
    return float((out.double() - exact).norm() / exact.norm())


def runnable(inputs):
    return [name for name, one in OP.implementations.items() if one.missing(*inputs) is None]


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_of_the_table_is_complete(name):
    op = KERNELS.load(name)
    assert isinstance(op, Op)
    assert op.name == name
    assert op.baseline in op.implementations


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_implementation_agrees_with_float64(shape, padding, dtype):
    inputs = OP.inputs(shape, dtype, padding=min(padding, shape[3] - 1))
    exact = OP.reference(*inputs)
    for name in runnable(inputs):
        out = OP.implementations[name].run(*inputs)
        assert (out.shape, out.dtype) == (exact.shape, dtype)
        assert error(out, exact) < TOLERANCE[dtype], name


@pytest.mark.parametrize("block", [1, 5, 16, 88, BLOCK])
def test_blocks_need_not_fit_and_a_block_may_be_all_padding(block):
    inputs = OP.inputs((2, 4, 2, 88, 8), padding=60)
    assert error(blockwise(*inputs, block=block), reference(*inputs)) < 2e-6


def test_padding_at_the_front_leaves_no_nan():
    q, k, v, mask = OP.inputs((1, 2, 1, 12, 8), padding=9)
    inputs = (q, k, v, mask.flip(1))
    assert error(blockwise(*inputs, block=4), reference(*inputs)) < 2e-6


def test_masked_keys_are_never_read():
    q, k, v, mask = OP.inputs((1, 4, 2, 20, 8), padding=6)
    k2, v2 = k.clone(), v.clone()
    k2[:, :, -6:], v2[:, :, -6:] = 100, -100
    for name in runnable((q, k, v, mask)):
        run = OP.implementations[name].run
        torch.testing.assert_close(run(q, k, v, mask), run(q, k2, v2, mask), msg=name)


def test_large_scores_do_not_overflow():
    q, k, v, mask = OP.inputs((1, 2, 1, 40, 8), padding=2)
    inputs = (q * 300, k * 300, v, mask)
    assert error(blockwise(*inputs, block=8), reference(*inputs)) < 1e-4


@pytest.mark.parametrize("scores", [2, 2 * 88 * 5, 2 * 88 * 100, 2 * 88 * 200, 2 * 88 * 400, 2**20])
@pytest.mark.parametrize("size", [1, 12])
def test_direct_cuts_queries_of_any_number_and_falls_back_where_scores_are_large(monkeypatch, scores, size):
    monkeypatch.setattr(attention, "SCORES", scores)
    q, k, v, _ = OP.inputs((2, 6, 3, 88, 16), torch.bfloat16)
    inputs = (q * size, k * size, v)
    assert error(direct(*inputs), reference(*inputs)) < 1e-2


def test_large_scores_keep_their_differences():
    """Scores near 200 differ by 1/2: as bfloat16 they would be equal."""
    q = torch.full((1, 1, 1, 16), 7.0, dtype=torch.bfloat16)
    k = torch.full((1, 1, 2, 16), 7.0, dtype=torch.bfloat16)
    k[0, 0, 1, 0] = 6.75
    v = torch.tensor([[[[1.0] * 16, [-1.0] * 16]]], dtype=torch.bfloat16)
    assert error(direct(q, k, v), reference(q, k, v)) < 1e-2


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attend_accepts_fewer_queries_than_keys_and_any_strides(dtype):
    q, k, v, _ = OP.inputs((2, 6, 3, 40, 16), dtype)
    out = torch.empty(2, 31, 6, 16, dtype=dtype)
    attend(q[:, :, 9:] / 4, k.transpose(1, 2).contiguous().transpose(1, 2), v, 1.0, out)
    assert error(out.transpose(1, 2), reference(q, k, v)[:, :, 9:]) < TOLERANCE[dtype]


def test_the_reference_is_the_plain_formula():
    q, k, v, _ = OP.inputs((1, 2, 1, 3, 4))
    q, k, v = q.double(), k.double(), v.double()
    for head in range(2):
        weights = (q[0, head] @ k[0, 0].T / 2).exp()
        expected = weights / weights.sum(1, keepdim=True) @ v[0, 0]
        torch.testing.assert_close(reference(q, k, v)[0, head], expected)


def test_inputs_are_the_same_for_the_same_seed_in_any_dtype():
    exact, rounded = OP.inputs((1, 2, 1, 5, 4), seed=3), OP.inputs((1, 2, 1, 5, 4), torch.bfloat16, seed=3)
    torch.testing.assert_close(exact[0].bfloat16(), rounded[0])
    assert not torch.equal(exact[0], OP.inputs((1, 2, 1, 5, 4), seed=4)[0])


def packed(query, key, value, query_ends, key_ends, max_q, max_k, enable_gqa=False):
    """Compute torch's varlen_attn sequence by sequence."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert max_k == int(key_ends.diff().max())
    outs = []
    for i in range(len(query_ends) - 1):
        one, two = query[query_ends[i] : query_ends[i + 1]], slice(key_ends[i], key_ends[i + 1])
        parts = (x.transpose(0, 1)[None] for x in (one, key[two], value[two]))
        outs.append(naive(*parts)[0].transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("padding", [0, 5])
def test_varlen_packs_the_real_keys_only(monkeypatch, padding):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", packed)
    inputs = OP.inputs((3, 4, 2, 11, 8), padding=padding)
    assert error(varlen(*inputs), reference(*inputs)) < 2e-6


def test_flash_gets_tokens_before_heads(monkeypatch):
    def flash_attn_func(q, k, v):
        return naive(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    module = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    inputs = OP.inputs((2, 4, 2, 11, 8))
    assert error(flash(*inputs), reference(*inputs)) < 2e-6


def test_rows_contain_error_time_and_reasons():
    inputs = OP.inputs(SHAPES[0])
    rows = {row["backend"]: row for row in compare(OP, inputs, repeats=3)}
    assert list(rows) == list(OP.implementations)
    for name in runnable(inputs):
        row = rows[name]
        assert 0 < row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert row["error"] < 1e-5
        assert row["times_sdpa"] > 0
    assert rows["sdpa"]["times_sdpa"] == 1
    for name in set(rows) - set(runnable(inputs)):
        assert set(rows[name]) == {"op", "backend", "unavailable"}


def test_only_requested_rows_are_yielded_but_the_baseline_is_timed():
    (row,) = compare(OP, OP.inputs(SHAPES[1]), repeats=1, only=["naive"])
    assert row["backend"] == "naive"
    assert row["times_sdpa"] > 0


def test_requesting_an_unavailable_backend_raises():
    inputs = OP.inputs(SHAPES[1])
    with pytest.raises(UsageError, match=r"unknown attention backend 'fash'; did you mean 'flash'\?"):
        next(compare(OP, inputs, only=["fash"]))
    out_of_reach = Implementation(naive, lambda *inputs: "naive needs luck")
    op = replace(OP, implementations={**OP.implementations, "naive": out_of_reach})
    with pytest.raises(MissingDependency, match="--backend naive needs luck"):
        next(compare(op, inputs, only=["sdpa", "naive"]))


def test_implementations_take_turns():
    calls = []

    def spy(name):
        def run(*inputs):
            calls.append(name)
            return naive(*inputs)

        return Implementation(run)

    op = replace(OP, implementations={"a": spy("a"), "b": spy("b")}, baseline="a")
    rows = list(compare(op, OP.inputs(SHAPES[2]), repeats=4))
    assert [row["backend"] for row in rows] == ["a", "b"]
    assert calls == ["a", "b"] * (len(calls) // 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("padding", [0, 30])
def test_every_implementation_agrees_on_cuda(padding):
    inputs = OP.inputs((2, 24, 8, 200, 96), torch.bfloat16, "cuda", padding=padding)
    assert {"naive", "sdpa", "blockwise"} <= set(runnable(inputs))
    for row in compare(OP, inputs, repeats=2):
        assert row.get("error", 0) < 1e-2, row


def rows_one_by_one(q, k, v, query_ends, key_ends):
    """Compute each entry with the float64 reference."""
    rows = []
    for (a, b), (c, d) in zip(pairwise(query_ends), pairwise(key_ends), strict=True):
        one = [x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d])]
        group = one[0].shape[1] // one[1].shape[1]
        keys, values = (x.double().repeat_interleave(group, dim=1) for x in one[1:])
        rows.append(((one[0].double() @ keys.transpose(-1, -2)).softmax(-1) @ values)[0].transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture
def variable_kernels(monkeypatch):
    """Replace flash-attn and torch's varlen attention by CPU versions that check their arguments."""
    import torch.nn.attention.varlen as real

    def check(q, k, v, query_ends, key_ends, longest_query, longest_key, scale):
        for ends, tokens, longest in ((query_ends, q, longest_query), (key_ends, k, longest_key)):
            assert ends.dtype == torch.int32
            assert ends[-1] == len(tokens)
            assert longest == int(ends.diff().max())
        assert scale == 1.0
        return rows_one_by_one(q, k, v, query_ends.tolist(), key_ends.tolist()).to(v.dtype)

    def flash_varlen(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale):
        return check(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale)

    def torch_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, enable_gqa):
        assert enable_gqa == (q.shape[1] != k.shape[1])
        return check(q, k, v, cu_q, cu_k, max_q, max_k, scale)

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_varlen_func=flash_varlen))
    monkeypatch.setattr(real, "varlen_attn", torch_varlen)
    for name in VARIABLE:
        monkeypatch.setitem(OP.implementations, name, Implementation(OP.implementations[name].run))


@pytest.mark.parametrize("kernel", VARIABLE)
@pytest.mark.parametrize("run_layers", [None, lambda stage: stage.run(range(stage.entries))])
def test_a_network_packs_all_rows_into_one_call_of_a_variable_kernel(variable_kernels, kernel, run_layers):
    config = NextDiTConfig(
        dim=48, num_layers=3, num_heads=6, num_kv_heads=2, multiple_of=16, text_dim=40, axes_dim=(4, 2, 2)
    )
    model = NextDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    x = [torch.randn(16, *size) for size in ((8, 8), (4, 12), (8, 8))]
    text, mask = torch.randn(3, 9, 40), torch.arange(9) < torch.tensor([[5], [9], [1]])
    t = torch.rand(3)
    with torch.inference_mode():
        wanted = model(x, t, text, mask)
        model.kernel = kernel
        found = model.velocity_packed(x, t, text, mask, run_layers=run_layers)
    for one, two in zip(found, wanted, strict=True):
        assert error(one, two.double()) < 1e-5


def test_auto_chooses_the_fastest_kernel_that_runs_here():
    cpu = torch.device("cpu")
    assert choose_kernel("auto", cpu, torch.bfloat16) == "direct"
    assert choose_kernel("auto", cpu, torch.float32) == "sdpa"
    assert choose_kernel("sdpa", cpu, torch.bfloat16) == "sdpa"
    with pytest.raises(UsageError, match="did you mean 'flash'"):
        choose_kernel("flahs", cpu, torch.bfloat16)
    with pytest.raises(MissingDependency, match="direct needs --dtype bfloat16"):
        choose_kernel("direct", cpu, torch.float32)
    with pytest.raises(MissingDependency, match="flash needs a CUDA device"):
        choose_kernel("flash", cpu, torch.bfloat16)


def test_torchs_own_attention_is_called_if_requested(monkeypatch):
    q, k, v, _ = OP.inputs((2, 4, 2, 88, 48), torch.bfloat16)
    exact = OP.reference(q, k, v).transpose(1, 2)
    called = []
    monkeypatch.setattr(attention, "direct_into", lambda *words: called.append(words))
    out = torch.empty_like(q.transpose(1, 2))
    attend(q, k, v, 48**-0.5, out, "sdpa")
    assert not called
    assert error(out, exact) < 1e-2
