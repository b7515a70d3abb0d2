"""`lumina bench attention`: rows, exact words and exit codes."""

import json

import pytest
import torch

from lumina_cli.cli.app import run

TINY = ("--shape", "2,4,2,17,8", "--repeats", "2", "--device", "cpu", "--dtype", "float32")


@pytest.fixture
def bench(capsys):
    """Return a function that runs `lumina bench attention` with these words -> (exit code, rows, stderr)."""

    def call(*words):
        code = run(["bench", "attention", *words])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return call


def test_each_backend_has_a_row_with_error_and_time_or_a_reason(bench):
    code, rows, err = bench(*TINY)
    assert (code, err) == (0, "")
    names = ["naive", "sdpa", "grouped", "blockwise", "direct", "flash", "varlen"]
    assert [row["backend"] for row in rows] == names
    for row in rows[:4]:
        assert row["error"] < 1e-5
        assert row["ms_p20"] <= row["ms_p50"] <= row["ms_p80"]
        assert (row["shape"], row["dtype"], row["device"]) == ("2,4,2,17,8", "float32", "cpu")
    assert rows[4]["unavailable"] == "direct needs --dtype bfloat16"
    for row in rows[5:]:
        assert row["unavailable"].startswith(f"{row['backend']} needs a CUDA device")
        assert "error" not in row


@pytest.mark.parametrize("shape", ["1,24,8,5,96", "1,4,2,1,48"])
def test_odd_shapes_run(bench, shape):
    code, rows, _ = bench(
        "--shape", shape, "--repeats", "1", "--device", "cpu", "--backend", "blockwise", "--backend", "naive"
    )
    assert (code, [row["backend"] for row in rows]) == (0, ["blockwise", "naive"])


def test_padding_masks_keys(bench):
    code, rows, _ = bench(*TINY, "--padding", "5", "--backend", "blockwise")
    assert code == 0
    assert rows[0]["error"] < 1e-5


def test_named_shape_runs(bench):
    code, rows, _ = bench("--shape", "nano", "--repeats", "1", "--device", "cpu", "--backend", "sdpa")
    assert code == 0
    assert rows[0]["times_sdpa"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_unavailable_backend_exits_with_5(bench):
    code, rows, err = bench("--backend", "flash")
    assert (code, rows) == (5, [])
    assert err == (
        "lumina bench: --backend flash needs a CUDA device and `pip install 'lumina-cli[flash]'`; "
        "this machine has no CUDA device\n"
    )
    assert bench("--device", "cuda")[0] == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backend", "blokwise"], "unknown attention backend 'blokwise'; did you mean 'blockwise'?"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (
            ["--shape", "nanoo"],
            "unknown shape 'nanoo'; choose from nano, lumina-image-2, or B,H,KV,L,D such as 2,24,8,512,96",
        ),
        (["--shape", "1,2,0,4,5"], "unknown shape '1,2,0,4,5'"),
        (["--shape", "1,5,2,4,8"], "shape 1,5,2,4,8: 5 heads are not a multiple of 2 KV heads"),
        (["--shape", "1,4,2,4,8", "--padding", "4"], "--padding 4 masks all 4 keys"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_usage_errors_exit_with_2_and_one_line(bench, words, message):
    code, rows, err = bench(*words)
    assert (code, rows) == (2, [])
    assert err.startswith(f"lumina bench: {message}")
    assert err.count("\n") == 1


def test_group_help_lists_commands(capsys):
    assert run(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert "attention" in out
    assert run(["bench", "nothing"]) == 2
