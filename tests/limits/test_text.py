"""Text that UTF-8 cannot encode ends in one clear error before any work, or rejects its row."""

import os

import pytest
from PIL import Image

from lumina_cli.cli.app import run

LATIN_1 = os.fsdecode("caf\xe9".encode("latin-1"))


@pytest.mark.parametrize(
    "words",
    [
        ["sample", f"a {LATIN_1}", "--model", "nano"],
        ["sample", "ball", "--model", "nano", "--negative", LATIN_1],
        ["sample", "--model", "nano", "--", LATIN_1],
        ["caption", f"{LATIN_1}.jpg"],
        ["shard", "photos", LATIN_1],
        ["train", "nano", f"data={LATIN_1}"],
        ["eval", "geneval", "--model", LATIN_1],
    ],
)
def test_latin_1_on_the_command_line_is_refused_before_any_work(words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = run(words)
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1)
    assert "is not valid UTF-8 text: " in err
    assert "\\udce9" in err
    assert not list(tmp_path.iterdir())


def test_existing_files_with_such_names_are_read(lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / LATIN_1
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / f"{LATIN_1}.png")
    code = run(["shard", LATIN_1, "data"])
    assert code == 0
    assert run(["shard", f"{folder}/{LATIN_1}.png", "data2"]) == 0
    assert run(["caption", LATIN_1, "--engine", "noop", "--out", f"{LATIN_1}/new.jsonl"]) == 0


@pytest.mark.parametrize(
    "command", ["caption {} --engine noop --max-bad-rate 1", "shard {} data --max-bad-rate 1"]
)
def test_a_row_with_half_of_a_surrogate_pair_is_a_reject(command, lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    (tmp_path / "rows.jsonl").write_text(
        '{"image": "a.png", "caption": "fine"}\n{"image": "a.png", "caption": "half \\ud83d"}\n'
    )
    code, rows, _ = lumina(command.format("rows.jsonl"))
    assert code == 0
    assert rows[0].get("rejects", 1) == 1
    if len(rows) == 2:
        assert (rows[1]["code"], "is not valid UTF-8 text" in rows[1]["error"]) in (
            ("bad_caption", True),
            ("bad_row", True),
        )


def test_a_prompt_with_half_of_a_surrogate_pair_names_its_line(lumina, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a ball"}\n{"prompt": "half \\ud83d"}\n')
    code, _, err = lumina("sample prompts.jsonl --model nano --out out")
    assert code == 1
    assert "prompts.jsonl line 2: 'prompt' is not valid UTF-8 text" in err
    assert not (tmp_path / "out").exists()
