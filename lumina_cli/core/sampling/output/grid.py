"""Grids: the same prompt and noise under every combination of settings, on a labelled sheet."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain, product
from math import prod
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.flow.presets import find_preset
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.sampling.batching import Split, in_windows
from lumina_cli.core.sampling.output.filenames import FileNames, slug
from lumina_cli.core.sampling.output.sheet import Sheet, draw_sheet
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import SamplingRequest, check_size
from lumina_cli.core.sampling.runner import (
    ALL,
    ImageTask,
    ProgressCallback,
    RowGenerator,
    find_tasks,
    start_generation,
)

SETTINGS = tuple(setting.name for setting in fields(Plan))
OTHERS = ("calls", "preset", "system", "seed", "size")
AXES = (*SETTINGS, *OTHERS)
OF_ROWS = ("seed", "size")  # what a row of prompts may say itself
MOST_CELLS = 400
SHORT = 40  # letters of a row's name, and of the axes', in the names of files
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
        SamplingRequest(system=word).check()
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


def count_cells(text: str) -> int:
    """Return how many cells a grid has."""
    return len(cells_of(read_grid(text)))


def draw_grid(
    rows: Iterable[dict],
    axes: Sequence[Axis],
    pipeline: Pipeline,
    out: str | Path = "pictures",
    note: Note | None = None,
    batch: int | None = None,
    format: str = "png",
    force: bool = False,
    split: Split = ALL,
    progress: ProgressCallback | None = None,
    **wishes,
) -> Iterator[dict]:
    """Yield a row for every picture of every cell, prompt by prompt, and save a sheet for each prompt.

    A row has what `draw_rows` adds and "cell", the values; the last of a sheet also "sheet", its path. With a
    `count`, each number has a sheet of its own. Pictures that are there already are not drawn again. `wishes`
    hold for all cells; the rest is as in `draw_rows`.
    """
    cells, note = cells_of(axes), _once(note)
    wanted = [SamplingRequest(**cell.wishes(wishes)) for cell in cells]
    for wish in wanted:
        wish.check()
    rows = start_generation(rows, out, format, batch)
    if rows is None:
        return
    setups = [wish.resolve(pipeline) for wish in wanted]
    names = FileNames(Path(out), format, wanted[0].count)
    drawing = RowGenerator(pipeline, setups[0], names, progress)
    common = _common(axes, SamplingRequest(**wishes).resolve(pipeline).plan)
    for index, row in enumerate(rows):
        stem = slug(str(row.get("key", ""))) or "-".join(filter(None, (f"{index:05d}", slug(row["prompt"]))))
        tasks: list[list[ImageTask]] = []  # of every cell; those of other shares are named, too
        for cell, wish, setup in zip(cells, wanted, setups, strict=True):
            asked = {**row, **cell.row(), "key": f"{stem[:SHORT]}-{slug(_words(cell))}"}
            tasks.append(list(find_tasks([asked], wish, setup, pipeline, names, ALL, note, index)))
        sheets = [_plan_sheet(row, axes, numbered, names, stem) for numbered in zip(*tasks, strict=True)]
        if not split.has(index):
            continue
        drawn: list[list[dict]] = []
        for cell, setup, own in zip(cells, setups, tasks, strict=True):
            drawing.setup = setup
            windows = in_windows(own, batch, pipeline.token_side)
            found = chain.from_iterable(drawing.rows(window, batch, force, note) for window in windows)
            drawn.append([_describe(one, row, cell) for one in found])
            if cell is not cells[-1]:
                yield from drawn[-1]
        for last, numbered, path in zip(drawn[-1], zip(*drawn, strict=True), sheets, strict=True):
            yield last | {"sheet": str(_save_sheet(row, axes, numbered, common, names, path, note))}


def _once(note: Note | None) -> Note:
    """Tell each line once: every cell says the same of a prompt."""
    told: set[str] = set()

    def tell(line: str) -> None:
        if note and line not in told:
            told.add(line)
            note(line)

    return tell


def _describe(drawn: dict, row: dict, cell: Cell) -> dict:
    """The row of a picture: without the key that only named its file."""
    drawn = {name: value for name, value in drawn.items() if name != "key" or "key" in row}
    return drawn | ({"key": row["key"]} if "key" in row else {}) | {"cell": dict(cell.values)}


def _words(cell: Cell) -> str:
    return " ".join(map(" ".join, zip(cell.values, cell.words, strict=True)))


def _common(axes: Sequence[Axis], plan: Plan) -> dict:
    """What all cells have in common, of what a sheet tells."""
    names = [axis.name for axis in axes]
    hidden = [*names, *(["steps"] if "calls" in names else []), *(SETTINGS if "preset" in names else ())]
    told = ("solver", "steps", "guidance", "shift")
    return {name: getattr(plan, name) for name in told if name not in hidden}


def _plan_sheet(
    row: dict, axes: Sequence[Axis], tasks: Sequence[ImageTask], names: FileNames, stem: str
) -> Path:
    """Return the path of the sheet of one prompt and number: that of its row, axes, seed and number."""
    job = tasks[0].job
    words = slug(" ".join(f"{axis.name} {' '.join(axis.words)}" for axis in axes))
    tail = "" if any(axis.name == "seed" for axis in axes) else f"-s{job.seed}"
    tail += f"-{job.number}" if names.count > 1 else ""
    told = _sheet_metadata(row, axes, [task.path for task in tasks])
    name = f"{stem[:SHORT]}-grid-{words[:SHORT]}{tail}"
    return names.free(name, "png", lambda path: _describe_cell(path) == told)[0]


def _sheet_metadata(row: dict, axes: Sequence[Axis], pictures: Sequence[Path]) -> dict:
    """What a sheet tells of itself: no other has the same pictures."""
    told = {axis.name: list(axis.values) for axis in axes}
    return {"grid": told, "of": row["prompt"], "pictures": [path.name for path in pictures]}


def _describe_cell(path: Path) -> dict | None:
    """Return what a sheet that is there tells of itself; None where it is no picture."""
    try:
        return read_metadata(path)
    except LuminaError:
        return None


def _save_sheet(
    row: dict,
    axes: Sequence[Axis],
    drawn: Sequence[dict],
    common: Mapping[str, Any],
    names: FileNames,
    path: Path,
    note: Note,
) -> Path:
    """Draw the sheet of one prompt and number and write it; return its path."""
    first, hidden = drawn[0], [axis.name for axis in axes]
    shown = {name: first[name] for name in ("model", "size", "seed") if name not in hidden}
    shown |= ({"number": first["number"]} if first["number"] else {}) | common
    caption = ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
    beside = [", ".join(words) for words in product(*(axis.labels() for axis in axes[:-1]))]
    sheet = Sheet(row["prompt"], caption, axes[-1].labels(), beside)
    image, lost = draw_sheet(sheet, [open_image(one["image"]) for one in drawn])
    if lost:
        note(f"the sheet leaves out {lost!r}: no font here can draw that; installing Noto Sans CJK may help")
    told = _sheet_metadata(row, axes, [Path(one["image"]) for one in drawn])
    return names.save(image, path, told, lambda path: _describe_cell(path) == told)
