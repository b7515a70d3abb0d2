"""Lists of seeds."""

import pytest

from lumina_cli.core.encoders.prompt_rows import parse_seeds
from lumina_cli.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9-7", "seed is '9-7', but the range 9-7 runs backwards"),
        ("1, 12-3", "seed is '1, 12-3', but the range 12-3 runs backwards"),
        ("a", "seed is 'a', but must be an integer, or a list such as 1,2,7-9"),
        ("7-", "seed is '7-', but must be an integer, or a list such as 1,2,7-9"),
    ],
)
def test_lists_that_are_not_seeds_are_refused(text, message):
    with pytest.raises(UsageError) as caught:
        parse_seeds(text)
    assert str(caught.value) == message


def test_ranges_include_both_ends():
    assert parse_seeds("7-9,7,-3") == (7, 8, 9, -3)
    assert parse_seeds("7-7") == (7,)
