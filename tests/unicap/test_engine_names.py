"""Suggestions for misspelled names: near names only; names for measurements are never suggested."""

import pytest

from lumina_cli.core.registry import CAPTIONERS, did_you_mean, nearest


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("foo", CAPTIONERS.names(), None),
        ("bar", ["clear", "nano"], None),
        ("node", ["noop", "nano"], None),
        ("nan", CAPTIONERS.names(), "nano"),
        ("nnao", CAPTIONERS.names(), "nano"),
        ("Nano", CAPTIONERS.names(), "nano"),
        ("clop", ["clip", "objects"], "clip"),
        ("ne", ["en", "zh"], "en"),
        ("eulr", ["heun", "euler"], "euler"),
        ("transformer", CAPTIONERS.names(), "transformers"),
        ("vlm", CAPTIONERS.names(), "vllm"),
    ],
)
def test_only_near_names_are_suggested(word, known, near):
    assert nearest(word, known) == near
    assert did_you_mean(word, known) == (f"; did you mean {near!r}?" if near else "")


def test_no_short_word_leads_to_the_engine_without_a_model():
    from lumina_cli.core.errors import UsageError

    for word in ("foo", "nop", "noo", "loop", "noopp"):
        with pytest.raises(UsageError) as caught:
            CAPTIONERS.load(word)
        assert "noop'?" not in str(caught.value)
        assert "choose from transformers, openai, vllm, ray, nano" in str(caught.value)
