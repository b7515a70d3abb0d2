"""Grids: one prompt and its noise under every combination of settings, on a labelled sheet."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.io.remote import to_path
from lumina_cli.core.sampling.batching import Split, read_windows
from lumina_cli.core.sampling.inputs.prompt_notes import PromptNotes
from lumina_cli.core.sampling.output.filenames import FileNames, slug
from lumina_cli.core.sampling.output.grid_axes import SETTINGS, Axis, Cell, list_cells
from lumina_cli.core.sampling.output.sheet import Sheet, draw_sheet
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import ResolvedRequest, SamplingRequest
from lumina_cli.core.sampling.runner import (
    ALL,
    ImageTask,
    ProgressCallback,
    RowGenerator,
    find_tasks,
    start_generation,
)

MAX_NAME = 40  # characters of the row's name, and of the axes, in the file name of a sheet

Note = Callable[[str], None]


def generate_grid(
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
    **settings,
) -> Iterator[dict]:
    """Yield a row for each image of each cell, prompt by prompt, and save a sheet for each prompt.

        axes       see `read_grid`
        settings   fields of `SamplingRequest` for all cells; the other parameters are those of
                   `generate_rows`
        yields     rows of `generate_rows` with "cell", the values of the axes; the last row of a sheet also
                   has "sheet", its path

    With `count`, each number has a sheet of its own. Images that exist are not generated again.

    Raises:
        UsageError: if a setting is invalid for the model; before anything is generated.
        LuminaError: if a row is invalid or writing fails.
    """
    note, cells = _once(note), list_cells(axes)
    requests = [SamplingRequest(**cell.request_settings(settings)) for cell in cells]
    for request in requests:
        request.check()
    rows = start_generation(rows, out, format, batch)
    if rows is None:
        return
    resolved = [request.resolve(pipeline) for request in requests]
    names = FileNames(out, format, requests[0].count)
    notes = PromptNotes(pipeline, note)
    generator = RowGenerator(pipeline, resolved[0], names, notes, progress)
    common = _common_settings(axes, SamplingRequest(**settings).resolve(pipeline).plan)
    grid = _Grid(axes, list(map(_GridCell, cells, requests, resolved)), generator, common, note)
    for index, row in enumerate(notes.watch(rows)):
        if index == 0:
            notes.report()
        tasks = grid.find_tasks(index, row)
        sheets = grid.name_sheets(index, row, tasks)  # also of other splits: their names are taken
        if split.has(index):
            yield from grid.rows(row, tasks, sheets, batch, force)
    notes.finish()


@dataclass(frozen=True)
class _GridCell:
    """A cell with its request, before and after the plan of the model is filled in."""

    cell: Cell
    request: SamplingRequest
    resolved: ResolvedRequest


@dataclass(frozen=True)
class _Grid:
    """The steps that generate the grid of each prompt.

    common   settings that all cells share, for the caption of a sheet
    """

    axes: Sequence[Axis]
    cells: Sequence[_GridCell]
    generator: RowGenerator
    common: Mapping[str, Any]
    note: Note

    def find_tasks(self, index: int, row: dict) -> list[list[ImageTask]]:
        """The tasks of each cell for one row, one for each number."""
        stem, tasks = _stem(index, row), []
        for one in self.cells:
            key = f"{stem[:MAX_NAME]}-{slug(_cell_words(one.cell))}"
            keyed = {**row, **one.cell.row_overrides(), "key": key}
            pipeline, names = self.generator.pipeline, self.generator.names
            found = find_tasks([keyed], one.request, one.resolved, pipeline, names, ALL, self.note, index)
            tasks.append(list(found))
        return tasks

    def name_sheets(self, index: int, row: dict, tasks: Sequence[Sequence[ImageTask]]) -> list[Path]:
        """Assign a path to the sheet of each number."""
        stem, names = _stem(index, row), self.generator.names
        return [_name_sheet(row, self.axes, numbered, names, stem) for numbered in zip(*tasks, strict=True)]

    def rows(
        self,
        row: dict,
        tasks: Sequence[Sequence[ImageTask]],
        sheets: Sequence[Path],
        batch: int | None,
        force: bool,
    ) -> Iterator[dict]:
        """Generate the images of one prompt; yield their rows cell by cell.

        The rows of the last cell wait for their sheets, whose paths they contain.
        """
        generated: list[list[dict]] = []
        for one, own in zip(self.cells, tasks, strict=True):
            self.generator.resolved = one.resolved
            windows = read_windows(own, batch, self.generator.pipeline.token_side)
            found = chain.from_iterable(self.generator.rows(window, batch, force) for window in windows)
            generated.append([_cell_row(image_row, row, one.cell) for image_row in found])
            if one is not self.cells[-1]:
                yield from generated[-1]
        for last, numbered, path in zip(generated[-1], zip(*generated, strict=True), sheets, strict=True):
            yield last | {"sheet": str(self._save_sheet(row, numbered, path))}

    def _save_sheet(self, row: dict, generated: Sequence[dict], path: Path) -> Path:
        """Draw and save the sheet of one prompt and number; return its path."""
        first, hidden = generated[0], [axis.name for axis in self.axes]
        shown = {name: first[name] for name in ("model", "size", "seed") if name not in hidden}
        shown |= ({"number": first["number"]} if first["number"] else {}) | dict(self.common)
        caption = ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
        row_labels = [", ".join(words) for words in product(*(axis.labels() for axis in self.axes[:-1]))]
        sheet = Sheet(row["prompt"], caption, self.axes[-1].labels(), row_labels)
        image, lost = draw_sheet(sheet, [open_image(to_path(one["image"])) for one in generated])
        if lost:
            self.note(
                f"the sheet omits {lost!r}: no installed font contains these characters; "
                "installing Noto Sans CJK may help"
            )
        metadata = _sheet_metadata(row, self.axes, [to_path(one["image"]) for one in generated])
        return self.generator.names.save(image, path, metadata, lambda path: _read_sheet(path) == metadata)


def _once(note: Note | None) -> Note:
    """Pass each line on once: every cell has the same remarks on a prompt."""
    seen: set[str] = set()

    def note_once(line: str) -> None:
        if note and line not in seen:
            seen.add(line)
            note(line)

    return note_once


def _stem(index: int, row: dict) -> str:
    """The start of the file names of a row: its key, or its index and prompt."""
    return slug(str(row.get("key", ""))) or "-".join(filter(None, (f"{index:05d}", slug(row["prompt"]))))


def _cell_row(generated: dict, row: dict, cell: Cell) -> dict:
    """The row of an image, with the key of the prompt's row instead of that of the file name."""
    generated = {name: value for name, value in generated.items() if name != "key" or "key" in row}
    return generated | ({"key": row["key"]} if "key" in row else {}) | {"cell": dict(cell.values)}


def _cell_words(cell: Cell) -> str:
    return " ".join(map(" ".join, zip(cell.values, cell.words, strict=True)))


def _common_settings(axes: Sequence[Axis], plan: Plan) -> dict:
    """The settings in the caption of a sheet that no axis changes."""
    names = [axis.name for axis in axes]
    hidden = [*names, *(["steps"] if "calls" in names else []), *(SETTINGS if "preset" in names else ())]
    shown = ("solver", "steps", "guidance", "shift")
    return {name: getattr(plan, name) for name in shown if name not in hidden}


def _name_sheet(
    row: dict, axes: Sequence[Axis], tasks: Sequence[ImageTask], names: FileNames, stem: str
) -> Path:
    """Assign the path of a sheet: its row, axes, seed and number."""
    job = tasks[0].job
    words = slug(" ".join(f"{axis.name} {' '.join(axis.words)}" for axis in axes))
    tail = "" if any(axis.name == "seed" for axis in axes) else f"-s{job.seed}"
    tail += f"-{job.number}" if names.count > 1 else ""
    metadata = _sheet_metadata(row, axes, [task.path for task in tasks])
    name = f"{stem[:MAX_NAME]}-grid-{words[:MAX_NAME]}{tail}"
    return names.next_free(name, "png", lambda path: _read_sheet(path) == metadata)[0]


def _sheet_metadata(row: dict, axes: Sequence[Axis], images: Sequence[Path]) -> dict:
    """The metadata of a sheet; the file names of its images identify it."""
    values = {axis.name: list(axis.values) for axis in axes}
    return {"grid": values, "of": row["prompt"], "pictures": [path.name for path in images]}


def _read_sheet(path: Path) -> dict | None:
    """The metadata of an existing file; None if it is not an image."""
    try:
        return read_metadata(path)
    except LuminaError:
        return None
