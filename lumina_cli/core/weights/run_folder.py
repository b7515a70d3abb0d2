"""A run folder: the resolved recipe, metrics, checkpoints for resuming, and the exported model.

    recipe.yaml              the resolved recipe
    metrics.jsonl            one row per logged step
    events.out.tfevents.*    TensorBoard
    checkpoints/0001000/     weights.safetensors, ema.safetensors, optimizer.pt (read with weights_only) and
                             state.json
    model/                   the exported model folder

Everything is written under a temporary name and renamed, so a file or folder with its final name is complete.
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
from lumina_cli.core.io.atomic import apply_umask, disk_errors
from lumina_cli.core.weights.json_files import declare_float32, summarize_error, write_text


@contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `final` if the block succeeds.

    `final` keeps its content until then. If the process is killed between the two renames, the next call
    restores the old folder.

    Raises:
        LuminaError: if writing fails.
    """
    final = Path(final)
    aside, old = final.with_name(f".{final.name}.partial"), final.with_name(f".{final.name}.old")
    _restore_folder(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with disk_errors(final):
            aside.mkdir(parents=True)
            yield aside
            apply_umask(aside)
            _replace_folder(aside, final, old)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _restore_folder(final: Path) -> None:
    """Restore the folder that a killed process left under its backup name, or delete a stale backup."""
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():
        with disk_errors(final):
            old.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _replace_folder(aside: Path, final: Path, old: Path) -> None:
    """Rename `aside` to `final`; on failure `final` is unchanged."""
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


class RunFolder:
    """The files of a training run; `keep` is the number of checkpoints to keep."""

    def __init__(self, path: Path, keep: int = 2):
        self.path, self.keep = Path(path), keep
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"

    def write_recipe(self, settings: dict) -> None:
        """Write the resolved recipe."""
        write_text(self.path / "recipe.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in ascending order."""
        names = [p.name for p in self.checkpoints.glob("*") if (p / "state.json").exists()]
        return sorted(int(name) for name in names if name.isdigit())

    def save(self, weights: dict[str, Tensor], ema: dict[str, Tensor], optimizer: dict, state: dict) -> Path:
        """Write the checkpoint of `state["step"]`, delete all but the last `keep`, and return its folder.

            weights, ema   {name: tensor} of the model and of its moving average
            optimizer      the optimizer's state dict
            state          JSON object; "step" names the checkpoint

        Raises:
            LuminaError: if writing fails.
        """
        final = self.checkpoints / f"{state['step']:07d}"
        with staged_folder(final) as aside:
            save_file({k: v.contiguous() for k, v in weights.items()}, aside / "weights.safetensors")
            save_file({k: v.contiguous() for k, v in ema.items()}, aside / "ema.safetensors")
            with (aside / "optimizer.pt").open("wb") as file:  # reports why a write fails
                torch.save(optimizer, file)
            (aside / "state.json").write_text(json.dumps(state), encoding="utf-8")
        for step in self.steps()[: -self.keep]:
            shutil.rmtree(self.checkpoints / f"{step:07d}", ignore_errors=True)
        return final

    def state(self) -> dict | None:
        """Return the state of the last checkpoint, or None without a checkpoint."""
        steps = self.steps()
        if not steps:
            return None
        return json.loads((self.checkpoints / f"{steps[-1]:07d}" / "state.json").read_text(encoding="utf-8"))

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
        """Return (weights, averaged weights, optimizer state) of a checkpoint, on the CPU.

        Raises:
            LuminaError: if a file is damaged.
        """
        folder = self.checkpoints / f"{step:07d}"
        try:
            weights, ema = (load_file(folder / f"{name}.safetensors") for name in ("weights", "ema"))
            # on the CPU, so that a run can resume without the GPU that it started on
            optimizer = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
            return weights, ema, optimizer
        except Exception as error:  # safetensors, zip and pickle each raise their own kind
            raise LuminaError(
                f"{folder} cannot be read ({summarize_error(error)}); "
                "delete it to resume from the previous one"
            ) from error

    def append_metrics(self, row: dict) -> None:
        """Append a line to metrics.jsonl in one write, so that a kill truncates at most the last line."""
        with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewind_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, and a truncated line."""
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
        """Yield a folder that becomes `model/`, with copies of those `parts` of a model folder that exist."""
        with staged_folder(self.path / "model") as aside:
            for part in (frozen / name for name in parts if (frozen / name).exists()):
                if part.is_dir():
                    shutil.copytree(part, aside / part.name, copy_function=shutil.copyfile)
                else:
                    shutil.copyfile(part, aside / part.name)
            declare_float32(aside / "text_encoder")
            yield aside
