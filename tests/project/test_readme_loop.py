"""The five-line loop of the README, executed line by line."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from lumina_cli.cli.app import run
from lumina_cli.core.images.io import open_image, read_metadata

README = Path(__file__).parents[2] / "README.md"


def loop() -> list[str]:
    """The shell block under "The loop in five lines"."""
    section = README.read_text().split("## The loop in five lines")[1]
    return re.search(r"```bash\n(.*?)```", section, re.S).group(1).strip().splitlines()


def processor_seconds() -> float:
    """What this process and its children have used: a busy machine stretches the clock more."""
    return sum(os.times()[:4])


@pytest.mark.slow
def test_the_readme_loop_runs_from_scenes_to_a_score(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines, start = loop(), processor_seconds()
    assert len(lines) == 5
    for line in lines:
        assert run(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert processor_seconds() - start < 2 * 8 * 60  # 8 minutes on two cores that do nothing else
    assert len(list(Path("scenes").glob("*.tar"))) == 2
    pictures = sorted(Path("pictures").iterdir())
    assert [picture.suffix for picture in pictures] == [".png", ".png"]
    assert {read_metadata(picture)["model"] for picture in pictures} == {"runs/first", "nano"}
    assert open_image(pictures[0]).size == (128, 128)
    summary = json.loads(Path("first-scores/summary.json").read_text())
    assert 0 <= summary["overall"] <= 1
    metrics = [json.loads(line) for line in Path("runs/first/metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in metrics} == {"low", "high", "hq"}
