"""Notes on prompts are printed once, with the number of prompts."""

from types import SimpleNamespace

import pytest

from lumina_cli.core.registry import ASSETS
from lumina_cli.core.sampling.inputs.prompt_notes import MAX_EXAMPLES, PromptNotes


@pytest.fixture
def noted():
    """Return a function: prompts, folder of the model -> notes."""

    def examine(*prompts: str, folder=ASSETS / "nano") -> list[str]:
        lines: list[str] = []
        notes = PromptNotes(SimpleNamespace(folder=folder), lines.append)
        assert list(notes.watch({"prompt": prompt} for prompt in prompts)) == [{"prompt": p} for p in prompts]
        notes.finish()
        return lines

    return examine


def test_each_kind_has_one_note(noted):
    assert noted("a (red:1.2) ball", "a ball BREAK a cup", "a cup", "an astronaut") == [
        "syntax of other programs is taken as plain words: (red:1.2), BREAK (in 2 prompts)",
        "words that nano never saw in training: astronaut (in 1 prompt)",
    ]
    assert noted("a red ball") == []


@pytest.mark.parametrize("option", ["--n ugly, blurry", "--d 7 --n worst quality", "--no wizards"])
def test_values_of_options_are_not_unseen_words(noted, option):
    (line,) = noted(f"a red ball {option}")
    assert line.startswith("syntax of other programs is taken as plain words: --")


def test_other_models_know_other_words(noted, tmp_path):
    assert noted("an astronaut", folder=tmp_path) == []


def test_a_note_lists_few_words(noted):
    (line,) = noted(*(f"a{'bcdefghijklmnopqrstuvwxyz'[index] * 3}" for index in range(20)))
    assert line.endswith(f"and {20 - MAX_EXAMPLES} more (in 20 prompts)")


def test_truncated_rows_are_counted():
    lines: list[str] = []
    notes = PromptNotes(SimpleNamespace(folder=ASSETS), lines.append)
    for index in (0, 0, 4, 7):
        notes.add_truncated(index, "prompt", 3)
    notes.add_truncated(4, "negative prompt", 1)
    notes.finish()
    assert lines == [
        "row 1: the prompt is too long; its last 3 tokens were truncated",
        "row 5: the negative prompt is too long; its last 1 tokens were truncated",
        "the prompts of 3 rows were too long; the rows contain the lost tokens",
    ]


def test_a_system_prompt_in_a_prompt_has_one_note(noted, tmp_path):
    own = "You are an assistant designed to generate anime images. <Prompt Start> 1girl"
    follows = "<Prompt Start>, which follows the system prompt already; add --system empty"
    assert noted(own, "a cup", folder=tmp_path) == [f"1 prompt contains {follows}"]
    assert noted(own, own, folder=tmp_path) == [f"2 prompts contain {follows}"]
