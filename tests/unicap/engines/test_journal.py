"""Answers of a paid endpoint survive a kill, and finished rows are written at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from local_endpoint import Endpoint, question, said
from PIL import Image

from lumina_cli.core.unicap.engines.journal import AnswerJournal
from lumina_cli.core.unicap.protocol import Answer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(8):
        Image.new("RGB", (9, 9), (number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    return tmp_path / "photos"


def lines_of(path):
    return path.read_bytes().splitlines() if path.is_file() else []


def wait_for(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_paid_answers_survive_a_kill_and_finished_rows_are_written_at_once(photos, tmp_path):
    """The fifth image is not answered: four rows are in the file; later answers are kept for the next run."""
    seen, stuck = [], {"on": True}

    def reply(_, request):
        key = json.dumps(request["messages"]) + str(request["seed"])
        waits = stuck["on"] and waiting[0] in key
        if not waits:
            seen.append(key)
        return (0 if waits else 200), said("a red car, a ball")

    from lumina_cli.core.unicap.engines.openai import data_url

    waiting = [data_url(Image.open(photos / "4.png").convert("RGB"))]
    endpoint, out = Endpoint(reply), tmp_path / "rows.jsonl"
    words = ["--engine", "openai", "--endpoint", endpoint.url, "--levels", "short,tags", "--out", str(out)]
    command = [sys.executable, "-m", "lumina_cli", "caption", str(photos), *words]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            answers = tmp_path / "rows.jsonl.answers.jsonl"
            wait_for(lambda: len(lines_of(answers)) == 14 and len(lines_of(out)) == 4, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        paid = list(seen)
        assert len(paid) == 14
        stuck["on"] = False
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    finally:
        endpoint.close()
    assert len(seen) == 16
    assert len(set(seen)) == 16
    assert len(lines_of(out)) == 8
    assert not answers.exists()
    assert "8 of 8 images" in done.stderr


def test_an_error_that_ends_the_run_loses_no_answer(lumina, photos, tmp_path):
    calls = []

    def reply(number, request):
        calls.append(json.dumps(request["messages"]) + str(request["seed"]))
        return (
            (401, {"error": {"message": "no money"}})
            if fails["from"] <= number
            else (200, said("a red car, a ball"))
        )

    fails, out = {"from": 6}, tmp_path / "rows.jsonl"
    endpoint = Endpoint(reply)
    words = (
        "--engine",
        "openai",
        "--endpoint",
        endpoint.url,
        "--levels",
        "short",
        "--batch",
        1,
        "--out",
        out,
    )
    try:
        assert lumina(photos, *words)[0] == 1
        assert len(lines_of(out)) == 5
        answered = set(calls[:5])
        calls.clear()
        fails["from"] = 99
        assert lumina(photos, *words)[0] == 0
    finally:
        endpoint.close()
    assert len(calls) == 3
    assert not answered & set(calls)
    assert len(lines_of(out)) == 8


def test_answers_are_found_by_question_and_model(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = AnswerJournal(path)
    journal.add(question(), "m", Answer("a car", True, 5))
    journal.add(question(attempt=1), "m", Answer("", True, error="busy"))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"key": "torn')
    again = AnswerJournal(path)
    assert again.find(question(), "m") == Answer("a car", True, 5)
    assert again.find(question(), "other") is None
    assert again.find(question(attempt=1), "m") is None
    assert again.find(question(text="Other."), "m") is None
    assert len(lines_of(path)) == 1
    again.delete()
    assert not path.exists()


def test_answers_of_written_rows_are_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    journal = AnswerJournal(path, rows=4)
    for number in range(40):
        journal.add(question(text=str(number)), "m", Answer("a car", True, 5))
        journal.row_written()
    journal.close()
    assert 4 <= len(lines_of(path)) <= 8
    assert AnswerJournal(path).find(question(text="39"), "m")
    assert AnswerJournal(path).find(question(text="1"), "m") is None
