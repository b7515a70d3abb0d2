"""Grids: the same prompt and noise under every combination of settings, on a labelled sheet."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.formats.images import open_image, save_picture
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.sampling.jobs import Wish, check_size
from lumina_cli.core.sampling.names import slug
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.rows import draw_rows
from lumina_cli.core.sampling.sheet import Sheet, draw_sheet

SETTINGS = tuple(setting.name for setting in fields(Plan))
OTHERS = ("calls", "preset", "system", "seed", "size")
AXES = (*SETTINGS, *OTHERS)
OF_ROWS = ("seed", "size")  # what a row of prompts may say itself
MOST_CELLS = 400
EXAMPLE = '"guidance=3,4 x calls=10,20"'

Note = Callable[[str], None]


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, each with the words it was written in."""

    name: str
    values: tuple[Any, ...]
    words: tuple[str, ...]

    def labels(self) -> list[str]:
        """Return what a sheet calls the values: "guidance 3"."""
        return [f"{self.name.replace('_', ' ')} {word}" for word in self.words]


def read_grid(text: str) -> tuple[Axis, ...]:
    """Return the axes of "guidance=3,4 x calls=10,20"; the last one runs along the rows of a sheet.

    An axis is a setting of a plan, or one of calls, preset, system, seed and size. Raises UsageError for an
    unknown one, one that comes twice, and for values that it cannot have.
    """
    parts = re.split(r"\s*(?:\bx\b|[×;])\s*(?=[\w-]+\s*=)", text.strip())
    axes = tuple(_axis(part) for part in parts)
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"the grid has {name!r} twice; write all its values after one {name}=")
    if {"steps", "calls"} <= set(names):
        raise UsageError("the grid has steps and calls, which both say how long to draw; take one of them")
    cells = prod(len(axis.values) for axis in axes)
    if cells > MOST_CELLS:
        raise UsageError(f"the grid has {cells} cells; at most {MOST_CELLS} fit on a sheet")
    return axes


def _axis(text: str) -> Axis:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals or not name:
        raise UsageError(f"{text!r} is no axis of a grid; write one like {EXAMPLE}")
    if name not in AXES:
        hint = did_you_mean(name, AXES) or f"; choose from {', '.join(AXES)}"
        raise UsageError(f"a grid has no setting {name!r}{hint}")
    words = tuple(word.strip() for word in values.split(","))
    if not all(words):
        raise UsageError(f"the grid has an empty value in {text.strip()!r}")
    for word in words:
        if words.count(word) > 1:
            raise UsageError(f"the grid has {name}={word} twice")
    return Axis(name, tuple(_value(name, word) for word in words), words)


def _value(name: str, word: str) -> Any:
    """What a word stands for on an axis, checked as far as that goes without a model."""
    if name in SETTINGS:
        return read_settings(f"{name}={word}")[name]
    if name in ("seed", "calls"):
        if not re.fullmatch(r"-?\d+", word):
            raise UsageError(f"{name} is {word!r}, but must be a whole number")
        return int(word)
    if name == "size":
        check_size(word)
    if name == "preset":
        find_preset(word)
    if name == "system":
        Wish(system=word).check()
    return word


@dataclass(frozen=True)
class Cell:
    """One combination of values."""

    values: Mapping[str, Any]
    words: tuple[str, ...]

    def row(self) -> dict:
        """Return what it changes in a row of prompts."""
        return {name: value for name, value in self.values.items() if name in OF_ROWS}

    def wishes(self, given: Mapping[str, Any]) -> dict:
        """Return the wishes (see `Wish`) `given`, with those of this cell over them."""
        wishes = dict(given)
        wishes |= {name: self.values[name] for name in ("preset", "system") if name in self.values}
        plan = wishes.get("plan") or {}
        own = {name: value for name, value in self.values.items() if name in SETTINGS or name == "calls"}
        plan = plan.to_json() if own and isinstance(plan, Plan) else plan
        if own:
            other = {"calls": "steps", "steps": "calls"}
            replaced = [other[name] for name in own if name in other]
            wishes["plan"] = {name: value for name, value in plan.items() if name not in replaced} | own
        return wishes


def cells_of(axes: Sequence[Axis]) -> list[Cell]:
    """Return every combination, the last axis fastest."""
    names = [axis.name for axis in axes]
    values = product(*(axis.values for axis in axes))
    words = product(*(axis.words for axis in axes))
    return [Cell(dict(zip(names, one, strict=True)), told) for one, told in zip(values, words, strict=True)]


def draw_grid(
    rows: Iterable[dict],
    axes: Sequence[Axis],
    pipeline: Pipeline,
    out: str | Path = "pictures",
    note: Note | None = None,
    batch: int | None = None,
    format: str = "png",
    force: bool = False,
    **wishes,
) -> Iterator[dict]:
    """Yield a row for every picture of every cell, prompt by prompt, and save a sheet for each prompt.

    A row has what `draw_rows` adds and "cell", the values; the last of a sheet also "sheet", its path. With a
    `count`, each number has a sheet of its own. Pictures that are there already are not drawn again. `wishes`
    hold for all cells.
    """
    cells, out, note = cells_of(axes), Path(out), _once(note)
    for cell in cells:
        Wish(**cell.wishes(wishes)).check()
    for index, row in enumerate(rows):
        drawn: list[list[dict]] = []
        stem = slug(str(row.get("key", ""))) or "-".join(filter(None, (f"{index:05d}", slug(row["prompt"]))))
        for cell in cells:
            key = f"{stem[:40]}-{slug(' '.join(map(' '.join, zip(cell.values, cell.words, strict=True))))}"
            asked = {**row, **cell.row(), "key": key}
            how = {"batch": batch, "format": format, "force": force, "note": note}
            found = draw_rows([asked], pipeline, out, **how, **cell.wishes(wishes))
            drawn.append([_told(one, row, cell) for one in found])
            if cell is not cells[-1]:
                yield from drawn[-1]
        sheets = [
            _save_sheet(row, axes, numbered, wishes, pipeline, out / f"{stem}-grid", note)
            for numbered in zip(*drawn, strict=True)
        ]
        yield from (one | {"sheet": str(sheet)} for one, sheet in zip(drawn[-1], sheets, strict=True))


def _once(note: Note | None) -> Note:
    """Tell each line once: every cell says the same of a prompt."""
    told: set[str] = set()

    def tell(line: str) -> None:
        if note and line not in told:
            told.add(line)
            note(line)

    return tell


def _told(drawn: dict, row: dict, cell: Cell) -> dict:
    """The row of a picture: without the key that only named its file."""
    drawn = {name: value for name, value in drawn.items() if name != "key" or "key" in row}
    return drawn | ({"key": row["key"]} if "key" in row else {}) | {"cell": dict(cell.values)}


def _save_sheet(
    row: dict,
    axes: Sequence[Axis],
    drawn: Sequence[dict],
    wishes: Mapping[str, Any],
    pipeline: Pipeline,
    stem: Path,
    note: Note,
) -> Path:
    """Draw the sheet of one prompt and number and write it; return its path."""
    first, names = drawn[0], [axis.name for axis in axes]
    seed, number = first["seed"], first["number"]
    common = {"model": pipeline.name, "size": first["size"], "seed": seed, "number": number or None}
    plan = Wish(**wishes).resolve(pipeline).plan
    common |= {name: getattr(plan, name) for name in ("solver", "steps", "guidance", "shift")}
    hidden = [*names, *(["steps"] if "calls" in names else [])]
    if "preset" in names:
        hidden += SETTINGS
    common = {name: value for name, value in common.items() if name not in hidden and value is not None}
    caption = ", ".join(f"{name} {value}" for name, value in common.items())
    beside = [", ".join(words) for words in product(*(axis.labels() for axis in axes[:-1]))]
    sheet = Sheet(row["prompt"], caption, axes[-1].labels(), beside)
    pictures = [open_image(one["image"]) for one in drawn]
    image, lost = draw_sheet(sheet, pictures)
    if lost:
        note(f"the sheet leaves out {lost!r}: no font here can draw that; installing Noto Sans CJK may help")
    tail = ("" if "seed" in names else f"-s{seed}") + (f"-{number}" if wishes.get("count", 1) > 1 else "")
    told = {axis.name: list(axis.values) for axis in axes}
    return save_picture(image, stem.with_name(f"{stem.name}{tail}.png"), {"grid": told, "of": row["prompt"]})
