"""GenEval's folder layout: OUT/00000/metadata.jsonl has a prompt row, OUT/00000/samples/00000.png its images.

Images are written atomically, and their metadata has the settings that generated them, so an interrupted run
resumes without generating an image twice.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import read_metadata, save_image
from lumina_cli.core.images.suffixes import LeftOut, is_image
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.atomic import disk_errors
from lumina_cli.core.io.remote import AnyPath
from lumina_cli.core.limits import read_json_file

NOISE_STRIDE = 1000  # image k of prompt i has noise 1000 i + k: a larger count keeps the earlier images

PlannedImage = tuple[AnyPath, dict, int]  # file, prompt row, noise number


@dataclass(frozen=True)
class ImageGenerator:
    """A source of images for prompts.

    generate    (prompt rows, noise numbers) -> images
    settings    everything else that an image depends on
    recognize   translates the "weights" in images of earlier versions
    """

    generate: Callable[[list[dict], list[int]], list[Image]]
    settings: dict
    recognize: Callable[[str], str] = str


def generate_images(
    rows: Sequence[dict], generator: ImageGenerator, out: AnyPath, per_prompt: int = 4, batch: int = 16
) -> Iterator[tuple[AnyPath, dict]]:
    """Yield (path, prompt row) of every image, after generating those that `out` does not have yet.

    An image counts as present if its metadata has the settings of `generator`. A batch with a missing image
    is generated as a whole, because the other images of a batch affect rounding: so a resumed run writes the
    same bytes as one without interruption.

    Raises:
        LuminaError: if `out` has images of other prompts.
    """
    for group in plan_groups(rows, out, per_prompt, batch):
        generate_group(group, generator)
        yield from ((path, row) for path, row, _ in group)


def plan_groups(
    rows: Sequence[dict], out: AnyPath, per_prompt: int = 4, batch: int = 16
) -> Iterator[list[PlannedImage]]:
    """Write the prompts of a run to `out`; yield the images that are generated and judged together.

    Raises:
        LuminaError: if `out` has images of other prompts.
    """
    _write_prompts(rows, out)
    jobs = iter([(number, k) for number in range(len(rows)) for k in range(per_prompt)])
    while group := list(islice(jobs, batch)):
        yield [
            (out / f"{i:05d}" / "samples" / f"{k:05d}.png", rows[i], NOISE_STRIDE * i + k) for i, k in group
        ]


def generate_group(group: list[PlannedImage], generator: ImageGenerator) -> None:
    """Generate a batch as a whole if one of its images is missing, and save those that are."""
    records = [generator.settings | {"prompt": row["prompt"], "number": number} for _, row, number in group]
    missing = [
        not _is_current(path, record, generator.recognize)
        for (path, *_), record in zip(group, records, strict=True)
    ]
    if not any(missing):
        return
    images = generator.generate([row for _, row, _ in group], [number for *_, number in group])
    for (path, *_), record, image, new in zip(group, records, images, missing, strict=True):
        if new:
            with disk_errors(str(path)):
                save_image(image, path, record)


def _write_prompts(rows: Sequence[dict], out: AnyPath) -> None:
    """Write the metadata.jsonl of each prompt; refuse a folder with the prompts of another run."""
    held = {folder.name: folder for folder in prompt_folders(out)}
    for number, row in enumerate(rows):
        known = held.pop(name := f"{number:05d}", None)
        path = out / name / "metadata.jsonl"
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if known and path.exists():
            if path.read_text(encoding="utf-8") != line:
                raise LuminaError(
                    f"{out} contains results of a different run ({path} does not have the prompt "
                    f"{row['prompt']!r}); choose another --out"
                )
            continue
        filesystem.make_dir(str(out / name / "samples"))
        filesystem.write_file(str(path), line.encode())
    if held:
        raise LuminaError(
            f"{out} contains results of a different run (this run does not have the prompt of "
            f"{held[min(held)]}); choose another --out"
        )


def _is_current(path: AnyPath, wanted: dict, recognize: Callable[[str], str]) -> bool:
    """Return whether an image exists and was generated with the wanted settings."""
    if not path.exists():
        return False
    try:
        found = read_metadata(path)
    except LuminaError:
        return False
    if isinstance(found.get("weights"), str):
        found["weights"] = recognize(found["weights"])
    return {key: found.get(key) for key in wanted} == json.loads(json.dumps(wanted))


def sweep_samples(out: AnyPath) -> None:
    """Remove temporary files that killed runs left in the folders of the prompts."""
    for folder in prompt_folders(out):
        filesystem.remove_partial(str(folder))
        filesystem.remove_partial(str(folder / "samples"))


def prompt_folders(folder: AnyPath) -> list[AnyPath]:
    """Return the numbered subfolders, in numerical order."""
    found = [name for name in filesystem.list_folders(str(folder)) if name.isdigit()]
    return [folder / name for name in sorted(found, key=int)]


def scan_images(folder: AnyPath, left_out: LeftOut | None = None) -> Iterator[tuple[AnyPath, dict]]:
    """Yield (path, prompt row) of every image of a folder in GenEval's layout, generated by any program.

    An image is named by a number. `left_out` receives all other files next to it.

    Raises:
        LuminaError: if the folder does not have this layout; the message names the first wrong place.
    """
    if not filesystem.is_dir(str(folder)):
        raise LuminaError(f"{folder}: no such folder")
    folders = prompt_folders(folder)
    if not folders:
        raise LuminaError(f"{folder}: no numbered folder; GenEval's layout is 00000/samples/00000.png")
    for place in folders:
        row = read_prompt(place / "metadata.jsonl")
        samples = place / "samples"
        names = filesystem.list_names(str(samples))
        images = [samples / name for name in names if is_image(name) and Path(name).stem.isdigit()]
        if not images:
            raise LuminaError(f"{samples}: no image such as 00000.png")
        for name in names if left_out is not None else ():
            if is_image(name) and not Path(name).stem.isdigit():
                left_out.add_image("not named by a number")
            elif not is_image(name) and not name.startswith("."):
                left_out.add_file(name)
        yield from ((path, row) for path in images)


def read_prompt(path: AnyPath) -> dict:
    """Return the prompt row of a metadata.jsonl.

    Raises:
        LuminaError: if the file is missing or is not a single JSON object.
    """
    try:
        row = read_json_file(path)
    except FileNotFoundError:
        raise LuminaError(
            f"{path}: missing; GenEval's layout stores the metadata of the prompt in it"
        ) from None
    except ValueError as error:
        raise LuminaError(f"{path}: not a single JSON object ({error})") from None
    if not isinstance(row, dict):
        raise LuminaError(f"{path}: expected a JSON object, got {type(row).__name__}")
    return row
