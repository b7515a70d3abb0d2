"""The script that rebuilds the bundled model, run to its end with a stand-in for `lumina`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "recipes" / "pipelines" / "nano.sh"
# Refuses what `lumina` refuses: shards in the way, unfinished shards, a second start without --resume.
STAND_IN = f"""#!{sys.executable}
import os, sys
from pathlib import Path
words = sys.argv[1:]
with open("calls", "a") as calls:
    print(*words, file=calls)
settings = dict(word.split("=", 1) for word in words if "=" in word)
stopped = os.environ.get("STOP") == words[1]
if words[0] == "bench":
    Path(words[3], "teacache.json").touch()
elif words[0] == "shard":
    shards = Path(words[2])
    if list(shards.glob("*")) and "--force" not in words:
        sys.exit("already holds shards")
    shards.mkdir(parents=True, exist_ok=True)
    (shards / "000000.tar").touch()
    stopped or (shards / "shards.json").touch()
else:
    out, part = Path(settings["out"]), {{"nano-text": "text_encoder"}}.get(words[1], words[1].removeprefix("nano-"))
    saved, made = (out / f"{{part}}.pt", out / part) if part != "nano" else (out / "recipe.yaml", out / "model")
    if saved.exists() != ("--resume" in words):
        sys.exit("resumed what was not begun, or begun again")
    if part == "nano" and not Path(settings["data"], "shards.json").exists():
        sys.exit("is unfinished")
    made.mkdir(parents=True, exist_ok=True)
    saved.touch()
    stopped or (made / "weights").write_text(part)
sys.exit(130 if stopped else 0)
"""


@pytest.fixture
def rebuild(tmp_path, monkeypatch):
    """Run the script, stopped at the call about `stop`; return (exit code, what was called)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "lumina").write_text(STAND_IN)
    (tmp_path / "bin" / "lumina").chmod(0o755)
    monkeypatch.chdir(tmp_path)

    def run(stop=""):
        (tmp_path / "calls").write_text("")
        surroundings = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "STOP": stop}
        code = subprocess.run(["bash", SCRIPT, "home"], env=surroundings, capture_output=True).returncode
        return code, (tmp_path / "calls").read_text().splitlines()

    return run


PARTS = [f"train nano-{part} out=home/parts" for part in ("autoencoder", "text", "detector")]
PARTS.append("train nano-captioner out=home/parts tokenizer=home/parts/tokenizer")
SHARD = "shard nano:40000 home/shards --force"
TRAIN = "train nano frozen=home/parts data=home/shards out=home/run"
FIT = "bench teacache --model home/nano.new --preset fast"


def assert_whole():
    assert Path("home/nano/weights").read_text() == "nano"
    assert Path("home/nano/teacache.json").exists()
    assert Path("home/nano/detector/weights").read_text() == "detector"
    assert Path("home/nano/captioner/weights").read_text() == "captioner"
    assert not Path("home/nano.new").exists()


def test_the_script_is_valid_bash():
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_the_script_builds_every_part_from_nothing(rebuild):
    assert rebuild() == (0, [*PARTS, SHARD, TRAIN, FIT])
    assert_whole()


@pytest.mark.parametrize(
    ("stop", "again"),
    [
        ("nano-text", [f"{PARTS[0]} --resume", f"{PARTS[1]} --resume", *PARTS[2:], SHARD, TRAIN, FIT]),
        ("nano:40000", [*(f"{part} --resume" for part in PARTS), SHARD, TRAIN, FIT]),
        ("nano", [*(f"{part} --resume" for part in PARTS), f"{TRAIN} --resume", FIT]),
    ],
)
def test_the_script_goes_on_where_it_was_interrupted(rebuild, stop, again):
    assert rebuild(stop)[0] == 130
    assert rebuild() == (0, again)
    assert_whole()


def test_the_script_leaves_finished_shards_alone(rebuild):
    assert rebuild()[0] == 0
    assert not [call for call in rebuild()[1] if call.startswith("shard")]
    assert_whole()
