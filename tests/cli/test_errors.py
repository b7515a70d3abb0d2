"""Errors are one line on stderr with the documented exit code; --debug adds the traceback."""

import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.main import get_command

import lumina_cli
from lumina_cli.cli import app as application
from lumina_cli.cli.options import OTHER_NAMES
from lumina_cli.core.errors import LuminaError, MissingDependency, TooManyRejects, UsageError
from lumina_cli.core.registry import DIFFUSERS_NAMES


@pytest.fixture
def doctor_raises(monkeypatch):
    """Return a function that makes `lumina doctor` raise an error."""

    def install(error: BaseException):
        def broken(*_):
            raise error
            yield

        monkeypatch.setattr("lumina_cli.core.doctor.run_checks", broken)

    return install


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("smaple", "lumina: unknown command 'smaple'; did you mean 'sample'?"),
        ("sample --sede 1 x", "lumina sample: no option --sede; did you mean '--seed'?"),
        ("sample --shar 1/2 x", "lumina sample: no option --shar"),
        ("shard only", "lumina shard: missing argument 'dest'"),
        (
            "convert a b --to flux",
            "lumina convert: invalid value 'flux' for --to; choose from lumina, official",
        ),
        ("shard verify", "lumina shard: missing argument 'shards'"),
    ],
)
def test_wrong_usage_is_one_line(command, message, lumina):
    code, out, err = lumina(command)
    assert (code, out) == (2, [])
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LuminaError("the sky is green"), 1, "the sky is green"),
        (UsageError("no such thing"), 2, "no such thing"),
        (TooManyRejects("3 of 4"), 3, "3 of 4"),
        (MissingDependency("needs the extra [flash]"), 5, "needs the extra [flash]"),
        (LuminaError("two\nlines \x1b[31m"), 1, "two lines \\x1b[31m"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "the disk is full: x.png"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), 1, "x.png: Permission denied"),
        (MemoryError(), 1, "out of memory; reduce the size or the batch"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "ZeroDivisionError: division by zero (a bug; --debug shows the traceback)",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "Broken pipe"),
    ],
)
def test_errors_are_one_line_with_their_code(error, code, message, doctor_raises, lumina):
    doctor_raises(error)
    assert lumina("doctor") == (code, [], f"lumina doctor: {message}\n")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("train nano out=a", ""),  # before the run has opened; see tests/training
        ("caption photos --out=a.jsonl", "; rerun the same command to resume"),
        ("caption photos", ""),  # what went into a pipe is lost
        ("shard photos data", "; rerun the same command to resume"),
        ("eval geneval --out scores", "; rerun the same command to resume"),
        ("eval compare a b --out c", ""),
        ("shard stats data", ""),
        ("eval geneval", ""),
    ],
)
def test_an_interrupted_command_names_the_way_to_resume(command, hint, monkeypatch, lumina):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(application, "get_command", lambda app: SimpleNamespace(main=interrupt))
    assert lumina(command) == (130, [], f"lumina {command.split()[0]}: interrupted{hint}\n")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("sample x --sampler euler", "no option --sampler; use --plan solver=NAME"),
        ("sample x --cfg 7", "no option --cfg; use --guidance"),
        ("sample x --cfg_scale 7", "no option --cfg_scale; use --guidance"),
        ("sample x --num_inference_steps 7", "no option --num_inference_steps; use --steps"),
        ("sample x --guidance-scale 7", "no option --guidance-scale; use --guidance"),
        ("sample x --generator 7", "no option --generator; use --seed"),
        ("sample x --width 7", "no option --width; use --size WIDTHxHEIGHT"),
        ("train nano --steps 30", "no option --steps; use stages.hq.steps=NUMBER"),
        ("train nano --learning-rate 1", "no option --learning-rate; use stages.hq.lr=NUMBER"),
        ("train nano --out x", "no option --out; use out=FOLDER"),
        ("caption x --output y", "no option --output; use --out"),
        ("sample x --stpes 3", "no option --stpes; did you mean '--steps'?"),
        ("train nano stage.hq.steps=3", "one value, not a group of settings; did you mean 'stages'?"),
        ("train nano seed.x=3", "seed: "),
    ],
)
def test_options_of_other_programs_name_ours(command, hint, lumina):
    code, _, err = lumina(command)
    assert code == 2
    assert hint in err
    assert err.count("\n") == 1


def test_the_options_named_for_other_programs_exist():
    verbs = get_command(application.app).commands
    options = {name for parameter in verbs["sample"].params for name in parameter.opts}
    assert {f"--{ours}" for ours in DIFFUSERS_NAMES.values()} <= options
    for verb, names in OTHER_NAMES.items():
        for other, ours in names.items():
            if verb and ours.startswith("--"):
                options = {name for parameter in verbs[verb].params for name in parameter.opts}
                assert ours.split()[0] in options, (verb, ours)
                assert other not in options


@pytest.mark.parametrize("command", ["--debug doctor", "doctor --debug"])
def test_debug_shows_the_traceback(command, doctor_raises, lumina):
    doctor_raises(LuminaError("broken"))
    code, _, err = lumina(command)
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("lumina doctor: broken\n")


def test_debug_by_environment_variable(doctor_raises, lumina, monkeypatch):
    monkeypatch.setenv("LUMINA_DEBUG", "1")
    doctor_raises(LuminaError("broken"))
    code, _, err = lumina("doctor")
    assert code == 1
    assert "Traceback" in err


@pytest.mark.parametrize(
    ("args", "result"),
    [
        (["--version"], (0, f"lumina {lumina_cli.__version__}\n", "")),
        (["shard", "nowhere", "dest"], (1, "", "lumina shard: nowhere: no such source")),
    ],
)
def test_the_package_runs_as_a_module(args, result):
    done = subprocess.run([sys.executable, "-m", "lumina_cli", *args], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == result[:2]
    assert done.stderr.startswith(result[2])


@pytest.mark.parametrize("command", ["sample x --split 2/2", "sample x --shard 2/2"])
def test_a_split_out_of_range_is_wrong_usage(command, lumina):
    code, _, err = lumina(command)
    assert code == 2
    assert err.endswith("split is '2/2', but must be I/N, such as 0/4, with I from 0 to N - 1\n")


def test_the_old_name_of_split_prints_a_note(lumina):
    _, _, err = lumina("sample x --shard 2/2")
    assert err.splitlines()[0] == "--shard is deprecated; use --split"
    assert "deprecated" not in lumina("sample x --split 2/2")[2]
    assert lumina("caption x --shard 0/2 --split 0/2")[0] == 2


WITH_WARNING = """
import sys, warnings
from lumina_cli.core import doctor
def checks(*arguments):
    warnings.simplefilter("always")  # as some libraries do
    warnings.warn("a warning of a library")
    yield {"part": "a"}
doctor.run_checks = checks
from lumina_cli.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words", "variables", "shown"),
    [
        ([], [], {}, False),
        ([], ["--json"], {}, False),
        ([], ["--debug"], {}, True),
        ([], [], {"LUMINA_DEBUG": "1"}, True),
        (["-W", "default"], [], {}, True),
        ([], [], {"PYTHONWARNINGS": "default"}, True),
    ],
)
def test_warnings_are_shown_only_if_asked_for(options, words, variables, shown):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONWARNINGS", "LUMINA_DEBUG")}
    done = subprocess.run(
        [sys.executable, *options, "-c", WITH_WARNING, "doctor", *words],
        capture_output=True,
        text=True,
        env=environment | variables,
    )
    assert done.returncode == 0, done.stderr
    assert ("a warning of a library" in done.stderr) == shown
    assert done.stdout.startswith('{"part": "a"')
