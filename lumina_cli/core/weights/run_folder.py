"""A run folder: the resolved recipe, metrics, checkpoints to resume from, and the exported model.

    recipe.yaml  metrics.jsonl  events.out.tfevents.*  checkpoints/0001000/  model/

A checkpoint holds weights.safetensors, ema.safetensors, optimizer.pt (never unpickled) and state.json.
Everything is written aside and renamed, so what has its final name is whole.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `final` when the block ends without an error.

    What `final` held stays until then; a kill between the two renames is made good by the next call.
    """
    final = Path(final)
    aside, old = final.with_name(f".{final.name}.partial"), final.with_name(f".{final.name}.old")
    _restore_folder(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with disk_errors(final):
            aside.mkdir(parents=True)
            yield aside
            _replace_folder(aside, final, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _restore_folder(final: Path) -> None:
    """Bring back the folder that a kill left under its old name; where the new one is there, remove it."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        with disk_errors(final):
            old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(aside: Path, final: Path, old: Path) -> None:
    """Put `aside` where `final` is; where that fails, `final` is as it was."""
    if not final.exists():
        aside.rename(final)
        return
    final.rename(old)
    try:
        aside.rename(final)
    except BaseException:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with disk_errors(path), atomic_write(path) as aside:
        aside.write_text(text, encoding="utf-8")


def first_line(error: Exception) -> str:
    """Return what an error says in one line: torch's and pickle's may have many, or none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class RunFolder:
    """The files of one training run; `keep` is how many checkpoints stay."""

    def __init__(self, path: Path, keep: int = 2):
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"

    def write_recipe(self, settings: dict) -> None:
        """Write the resolved recipe, as the run uses it."""
        write_text(self.path / "recipe.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in rising order."""
        names = [p.name for p in self.checkpoints.glob("*") if (p / "state.json").exists()]
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, weights: dict[str, Tensor], ema: dict[str, Tensor], optimizer: dict, state: dict) -> Path:
        """Write the checkpoint of `state["step"]` and delete all but the last `keep`; returns its folder."""
        final = self.checkpoints / f"{state['step']:07d}"
        with staged_folder(final) as aside:
            save_file({k: v.contiguous() for k, v in weights.items()}, aside / "weights.safetensors")
            save_file({k: v.contiguous() for k, v in ema.items()}, aside / "ema.safetensors")
            with (aside / "optimizer.pt").open("wb") as file:  # torch itself would not say why a write failed
                torch.save(optimizer, file)
            (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.checkpoints / f"{step:07d}", ignore_errors=True)
        return final

    def state(self) -> dict | None:
        """Return the state of the last checkpoint, or None where there is none."""
        steps = self.steps()
        if not steps:
            return None
        return json.loads((self.checkpoints / f"{steps[-1]:07d}" / "state.json").read_text(encoding="utf-8"))

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        """Return weights, averaged weights and the optimiser's state; LuminaError if a file is damaged."""
        folder = self.checkpoints / f"{step:07d}"
        try:
            weights, ema = (load_file(folder / f"{name}.safetensors") for name in ("weights", "ema"))
            # on the CPU, so that a run can go on without the GPU it began on; the optimiser moves its state
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            return weights, ema, optimizer
        except Exception as error:  # safetensors, zip and pickle each raise their own kind
            raise LuminaError(
                f"{folder} cannot be read ({first_line(error)}); delete it to resume from the one before"
            ) from error

    def append_metrics(self, row: dict) -> None:
        """Add a line to metrics.jsonl; one write, so that a kill leaves at most the last line cut."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, and a line that a kill cut short."""
        if not self.metrics.exists():
            return
        lines = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if row["step"] <= step:
                lines.append(line)
        write_text(self.metrics, "".join(line + "\n" for line in lines))

    @contextmanager
    def model_aside(self, frozen: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Give a folder that becomes `model/`, with those `parts` of a model folder in it that exist."""
        with staged_folder(self.path / "model") as aside:
            for part in (frozen / name for name in parts if (frozen / name).exists()):
                if part.is_dir():
                    shutil.copytree(part, aside / part.name, copy_function=shutil.copyfile)
                else:
                    shutil.copyfile(part, aside / part.name)
            yield aside
