"""Rows with a prompt in, the same rows with an image out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.images.sizes import parse_ratio
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.sampling.batching import Split, in_batches, in_windows, own_device
from lumina_cli.core.sampling.output.filenames import FileNames
from lumina_cli.core.sampling.output.metadata import GenerationRecord
from lumina_cli.core.sampling.request import (
    Job,
    ResolvedRequest,
    SamplingRequest,
    check_at_least,
    checked_rows,
)

if TYPE_CHECKING:  # a wrong word on the command line need not wait for a pipeline's imports
    from lumina_cli.core.sampling.pipeline import Pipeline

SUFFIXES = ("png", "webp", "jpg", "avif")
# what a row of an earlier run says of its own picture, and not of the one that is drawn for it now
OF_A_PICTURE = ("resumed", "truncated", "negative_truncated", "cached", "model_reason")

ALL = Split()
Note = Callable[[str], None]
ProgressCallback = Callable[[float, int], None]


@dataclass(frozen=True)
class ImageTask:
    """One picture of a run: the `place`-th, for the row `index`, in the file `path`, which may be there."""

    place: int
    index: int
    row: dict
    job: Job
    size: tuple[int, int]
    tokens: int  # of the prompt with its system prompt
    origin: GenerationRecord
    path: Path
    drawn: bool


def generate_rows(
    rows: Iterable[dict],
    model: "str | Path | ModelChoice | Pipeline" = "auto",
    out: str | Path = "pictures",
    *,
    batch: int | None = None,
    format: str = "png",
    split: Split = ALL,
    force: bool = False,
    note: Note | None = None,
    progress: ProgressCallback | None = None,
    **wishes,
) -> Iterator[dict]:
    """Yield each row `count` times, in order, with its "image" (a path) and how it was drawn added.

        batch      pictures drawn at once; without it, as many as their sizes and captions allow
        split      which of the rows to draw; their pictures have the names that they have without it
        force      draw again what is already there
        note       told, a line each, what "auto" chose, which sizes were snapped and which prompts were cut
        progress   told (pictures done, pictures that were already there); the first counts steps as fractions
        wishes     what `Wish` takes: seed, count, size, plan, preset, system, negative, negative_system

    A row's own "seed", "size" and "negative" come first. A picture depends on its prompt, negative prompt,
    seed, size, and number from 0 to `count` - 1; not on the order or the other rows, nor on the batch, if
    `load_pipeline` says so. The first row is read before the folder is made or the model loaded, and then a
    few batches ahead.

    Added are "image", "seed", "number", "model", "size" and "kernel", the attention that was called.
    Pictures are PNG, WebP, JPEG or AVIF with their origin inside; two rows never share a file. A picture
    that is there with the same origin is not drawn again: its row says "resumed". Where another one has the
    name (other model, weights, plan, size, prompts) the new one gets "-2". A prompt that is not read to its
    end adds "truncated", the number of tokens left out.
    """
    wish, note = SamplingRequest(**wishes), note or (lambda line: None)
    wish.check()
    rows = start_generation(rows, out, format, batch)
    if rows is None:
        return
    pipeline = _load(model, note)
    setup = wish.resolve(pipeline)
    names = FileNames(Path(out), format, wish.count)
    tasks = find_tasks(rows, wish, setup, pipeline, names, split, note)
    drawing = RowGenerator(pipeline, setup, names, progress)
    for window in in_windows(tasks, batch, pipeline.token_side):
        yield from drawing.rows(window, batch, force, note)


def start_generation(
    rows: Iterable[dict], out: str | Path, format: str, batch: int | None
) -> Iterator[dict] | None:
    """Check what a run is given, read its first row, then make its folder; return the rows, if any."""
    check_at_least(1, batch=batch)
    if format not in SUFFIXES:
        raise UsageError(f"unknown picture format {format!r}; choose from {', '.join(SUFFIXES)}")
    first = list(islice(rows := checked_rows(rows), 1))
    if not first:
        return None
    _make_folder(Path(out))
    return chain(first, rows)


def find_tasks(
    rows: Iterable[dict],
    wish: SamplingRequest,
    setup: ResolvedRequest,
    model: "Pipeline",
    names: FileNames,
    split: Split,
    note: Note,
    start: int = 0,
) -> Iterator[ImageTask]:
    """Yield a task for every picture of this share, in the order of the rows; the first is row `start`.

    The other shares' pictures are named, too, so that each name is the one that it would be in one run.
    `note` is told once which size a ratio stands for.
    """
    sizes: dict = {}
    weights = model.weights_for(setup.plan)  # reads the fit of a cache, so not for every picture
    place = 0
    for index, row in enumerate(rows, start):
        size = size_of(row, wish, model, sizes, note)
        seed, negative = row.get("seed", wish.seed), row.get("negative", wish.negative) or ""
        tokens = model.text.tokens.count([setup.prompt(Job(row["prompt"]))])[0] if split.has(index) else 0
        for number in range(wish.count):
            job = Job(row["prompt"], seed, number, negative)
            origin = GenerationRecord(
                job.prompt, job.seed, number, model.name, size, setup.system, setup.plan,
                weights, job.negative, bool(job.negative) and setup.negative_system,
                getattr(model, "edit_settings", None), model.loras, model.quantize,
            )  # fmt: skip
            path, drawn = names.of(index, row, origin)
            if split.has(index):
                yield ImageTask(
                    place, index, row, job, size, min(tokens, model.longest_text), origin, path, drawn
                )
            place += 1


def size_of(row: dict, wish: SamplingRequest, model: ModelFolder, known: dict, note: Note) -> tuple[int, int]:
    """Return the size of a row's pictures; a ratio becomes a size of training, which `note` is told once."""
    asked = row.get("size") or wish.size
    asked = tuple(asked) if isinstance(asked, list) else asked
    if asked not in known:
        known[asked] = model.size_for(asked)
        if parse_ratio(asked):
            note("size {}: {}x{}, the nearest size of training".format(asked, *known[asked]))
    return known[asked]


class RowGenerator:
    """Draws tasks batch by batch, writes each picture at once, and gives their rows back in order."""

    def __init__(
        self,
        pipeline: "Pipeline",
        setup: ResolvedRequest,
        names: FileNames,
        progress: ProgressCallback | None = None,
    ):
        self.pipeline, self.setup, self.names = pipeline, setup, names
        self.progress = progress or (lambda done, there: None)
        self.done = self.there = 0
        self.saved: dict[int, dict] = {}  # where a picture is, and what the cache left out, by place

    def rows(self, window: list[ImageTask], batch: int | None, force: bool, note: Note) -> Iterator[dict]:
        """Yield the row of every task in a window, drawing what is not there yet."""
        missing = [task for task in window if force or not task.drawn]
        self.there += len(window) - len(missing)
        self.progress(self.done, self.there)
        self.pipeline.read_ahead([task.job for task in missing], self.setup)
        batches = iter(in_batches(missing, batch, self.pipeline.token_side))
        waiting = {task.place for task in missing}
        for task in window:
            while task.place in waiting:
                group = next(batches)
                self.draw(group)
                waiting -= {one.place for one in group}
            yield self.row(task, task.drawn and not force, note)

    def draw(self, group: list[ImageTask]) -> None:
        """Draw one batch and write its pictures."""
        steps = self.setup.plan.steps

        def on_step(done: int, _) -> None:
            self.progress(self.done + len(group) * done / steps, self.there)

        jobs = [task.job for task in group]
        pictures = self.pipeline.draw_setup(jobs, self.setup, group[0].size, on_step)
        cache = self.pipeline.cache
        for number, (task, picture) in enumerate(zip(group, pictures, strict=True)):
            path = self.names.save_drawn(picture, task.path, task.origin)
            cached = {} if cache is None else {"cached": cache.report(number)}
            self.saved[task.place] = {"image": str(path)} | cached
        self.done += len(group)

    def row(self, task: ImageTask, resumed: bool, note: Note) -> dict:
        """Return the row of a picture that is there."""
        job, name = task.job, f"row {task.index + 1}"
        added = {"image": str(task.path), "seed": job.seed, "number": job.number, "model": self.pipeline.name}
        added |= {"size": "{}x{}".format(*task.size), "kernel": self.pipeline.kernel}
        added |= {"negative": job.negative} if job.negative else {}
        added |= {"model_reason": self.pipeline.reason} if self.pipeline.reason else {}
        texts = self.setup.prompt(job), self.setup.negative(job)
        for key, kind, lost in zip(
            ("truncated", "negative_truncated"),
            ("prompt", "negative prompt"),
            self.pipeline.text.dropped(texts),
            strict=True,
        ):
            if lost:
                added[key] = lost
                note(f"{name}: the {kind} is too long; its last {lost} tokens were not read")
        added |= self.saved.pop(task.place, {})
        kept = {key: value for key, value in task.row.items() if key not in OF_A_PICTURE}
        return kept | added | ({"resumed": True} if resumed else {})


def _load(model: "str | Path | ModelChoice | Pipeline", note: Note) -> "Pipeline":
    from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline

    if isinstance(model, Pipeline):
        return model
    choice = model if isinstance(model, ModelChoice) else choose_model(model)
    if choice.reason:
        note(choice.reason)
    return load_pipeline(choice, own_device())


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LuminaError(f"cannot write to {out}: {error.strerror or error}") from error
