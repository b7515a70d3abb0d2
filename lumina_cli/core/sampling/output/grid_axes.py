"""Axes and cells of a grid: "guidance=3,4 x calls=10,20" to every combination of settings."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.sampling.request import SamplingRequest, check_size

SETTINGS = tuple(setting.name for setting in fields(Plan))
OTHERS = ("calls", "preset", "system", "seed", "size")
AXES = (*SETTINGS, *OTHERS)
ROW_KEYS = ("seed", "size")  # a row of prompts may contain these
MAX_CELLS = 400
EXAMPLE = '"guidance=3,4 x calls=10,20"'


@dataclass(frozen=True)
class Axis:
    """A setting, its values, and the words that the values were written in."""

    name: str
    values: tuple[Any, ...]
    words: tuple[str, ...]

    def labels(self) -> list[str]:
        """Return the labels of the values on a sheet, such as "guidance 3"."""
        return [f"{self.name.replace('_', ' ')} {word}" for word in self.words]


def read_grid(text: str) -> tuple[Axis, ...]:
    """Return the axes of "guidance=3,4 x calls=10,20"; the last one becomes the columns of a sheet.

    An axis is a setting of a plan, or one of calls, preset, system, seed and size. "x", "×" and ";" separate
    axes.

    Raises:
        UsageError: if an axis is unknown or repeated, a value is invalid, or there are too many cells.
    """
    parts = re.split(r"\s*(?:\bx\b|[×;])\s*(?=[\w-]+\s*=)", text.strip())
    axes = tuple(_axis(part) for part in parts)
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the grid has {name!r} twice; write all its values after one {name}=")
    if {"steps", "calls"} <= set(names):
        raise UsageError("the grid has steps and calls, which are mutually exclusive; use one of them")
    cells = prod(len(axis.values) for axis in axes)
    if cells > MAX_CELLS:
        raise UsageError(f"the grid has {cells} cells; at most {MAX_CELLS} fit on a sheet")
    return axes


def _axis(text: str) -> Axis:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise UsageError(f"invalid grid axis {text!r}; expected NAME=VALUES, such as {EXAMPLE}")
    if name not in AXES:
        hint = did_you_mean(name, AXES) or f"; choose from {', '.join(AXES)}"
        raise UsageError(f"cannot vary {name!r} in a grid{hint}")
    words = tuple(word.strip() for word in values.split(","))
    if not all(words):
        raise UsageError(f"the grid has an empty value in {text.strip()!r}")
    for word in words:
        if words.count(word) > 1:
            raise UsageError(f"the grid has {name}={word} twice")
    return Axis(name, tuple(_value(name, word) for word in words), words)


def _value(name: str, word: str) -> Any:
    """The value of a word, validated as far as possible without a model."""
    if name in SETTINGS:
        return read_settings(f"{name}={word}")[name]
    if name in ("seed", "calls"):
        if not re.fullmatch(r"-?\d+", word):
            raise UsageError(f"{name} must be an integer, not {word!r}")
        return int(word)
    if name == "size":
        check_size(word)
    if name == "preset":
        find_preset(word)
    if name == "system":
        SamplingRequest(system=word).check()
    return word


@dataclass(frozen=True)
class Cell:
    """One combination of values: by the name of their axis, and in the words of the grid."""

    values: Mapping[str, Any]
    words: tuple[str, ...]

    def row_overrides(self) -> dict:
        """Return the values that override keys of a row."""
        return {name: value for name, value in self.values.items() if name in ROW_KEYS}

    def request_settings(self, given: Mapping[str, Any]) -> dict:
        """Return `given`, fields of a `SamplingRequest`, overridden by the values of this cell."""
        settings = dict(given)
        settings |= {name: self.values[name] for name in ("preset", "system") if name in self.values}
        own = {name: value for name, value in self.values.items() if name in SETTINGS or name == "calls"}
        if own:
            plan = settings.get("plan") or {}
            plan = plan.to_json() if isinstance(plan, Plan) else plan
            other = {"calls": "steps", "steps": "calls"}  # mutually exclusive in a plan
            replaced = [other[name] for name in own if name in other]
            settings["plan"] = {name: value for name, value in plan.items() if name not in replaced} | own
        return settings


def list_cells(axes: Sequence[Axis]) -> list[Cell]:
    """Return every combination of values; the last axis varies fastest."""
    names = [axis.name for axis in axes]
    values = product(*(axis.values for axis in axes))
    words = product(*(axis.words for axis in axes))
    return [
        Cell(dict(zip(names, own, strict=True)), written) for own, written in zip(values, words, strict=True)
    ]


def count_cells(text: str) -> int:
    """Return the number of cells of a grid."""
    return prod(len(axis.values) for axis in read_grid(text))
