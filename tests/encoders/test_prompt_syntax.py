"""Prompt syntax of other programs is found; ordinary punctuation is not."""

import pytest

from lumina_cli.core.encoders.prompt_syntax import find_foreign_syntax, remove_foreign_syntax


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        ("a cat --n blurry --w 640 --h 512", ["--n", "--w", "--h"]),
        ("a (red:1.2) cat", ["(red:1.2)"]),
        ("a {red|blue} cat", ["{red|blue}"]),
        ("a cat BREAK a dog", ["BREAK"]),
        ("a cat AND a dog", ["AND"]),
        ("a cat <lora:fur:0.8>, <lora:fur:0.8>", ["<lora:fur:0.8>"]),
        ("((masterpiece)), {{best}}", ["((masterpiece))", "{{best}}"]),
        ("[cat:dog:0.5] of __colors__", ["[cat:dog:0.5]", "__colors__"]),
        ("1.4::a cat:: embedding:easy", ["1.4::a cat::", "embedding:easy"]),
        ("a (red)1.3 and (blue)++ cat --ar 16:9", [")1.3", ")++", "--ar"]),
    ],
)
def test_syntax_is_found(prompt, found):
    assert find_foreign_syntax(prompt) == found


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat (red) and [blue], at 10:30 (ratio 16:9)",
        "A CAT AND A DOG ON A BREAK",
        "black-and-white -- a photo, 3:4",
        'a sign that reads "Open: 9-5"',
        "a file_name__x and 2 < 3 > 1",
    ],
)
def test_ordinary_text_has_none(prompt):
    assert find_foreign_syntax(prompt) == []


def test_long_examples_are_cut():
    (found,) = find_foreign_syntax(f"({'a ' * 100}cat:1.2)")
    assert len(found) == 41


@pytest.mark.parametrize(
    ("prompt", "rest"),
    [
        ("a cat --n ugly, blurry --w 640", "a cat"),
        ("a cat --no text, watermark", "a cat"),
        ("a (red:1.2) cat BREAK a dog <lora:fur:0.8>", "a cat a dog"),
        (f"a cat {{{'x ' * 40}|b}} a dog", "a cat a dog"),  # longer than an example
        ("(red AND blue:1.2) cat", "cat"),
        ("a cat -- a photo, (red)", "a cat -- a photo, (red)"),
    ],
)
def test_syntax_and_values_of_options_are_removed(prompt, rest):
    assert remove_foreign_syntax(prompt).split() == rest.split()
