"""GenEval's folders: OUT/00000/metadata.jsonl holds a prompt row, OUT/00000/samples/00000.png its pictures.

Pictures are written aside and renamed, and each carries what it was drawn with, so that a run that was
stopped goes on where it stopped and draws nothing twice.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL.Image import Image

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.images.io import read_metadata, save_image
from lumina_cli.core.io.atomic import atomic_write, disk_errors

NOISE_STRIDE = 1000  # picture k of prompt i has noise 1000 i + k, so that more pictures keep the earlier ones


@dataclass(frozen=True)
class ImageGenerator:
    """draw(prompt rows, noise numbers) -> pictures; settings: what a picture depends on besides these two."""

    draw: Callable[[list[dict], list[int]], list[Image]]
    settings: dict


def generate_images(
    rows: Sequence[dict], drawer: ImageGenerator, out: Path, per_prompt: int = 4, batch: int = 16
) -> Iterator[tuple[Path, dict]]:
    """Yield (path, prompt row) of every picture, drawing those that `out` lacks with the drawer's settings.

    Raises LuminaError where `out` holds pictures of other prompts.
    """
    _write_prompts(rows, out)
    jobs = iter([(number, k) for number in range(len(rows)) for k in range(per_prompt)])
    while group := list(islice(jobs, batch)):
        places = [(out / f"{i:05d}" / "samples" / f"{k:05d}.png", rows[i]) for i, k in group]
        origins = [
            drawer.settings | {"prompt": rows[i]["prompt"], "number": NOISE_STRIDE * i + k} for i, k in group
        ]
        missing = [
            (path, row, origin)
            for (path, row), origin in zip(places, origins, strict=True)
            if not _drawn(path, origin)
        ]
        if missing:
            paths, asked, origins = zip(*missing, strict=True)
            pictures = drawer.draw(list(asked), [origin["number"] for origin in origins])
            for path, origin, picture in zip(paths, origins, pictures, strict=True):
                with disk_errors(path):
                    save_image(picture, path, origin)
        yield from places


def _write_prompts(rows: Sequence[dict], out: Path) -> None:
    """Write metadata.jsonl of each prompt, refusing a folder that holds another run's prompts."""
    held = {folder.name: folder for folder in prompt_folders(out)} if out.is_dir() else {}
    for number, row in enumerate(rows):
        folder = held.pop(f"{number:05d}", out / f"{number:05d}")
        path = folder / "metadata.jsonl"
        line = json.dumps(row, ensure_ascii=False) + "\n"
        if path.exists():
            if path.read_text(encoding="utf-8") != line:
                raise LuminaError(
                    f"{path}: holds another run's prompt, not {row['prompt']!r}; choose another --out"
                )
            continue
        with disk_errors(path):
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as aside:
                aside.write_text(line, encoding="utf-8")
    if held:
        name = min(held)
        raise LuminaError(f"{held[name]}: a prompt that this run does not have; choose another --out")


def _drawn(path: Path, wanted: dict) -> bool:
    """Whether a picture is there and was drawn with the wanted settings."""
    if not path.exists():
        return False
    try:
        found = read_metadata(path)
    except LuminaError:
        return False
    return {key: found.get(key) for key in wanted} == json.loads(json.dumps(wanted))


def prompt_folders(folder: Path) -> list[Path]:
    """Return the numbered folders inside a folder, in the order of their numbers."""
    found = [entry for entry in folder.iterdir() if entry.name.isdigit() and entry.is_dir()]
    return sorted(found, key=lambda entry: int(entry.name))


def scan_images(folder: Path) -> Iterator[tuple[Path, dict]]:
    """Yield (path, prompt row) of every picture of a folder in GenEval's layout, whoever made it.

    Raises LuminaError where the folder is not in this layout, naming the first place that is not.
    """
    if not folder.is_dir():
        raise LuminaError(f"{folder}: no such folder")
    folders = prompt_folders(folder)
    if not folders:
        raise LuminaError(f"{folder}: no numbered folder in it; GenEval's layout is 00000/samples/00000.png")
    for place in folders:
        row = read_prompt(place / "metadata.jsonl")
        pictures = sorted(path for path in (place / "samples").glob("*.png") if path.stem.isdigit())
        if not pictures:
            raise LuminaError(f"{place / 'samples'}: no picture in it, such as 00000.png")
        yield from ((path, row) for path in pictures)


def read_prompt(path: Path) -> dict:
    """Return the one prompt row of a metadata.jsonl."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LuminaError(f"{path}: missing; it holds the prompt's row of GenEval's metadata") from None
    except ValueError as error:
        raise LuminaError(f"{path}: not one JSON object ({error})") from None
    if not isinstance(row, dict):
        raise LuminaError(f"{path}: holds {type(row).__name__}, not one JSON object")
    return row
