"""Rows with a prompt in, the same rows with an image out."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path

from PIL import Image

from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.formats.images import read_metadata, save_picture
from lumina_cli.core.formats.rows import check_prompt
from lumina_cli.core.sampling.metadata import Origin, from_metadata, to_metadata
from lumina_cli.core.sampling.models import Choice, choose_model
from lumina_cli.core.sampling.pipeline import Job, Pipeline, PlanLike, Size, load_pipeline, parse_size

SUFFIXES = ("png", "webp", "jpg")
LONGEST_SLUG = 60


def draw_rows(
    rows: Iterable[dict],
    model: str | Path | Choice | Pipeline = "auto",
    out: str | Path = "pictures",
    *,
    seed: int = 0,
    count: int = 1,
    size: Size = None,
    plan: PlanLike = None,
    system: str = "real",
    batch: int | None = None,
    format: str = "png",
    note: Callable[[str], None] | None = None,
) -> Iterator[dict]:
    """Yield each row `count` times, with "image" (a path), "seed", "number", "model" and "size" added.

    A picture depends on its prompt, its seed (the row's own "seed", else `seed`) and its number from 0 to
    `count` - 1; not on the order or the other rows, nor on the batch, if `load_pipeline` says so. `plan` is
    a Plan, or the settings in which it differs from the model's own. Reads the first row before it makes the
    folder or loads the model, and then one batch ahead. A prompt that the network cannot read to its end adds
    "truncated", the number of tokens left out. Pictures are PNG, WebP or JPEG with their origin inside; two
    rows never share a file, and only the same drawing again replaces one: where another model, other weights,
    plan, size or system prompt has the name, it gets "-2". `note` is told, a line each, what "auto" chose and
    which prompts were cut.
    """
    _check_before_loading(size, plan, system, format, {"count": count, "batch": batch})
    jobs = _jobs(rows, seed, count)
    first = list(islice(jobs, 1))
    if not first:
        return
    jobs, out = chain(first, jobs), _make_folder(Path(out))
    pipeline = _load(model, note)
    size, plan = pipeline.size_for(size), pipeline.plan_for(plan)
    names = FileNames(out, format, count)
    while group := list(islice(jobs, batch or pipeline.batch_for(size))):
        pictures = pipeline.draw([job for _, _, job in group], plan, size, system)
        dropped = pipeline.text.dropped([full_prompt(job.prompt, system) for _, _, job in group])
        for (index, row, job), picture, lost in zip(group, pictures, dropped, strict=True):
            drawn = (pipeline.name, size, system, plan, pipeline.weights)
            origin = Origin(job.prompt, job.seed, job.number, *drawn)
            path = _save(picture, names.of(index, row, origin), origin)
            added = {"image": str(path), "seed": job.seed, "number": job.number, "model": pipeline.name}
            added["size"] = "{}x{}".format(*size)
            added |= {"model_reason": pipeline.reason} if pipeline.reason else {}
            if lost:
                added["truncated"] = lost
                if note:
                    note(f"row {index + 1}: the prompt is too long; its last {lost} tokens were not read")
            yield {**row, **added}


def _check_before_loading(size: Size, plan: PlanLike, system: str, format: str, numbers: dict) -> None:
    """Raise what can be known to be wrong without waiting for the model."""
    if isinstance(plan, Mapping):
        Plan.from_json(dict(plan))
    if size is not None:
        parse_size(size)
    full_prompt("", system)
    if format not in SUFFIXES:
        raise UsageError(f"unknown picture format {format!r}; choose from {', '.join(SUFFIXES)}")
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, but must be 1 or more")


def _load(model: str | Path | Choice | Pipeline, note: Callable[[str], None] | None) -> Pipeline:
    if isinstance(model, Pipeline):
        return model
    choice = model if isinstance(model, Choice) else choose_model(model)
    if choice.reason and note:
        note(choice.reason)
    return load_pipeline(choice)


def _make_folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LuminaError(f"cannot write to {out}: {error.strerror or error}") from error
    return out


def _jobs(rows: Iterable[dict], seed: int, count: int) -> Iterator[tuple[int, dict, Job]]:
    """Yield (position of the row, row, job) for every picture."""
    for index, row in enumerate(rows):
        check_prompt(row, f"row {index + 1}")
        for number in range(count):
            yield index, row, Job(row["prompt"], row.get("seed", seed), number)


def _save(picture: Image.Image, path: Path, origin: Origin) -> Path:
    try:
        return save_picture(picture, path, to_metadata(origin))
    except OSError as error:
        raise LuminaError(f"cannot write {path}: {error.strerror or error}") from error


class FileNames:
    """A file name for every picture: safe, inside one folder, and given to one picture only."""

    def __init__(self, out: Path, format: str, count: int):
        self.out, self.format, self.count = out, format, count
        self.used: set[Path] = set()

    def of(self, index: int, row: dict, origin: Origin) -> Path:
        """Return a path: the row's "key", or else its position and prompt; the seed; the number.

        Where another picture has that name already, name-2, name-3...
        """
        key = slug(str(row.get("key", "")))
        stem = key or "-".join(filter(None, (f"{index:05d}", slug(origin.prompt))))
        stem = f"{stem}-s{origin.seed}" + (f"-{origin.number}" if self.count > 1 else "")
        path, again = self.out / f"{stem}.{self.format}", 1
        while path in self.used or (path.exists() and _drawn_from(path) != origin):
            again += 1
            path = self.out / f"{stem}-{again}.{self.format}"
        self.used.add(path)
        return path


def _drawn_from(path: Path) -> Origin | None:
    try:
        return from_metadata(read_metadata(path))
    except LuminaError:  # no picture of ours
        return None


def slug(text: str) -> str:
    """Return the letters and digits of `text`, of any script, joined by dashes; at most about 60 of them."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())
    return "-".join(words).encode()[: 3 * LONGEST_SLUG].decode(errors="ignore")[:LONGEST_SLUG].strip("-_")
