"""A gallery: one HTML file beside the pictures of a folder, with what each says of itself.

Prompts and file names are other people's text: the template escapes all of them, and the page's own policy
runs no script but the one that is written here.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import SUFFIXES, read_metadata
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.io.html import inline_script
from lumina_cli.core.registry import ASSETS

NAME = "gallery.html"
ALWAYS = (
    "solver",
    "steps",
    "guidance",
    "shift",
)  # settings that are shown also where they are the usual ones
OWN = ("prompt", "negative", "seed", "number", "model", "size", "system")

Note = Callable[[str], None]


@dataclass(frozen=True)
class GalleryImage:
    """A picture of the gallery: its link, the words that a filter looks through, what is told of it."""

    name: str
    link: str
    prompt: str
    line: str
    facts: dict[str, dict[str, str]]
    command: str | None
    sheet: bool

    @property
    def words(self) -> str:
        """Everything that is told of it, in lower case."""
        told = [f"{name} {value}" for facts in self.facts.values() for name, value in facts.items()]
        return " ".join([self.name, self.prompt, self.line, *told]).lower()


def write_gallery(folder: str | Path, title: str | None = None, note: Note | None = None) -> Path:
    """Write gallery.html into a folder for all pictures that are in it; return its path.

    Files that are no pictures are left out, and `note` is told. LuminaError where the folder has no picture,
    or the disk refuses.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LuminaError(f"{folder} is no folder of pictures")
    pictures = []
    for path in sorted(folder.iterdir(), key=_natural):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            try:
                pictures.append(describe(path, read_metadata(path)))
            except LuminaError as error:
                (note or (lambda line: None))(f"not in the gallery: {error}")
    if not pictures:
        raise LuminaError(f"{folder} has no pictures for a gallery")
    pictures.sort(key=lambda picture: not picture.sheet)
    target = folder / NAME
    with disk_errors(target), atomic_write(target) as aside:
        aside.write_text(render(pictures, title or folder.resolve().name), encoding="utf-8", newline="\n")
    return target


def render(pictures: list[GalleryImage], title: str) -> str:
    """Return the page."""
    template = Environment(autoescape=True).from_string((ASSETS / NAME).read_text(encoding="utf-8"))
    return template.render(pictures=pictures, title=title, **inline_script(ASSETS / "gallery.js"))


def describe(path: Path, metadata: dict) -> GalleryImage:
    """Return what the gallery tells of a picture with this metadata, whoever wrote it."""
    sheet = "grid" in metadata
    prompt = _text(metadata.get("of" if sheet else "prompt"))
    size = metadata.get("size")
    size = "x".join(map(str, size)) if isinstance(size, list) else size
    own = {name: metadata.get(name) for name in OWN[1:]} | {"size": size}
    own["number"] = own["number"] or None
    own = {name: value for name, value in own.items() if value not in (None, "")}
    axes = metadata.get("grid") if isinstance(metadata.get("grid"), dict) else {}
    plan = metadata.get("plan") if isinstance(metadata.get("plan"), dict) else {}
    usual = asdict(Plan())
    plan = {name: value for name, value in plan.items() if name in ALWAYS or usual.get(name, ...) != value}
    edit = metadata.get("edit") if isinstance(metadata.get("edit"), dict) else {}
    edit = {name: value for name, value in edit.items() if not name.endswith("pixels")}
    facts = {
        "Picture": {
            "file": path.name,
            **_texts({name: value for name, value in own.items() if value not in (None, "")}),
        },
        "Plan": {name.replace("_", " "): _setting(value) for name, value in plan.items()},
        "Grid": {name: ", ".join(map(_setting, axes[name])) for name in axes if isinstance(axes[name], list)},
        "Drawn over": _texts(edit),
        "As it was written": _texts(_dict(metadata.get("parameters"))),
    }
    if "attention" in metadata:
        prompt = f"attention to {_text(metadata['attention'])}"
    seed = f"seed {own['seed']}" if "seed" in own else None
    told = own.get("model"), size, seed, " ".join(_text(plan[name]) for name in ALWAYS[:2] if name in plan)
    line = "grid" if sheet else ", ".join(_text(one) for one in told if one)
    command = f"lumina sample --from {shlex.quote(str(path))}" if metadata.get("prompt") else None
    return GalleryImage(path.name, f"./{quote(path.name)}", prompt, line, facts, command, sheet)


def _natural(path: Path) -> list:
    """A key that puts 2 before 10."""
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
