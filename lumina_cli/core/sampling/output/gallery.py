"""HTML gallery of a folder of images, with the metadata of each.

Prompts and file names are untrusted text: the template escapes them, and the content security policy of the
page allows only its own script.
"""

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import read_metadata
from lumina_cli.core.images.suffixes import SUFFIXES
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.io.html import inline_script
from lumina_cli.core.registry import ASSETS

NAME = "gallery.html"
MARKED = 4096  # bytes at the start of a gallery that contain one of MARKS
# the generator, and the start of the galleries of version 0.1
MARKS = (
    b'<meta name="generator" content="lumina">',
    b":root { --ground: #faf9f7; --card: #fff; --ink: #1f2328;",
)
ALWAYS = (
    "solver",
    "steps",
    "guidance",
    "shift",
)  # settings that are shown even if they have their defaults
OWN = ("prompt", "negative", "seed", "number", "model", "size", "system")

Note = Callable[[str], None]


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery.

    link      relative URL of the file
    line      one-line summary: model, size, seed, solver
    facts     tables of the details, by heading
    command   shell command that regenerates the image; None without a prompt
    sheet     whether it is the sheet of a grid
    """

    name: str
    link: str
    prompt: str
    line: str
    facts: dict[str, dict[str, str]]
    command: str | None
    sheet: bool

    @property
    def words(self) -> str:
        """The text that the filter of the page searches, in lower case."""
        details = [f"{name} {value}" for facts in self.facts.values() for name, value in facts.items()]
        return " ".join([self.name, self.prompt, self.line, *details]).lower()


def write_gallery(folder: str | Path, title: str | None = None, note: Note | None = None) -> Path:
    """Write gallery.html for all images of a folder; return its path.

        title   of the page; None: the name of the folder
        note    called with one line for each file that is not a readable image

    Raises:
        LuminaError: if the folder does not exist or contains no images, if its gallery.html is of another
            program, or writing fails.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LuminaError(f"{folder} is not a folder of images")
    images = []
    for path in sorted(folder.iterdir(), key=_natural):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            try:
                images.append(describe(path, read_metadata(path)))
            except LuminaError as error:
                (note or (lambda line: None))(f"not in the gallery: {error}")
    if not images:
        raise LuminaError(f"{folder} contains no images for a gallery")
    check_gallery(folder)
    images.sort(key=lambda image: not image.sheet)  # sheets first
    target = folder / NAME
    with disk_errors(target), atomic_write(target) as aside:
        aside.write_text(render(images, title or folder.resolve().name), encoding="utf-8", newline="\n")
    return target


def check_gallery(folder: str | Path) -> None:
    """Check that a gallery can be written to a folder.

    Raises:
        LuminaError: if the folder contains a gallery.html of another program.
    """
    target = Path(folder) / NAME
    if not os.path.lexists(target):
        return
    try:
        start = target.read_bytes()[:MARKED] if target.is_file() else b""
    except OSError:
        start = b""
    if not any(mark in start for mark in MARKS):
        raise LuminaError(f"{target} was not written by lumina and is not replaced; move it away first")


def render(images: list[GalleryImage], title: str) -> str:
    """Return the HTML of the page."""
    template = Environment(autoescape=True).from_string((ASSETS / NAME).read_text(encoding="utf-8"))
    return template.render(images=images, title=title, **inline_script(ASSETS / "gallery.js"))


def describe(path: Path, metadata: dict) -> GalleryImage:
    """Return the gallery entry of an image with this metadata, which any program may have written."""
    sheet = "grid" in metadata
    prompt = _text(metadata.get("of" if sheet else "prompt"))
    size = metadata.get("size")
    size = "x".join(map(str, size)) if isinstance(size, list) else size
    own = {name: metadata.get(name) for name in OWN[1:]} | {"size": size}
    own["number"] = own["number"] or None
    own = {name: value for name, value in own.items() if value not in (None, "")}
    axes = metadata.get("grid") if isinstance(metadata.get("grid"), dict) else {}
    plan = metadata.get("plan") if isinstance(metadata.get("plan"), dict) else {}
    defaults = asdict(Plan())
    plan = {name: value for name, value in plan.items() if name in ALWAYS or defaults.get(name, ...) != value}
    edit = metadata.get("edit") if isinstance(metadata.get("edit"), dict) else {}
    edit = {name: value for name, value in edit.items() if not name.endswith("pixels")}
    facts = {
        "Image": {
            "file": path.name,
            **_texts({name: value for name, value in own.items() if value not in (None, "")}),
        },
        "Plan": {name.replace("_", " "): _setting(value) for name, value in plan.items()},
        "Grid": {name: ", ".join(map(_setting, axes[name])) for name in axes if isinstance(axes[name], list)},
        "Edited from": _texts(edit),
        "Original parameters": _texts(_dict(metadata.get("parameters"))),
    }
    if "attention" in metadata:
        prompt = f"attention to {_text(metadata['attention'])}"
    seed = f"seed {own['seed']}" if "seed" in own else None
    summary = own.get("model"), size, seed, " ".join(_text(plan[name]) for name in ALWAYS[:2] if name in plan)
    line = "grid" if sheet else ", ".join(_text(one) for one in summary if one)
    command = f"lumina sample --from {shlex.quote(str(path))}" if metadata.get("prompt") else None
    return GalleryImage(path.name, f"./{quote(path.name)}", prompt, line, facts, command, sheet)


def _natural(path: Path) -> list:
    """A sort key that puts 2 before 10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)
    ]


def _texts(values: dict) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _dict(value) -> dict:
    return value if isinstance(value, dict) else {}


def _setting(value) -> str:
    return "off" if value is None else _text(value)


def _text(value) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
