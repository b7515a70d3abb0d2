"""Rows with a prompt in, the same rows with an image out."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.atomic import sweep
from lumina_cli.core.io.remote import AnyPath, to_path
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.sampling.batching import Split, local_device, plan_batches, read_windows
from lumina_cli.core.sampling.inputs.prompt_notes import PromptNotes
from lumina_cli.core.sampling.output.filenames import FileNames
from lumina_cli.core.sampling.output.metadata import GenerationRecord
from lumina_cli.core.sampling.request import (
    Job,
    ResolvedRequest,
    SamplingRequest,
    check_at_least,
    checked_rows,
    size_of,
)

if TYPE_CHECKING:  # a usage error is reported before the pipeline's imports, which take seconds
    from PIL import Image

    from lumina_cli.core.sampling.pipeline import Pipeline

SUFFIXES = ("png", "webp", "jpg", "avif")
# keys that describe the image of an earlier run; they are dropped from a row that gets a new image
IMAGE_KEYS = ("resumed", "truncated", "negative_truncated", "cached", "model_reason")

ALL = Split()
Note = Callable[[str], None]
ProgressCallback = Callable[..., None]


@dataclass(frozen=True)
class ImageTask:
    """One image of a run.

    position   of the image in the output, from 0
    index      of its row in the input, from 0
    tokens     of the prompt with its system prompt, as far as they are encoded
    path       the file to write
    exists     whether that file already contains this image
    """

    position: int
    index: int
    row: dict
    job: Job
    size: tuple[int, int]
    tokens: int
    record: GenerationRecord
    path: AnyPath
    exists: bool


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
    **settings,
) -> Iterator[dict]:
    """Yield each row `count` times, in order, with its "image" (a path) and how it was generated.

        rows       each with a "prompt", optionally with its own "seed", "size", "negative" and "key"
        model      a name, folder or hub id, or a loaded pipeline
        out        folder of the images; created if missing
        batch      images per batch; None: as many as their sizes and captions allow
        format     png, webp, jpg or avif; the image's `GenerationRecord` is embedded as metadata
        split      the rows to generate; file names are the same as in a run without splits
        force      generate images that already exist again
        note       called with one line per remark: the choice of "auto", sizes that were snapped, truncated
                   prompts
        progress   called with (images done, images that already existed) for each image that is saved, and
                   for each step also with `ahead`, the work on unfinished images in images, and a `label`
        settings   fields of `SamplingRequest`: seed, count, size, plan, preset, system, negative,
                   negative_system
        yields     the row with "image", "seed", "number" (0 to `count` - 1), "model", "size" and "kernel"
                   (the attention implementation) added

    An image depends on its prompt, negative prompt, seed, size and number; not on the order of rows or on
    other rows. The batch matters only as `load_pipeline` describes.

    The first row is validated before the folder is created and the model is loaded; then rows are read a few
    batches ahead. Two rows never share a file. If a file with the same record exists, its image is not
    generated again and the row contains "resumed"; if the file has another record (another model, plan, size,
    prompt...), the new image gets the suffix "-2". "truncated" is the number of prompt tokens beyond the
    longest text.

    Raises:
        UsageError: if a setting is invalid.
        LuminaError: if a row is invalid, the model is damaged or writing fails.
    """
    request, note = SamplingRequest(**settings), note or (lambda line: None)
    request.check()
    rows = start_generation(rows, out, format, batch)
    if rows is None:
        return
    pipeline = _load(model, note)
    resolved = request.resolve(pipeline)
    names, notes = FileNames(out, format, request.count), PromptNotes(pipeline, note)
    tasks = find_tasks(notes.watch(rows), request, resolved, pipeline, names, split, note)
    generator = RowGenerator(pipeline, resolved, names, notes, progress)
    for number, window in enumerate(read_windows(tasks, batch, pipeline.token_side)):
        if number == 0:
            notes.report()
        yield from generator.rows(window, batch, force)
    notes.finish()


def start_generation(
    rows: Iterable[dict], out: str | Path, format: str, batch: int | None
) -> Iterator[dict] | None:
    """Validate the settings and the first row, then create the folder; return all rows or None.

    Raises:
        UsageError: if the format or the batch is invalid.
        LuminaError: if the first row is invalid or the folder cannot be created.
    """
    check_at_least(1, batch=batch)
    if format not in SUFFIXES:
        raise UsageError(f"unknown image format {format!r}; choose from {', '.join(SUFFIXES)}")
    first = list(islice(rows := checked_rows(rows), 1))
    if not first:
        return None
    _make_folder(to_path(out))
    return chain(first, rows)


def find_tasks(
    rows: Iterable[dict],
    request: SamplingRequest,
    resolved: ResolvedRequest,
    pipeline: "Pipeline",
    names: FileNames,
    split: Split,
    note: Note,
    start: int = 0,
) -> Iterator[ImageTask]:
    """Yield a task for each image of a split, in the order of the rows; the first row has index `start`.

    File names are assigned to the images of all splits, so that each name is the same as in a run without
    splits. `note` is called once for each ratio that becomes a size.
    """
    sizes: dict = {}
    weights = pipeline.weights_for(resolved.plan)  # reads the cache fit from disk, so once per run
    position = 0
    for index, row in enumerate(rows, start):
        size = size_of(row, request, pipeline, sizes, note)
        seeds = (row["seed"],) if "seed" in row else request.seeds
        negative = row.get("negative", request.negative) or ""
        tokens = 0
        if split.has(index):
            tokens = pipeline.text.tokens.count([resolved.prompt(Job(row["prompt"]))])[0]
        for seed, number in product(seeds, range(request.count)):
            job = Job(row["prompt"], seed, number, negative)
            record = GenerationRecord.of(pipeline, resolved, job, size, weights)
            path, exists = names.assign(index, row, record)
            if split.has(index):
                tokens = min(tokens, pipeline.longest_text)
                yield ImageTask(position, index, row, job, size, tokens, record, path, exists)
            position += 1


class RowGenerator:
    """Generates tasks in batches, saves each batch at once, and returns the rows in order."""

    def __init__(
        self,
        pipeline: "Pipeline",
        resolved: ResolvedRequest,
        names: FileNames,
        notes: PromptNotes,
        progress: ProgressCallback | None = None,
    ):
        self.pipeline, self.resolved, self.names, self.notes = pipeline, resolved, names, notes
        self.progress = progress or (lambda done, existing, **step: None)
        self.done = self.existing = 0
        self.reason_reported = False  # only the first row has it
        self.saved: dict[int, dict] = {}  # "image" and "cached" of rows that are not yielded yet, by position

    def rows(self, window: list[ImageTask], batch: int | None, force: bool) -> Iterator[dict]:
        """Yield the row of each task in a window; generate the images that do not exist.

        Batches are formed by size and caption length, rows are yielded by position: before a row is yielded,
        as many batches run as its image needs. A batch with a missing image is generated as a whole, because
        the other images of a batch affect rounding: so a resumed run writes the same bytes as one without
        interruption.
        """
        missing = {task.position for task in window if force or not task.exists}
        self.existing += len(window) - len(missing)
        self.progress(self.done, self.existing)
        planned = plan_batches(window, batch, self.pipeline.token_side)
        incomplete = [tasks for tasks in planned if any(task.position in missing for task in tasks)]
        self.pipeline.encode_ahead([task.job for tasks in incomplete for task in tasks], self.resolved)
        pending = set(missing)
        with closing(self.generate(incomplete, missing)) as saved:
            for task in window:
                while task.position in pending:
                    pending.remove(next(saved))
                yield self.row(task, task.exists and not force)

    def generate(self, batches: list[list[ImageTask]], missing: set[int]) -> Iterator[int]:
        """Generate batches and save the images whose positions are in `missing`; yield each position.

        If the caller stops within a batch, the other images of the batch are saved too.
        """
        stopped = False
        for tasks in batches:
            if stopped:
                return
            left = sum(task.position in missing for task in tasks)
            for number, (task, image) in enumerate(zip(tasks, self._images(tasks, left), strict=True)):
                if task.position in missing:
                    self._save(task, image, number)
                    self.done, left = self.done + 1, left - 1
                    self.progress(self.done, self.existing, ahead=left, label="images")
                    try:
                        if not stopped:
                            yield task.position
                    except GeneratorExit:
                        stopped = True

    def _images(self, tasks: list[ImageTask], count: int) -> list["Image.Image"]:
        """Generate one batch and report each step; `count` of its images are missing."""
        steps = self.resolved.plan.steps

        def on_step(done: int, _) -> None:
            label = f"images, step {done} of {steps}"
            self.progress(self.done, self.existing, ahead=count * done / steps, label=label)

        jobs = [task.job for task in tasks]
        return self.pipeline.generate_batch(jobs, self.resolved, tasks[0].size, on_step)

    def _save(self, task: ImageTask, image: "Image.Image", number: int) -> None:
        """Save the image with index `number` of its batch."""
        path, cache = self.names.save_generated(image, task.path, task.record), self.pipeline.cache
        cached = {} if cache is None else {"cached": cache.report(number)}
        self.saved[task.position] = {"image": str(path)} | cached

    def row(self, task: ImageTask, resumed: bool) -> dict:
        """Return the row of an image that is saved."""
        job = task.job
        added = {"image": str(task.path), "seed": job.seed, "number": job.number, "model": self.pipeline.name}
        added |= {"size": "{}x{}".format(*task.size), "kernel": self.pipeline.kernel}
        added |= {"negative": job.negative} if job.negative else {}
        if self.pipeline.reason and not self.reason_reported:
            added["model_reason"], self.reason_reported = self.pipeline.reason, True
        texts = self.resolved.prompt(job), self.resolved.negative(job)
        for key, kind, lost in zip(
            ("truncated", "negative_truncated"),
            ("prompt", "negative prompt"),
            self.pipeline.text.dropped(texts),
            strict=True,
        ):
            if lost:
                added[key] = lost
                self.notes.add_truncated(task.index, kind, lost)
        added |= self.saved.pop(task.position, {})
        kept = {key: value for key, value in task.row.items() if key not in IMAGE_KEYS}
        return kept | added | ({"resumed": True} if resumed else {})


def _load(model: "str | Path | ModelChoice | Pipeline", note: Note) -> "Pipeline":
    from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline

    if isinstance(model, Pipeline):
        return model
    choice = model if isinstance(model, ModelChoice) else choose_model(model)
    if choice.reason:
        note(choice.reason)
    return load_pipeline(choice, local_device())


def _make_folder(out: AnyPath) -> None:
    if not isinstance(out, Path):
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LuminaError(f"cannot write to {out}: {error.strerror or error}") from error
    sweep(out)  # other processes may be writing there: only what dead ones left is removed
