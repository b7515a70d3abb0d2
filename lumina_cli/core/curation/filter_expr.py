"""Conditions on samples: "width >= 512 and source == 'web'", parsed and never evaluated as Python code.

    condition   comparison ("and" comparison)...
    comparison  NAME OP VALUE; OP is one of < <= > >= == = !=
    VALUE       a number, or text with or without quotes

Names are the columns of a table of samples, and values derived from them: pixels (width x height), aspect
(width / height), ratio (longer / shorter side), shorter, longer, characters and tokens (of the longest
caption), captions (their number). A sample without a value does not meet a condition.
"""

import re
from typing import Any

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

_COMPARISON = re.compile(
    r"""\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|!=|=|<|>)\s*('[^']*'|"[^"]*"|[^\s'"<>=!]+)\s*""", re.VERBOSE
)
_AND = re.compile(r"and\b\s*")
_OPERATORS = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal", "!=": "not_equal"}
DERIVED = ("pixels", "aspect", "ratio", "shorter", "longer", "characters", "tokens", "captions")

Comparison = tuple[str, str, float | str]


def parse_where(text: str) -> list[Comparison]:
    """Return the comparisons of a condition as (name, operator, value).

    Raises:
        UsageError: if the text is not a condition.
    """
    found, at = [], 0
    while True:
        match = _COMPARISON.match(text, at)
        if not match:
            rest = text[at:].strip() or "nothing"
            raise UsageError(f"--where {text!r}: expected a comparison such as NAME < VALUE, found {rest!r}")
        name, operator, value = match.groups()
        found.append((name, "==" if operator == "=" else operator, _value(value)))
        at = match.end()
        if at == len(text):
            return found
        joined = _AND.match(text, at)
        if not joined:
            found_word = text[at:].split()[0]
            raise UsageError(f"--where {text!r}: only 'and' is supported, found {found_word!r}")
        at = joined.end()


def _value(text: str) -> float | str:
    if text[0] in "'\"":
        return text[1:-1]
    try:
        return float(text)
    except ValueError:
        return text


def evaluate(table: Any, comparison: Comparison) -> Any:
    """Return a boolean pyarrow array (N,): whether each row meets a comparison, null if it has no value.

    Raises:
        UsageError: if the column does not exist, or a numeric column is compared with text.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    name, operator, value = comparison
    values = column(table, name)
    textual = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if textual and isinstance(value, float):
        value = f"{value:g}"
    if not textual and isinstance(value, str):
        raise UsageError(f"--where: cannot compare numeric field {name!r} with {value!r}")
    return getattr(pc, _OPERATORS.get(operator, "equal"))(values, pa.scalar(value))


def column(table: Any, name: str) -> Any:
    """Return a column of a table of samples, stored or derived.

    Raises:
        UsageError: if the column does not exist.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if name in DERIVED:
        if name == "captions":
            return pc.list_value_length(table["characters"])
        if name in ("characters", "tokens"):
            return _largest(table[name])
        width, height = (table[side].cast(pa.float64()) for side in ("width", "height"))
        if name == "pixels":
            return pc.multiply(width, height)
        if name == "aspect":
            return pc.divide(width, height)
        longer, shorter = pc.max_element_wise(width, height), pc.min_element_wise(width, height)
        return {"longer": longer, "shorter": shorter}.get(name) or pc.divide(longer, shorter)
    if name not in table.column_names or pa.types.is_list(table[name].type):
        known = [n for n in table.column_names if not pa.types.is_list(table[n].type)]
        known = list(dict.fromkeys([*known, *DERIVED]))
        raise UsageError(f"samples have no {name!r}, only {', '.join(known)}{did_you_mean(name, known)}")
    return table[name]


def _largest(lists: Any) -> Any:
    """Return the largest number of each list, null for an empty list."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = lists.combine_chunks()
    rows = pc.list_parent_indices(lists).to_numpy()
    values = pc.list_flatten(lists).to_numpy(zero_copy_only=False).astype(np.float64)
    largest = np.full(len(lists), -np.inf)
    np.maximum.at(largest, rows, np.where(np.isnan(values), -np.inf, values))
    return pa.array(largest, mask=np.isinf(largest))


def inputs(name: str) -> tuple[str, ...]:
    """Return the stored columns that `column` needs for a name."""
    if name not in DERIVED:
        return (name,)
    return {"captions": ("characters",), "characters": ("characters",), "tokens": ("tokens",)}.get(
        name, ("width", "height")
    )
