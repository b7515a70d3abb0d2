"""`lumina bench step`: the sides compute the same velocities, and rows contain what was measured."""

import json

import pytest
import torch

from lumina_cli.cli.app import run
from lumina_cli.core.bench import step
from lumina_cli.core.bench.ceiling import list_matmuls
from lumina_cli.core.bench.networks import (
    diffusers_step,
    exact_velocities,
    make_call,
    our_step,
    random_network,
)
from lumina_cli.core.bench.step import alternate, time_step
from lumina_cli.core.errors import UsageError
from lumina_cli.core.nextdit import NextDiTConfig

NANO = NextDiTConfig.named("nano")


@pytest.fixture
def bench(capsys):
    """Return a function that runs `lumina bench step` with these words -> (exit code, rows, stderr)."""

    def call(*words):
        code = run(["bench", "step", *words])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def test_rows_contain_ratio_spread_error_and_share(bench):
    code, rows, err = bench(
        "--model",
        "nano",
        "--random-weights",
        "--size",
        "64",
        "--against",
        "diffusers",
        "--tokens",
        "9",
        "--json",
    )
    assert (code, err) == (0, "")
    assert [row["side"] for row in rows] == ["lumina", "diffusers"]
    for row in rows:
        assert 0 < row["s_p20"] <= row["s_p50"] <= row["s_p80"]
        assert row["ratio_p20"] <= row["ratio"] <= row["ratio_p80"]
        assert row["error"] < 1e-5
        assert row["share"] == pytest.approx(row["ceiling_s"] / row["s_p50"])
        assert (row["dtype"], row["guided"], row["error_size"], row["repeats"]) == ("float32", False, 64, 3)
    assert rows[0]["ratio"] == 1


def test_guided_int8_step_reports_its_error(bench):
    words = ("--model", "nano", "--random-weights", "--size", "64", "--guided", "--tokens", "9", "--json")
    code, rows, _ = bench(*words, "--against", "diffusers", "--quantize", "int8", "--repeats", "1")
    assert code == 0
    ours, theirs = rows
    assert (ours["quantize"], theirs["quantize"]) == ("int8", None)
    assert 1e-4 < ours["error"] < 0.1
    assert theirs["error"] < 1e-5


def test_nano_is_timed_with_its_own_weights(bench):
    code, rows, _ = bench("--size", "64", "--repeats", "1", "--tokens", "5", "--json")
    assert (code, [row["side"] for row in rows]) == (0, ["lumina"])


@pytest.mark.parametrize("guided", [False, True])
def test_all_sides_compute_the_same_velocities(guided):
    model = random_network("nano", seed=3)
    call = make_call(NANO, 64, 7, guided, 3, torch.float32)
    exact = exact_velocities(model, call)
    assert len(exact) == 1 + guided
    with torch.inference_mode():
        for step in (our_step(model, guided), diffusers_step(model)):
            for found, wanted in zip(step(call), exact, strict=True):
                assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_bfloat16_error_is_that_of_rounding(bench):
    words = ("--model", "nano", "--random-weights", "--size", "64", "--dtype", "bfloat16", "--repeats", "1")
    _, rows, _ = bench(*words, "--against", "diffusers", "--json")
    assert all(1e-3 < row["error"] < 0.1 for row in rows)
    assert rows[0]["error"] <= rows[1]["error"]


def test_matmuls_sum_to_the_published_count():
    config = NextDiTConfig.named("lumina-image-2")
    call = make_call(config, 1024, 128, False, 0, torch.bfloat16)
    tera = sum(count * 2 * n * a * b * c / 1e12 for (n, a, b, c), count in list_matmuls(config, call).items())
    assert tera == pytest.approx(23.1, abs=0.1)


def test_sides_alternate_after_one_untimed_round():
    calls = []
    times = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_diffusers_network_shares_our_weights():
    model = random_network("nano")
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    theirs = diffusers_step(model).__closure__
    network = next(cell.cell_contents for cell in theirs if isinstance(cell.cell_contents, torch.nn.Module))
    assert {weight.untyped_storage().data_ptr() for weight in network.parameters()} <= own


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quantize", "int4"], "unknown quantization 'int4'; did you mean 'int8'?"),
        (["--against", "comfy"], "unknown implementation 'comfy' for --against; choose from diffusers"),
        (["--random-weights", "--size", "100"], "size 100 is not a multiple of 16 up to 8192"),
        (["--random-weights", "--model", "nan0"], "unknown model size 'nan0'; did you mean 'nano'?"),
        (["--random-weights", "--tokens", "300"], "tokens must be from 1 to 299, not 300"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
    ],
)
def test_usage_errors_exit_with_2_and_one_line(bench, words, message):
    code, rows, err = bench(*words)
    assert (code, rows) == (2, [])
    assert err.startswith(f"lumina bench: {message}")
    assert err.count("\n") == 1


def test_arguments_are_validated_before_a_network_is_built(monkeypatch):
    monkeypatch.setattr(step, "random_network", lambda *words: pytest.fail("built"))
    with pytest.raises(UsageError, match="repeats must be at least 1, not 0"):
        next(time_step("nano", 64, repeats=0))
