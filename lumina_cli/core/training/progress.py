"""Progress of a training run: means of metrics, the saved state of a nano component, and progress lines."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel
from torch import Tensor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.weights.json_files import summarize_error, write_text
from lumina_cli.core.weights.run_folder import check_zip


class MetricsWindow:
    """Means of metrics over the steps since the last row.

    Checkpoints contain the window, so that a resumed run writes the same rows. Scalars on a device are kept
    as they are and read together only when a row or a checkpoint needs them, so that the host does not wait
    for the device in each step.
    """

    def __init__(self, state: dict | None = None):
        saved = (state or {}).get("window") or {"sums": {}, "steps": 0}
        self.sums, self.steps = dict(saved["sums"]), saved["steps"]
        self.unread: dict[str, list[Tensor]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the speed from now on: the time since the last row was not spent on training."""
        self.start, self.images = time.monotonic(), 0

    def add(self, metrics: dict[str, float | Tensor], images: int) -> None:
        """Add the metrics of one step on `images` images; tensors are scalars."""
        for name, value in metrics.items():
            self.sums.setdefault(name, 0.0)  # in the order of the first step, which is that of the row
            if isinstance(value, Tensor):
                self.unread.setdefault(name, []).append(value)
            else:
                self.sums[name] += value
        self.steps += 1
        self.images += images

    def _read(self) -> None:
        """Add the scalars that are still on the device, step by step: another order would round otherwise."""
        for name, values in self.unread.items():
            for value in torch.stack(values).tolist():
                self.sums[name] += value
        self.unread = {}

    def close(self) -> dict[str, float]:
        """Return the means and the speed in images per second, and start the next window."""
        self._read()
        means = {name: value / self.steps for name, value in self.sums.items()}
        speed = self.images / max(time.monotonic() - self.start, 1e-9)
        self.sums, self.steps = {}, 0
        self.restart_clock()
        return means | {"pictures_per_second": round(speed, 1)}

    def to_json(self) -> dict:
        """Return the state that the constructor takes."""
        self._read()
        return {"window": {"sums": self.sums, "steps": self.steps}}


def check_state(path: Path) -> None:
    """Check that a run can be resumed.

    Raises:
        LuminaError: if its state file does not exist.
    """
    if not path.exists() and not previous_state(path).exists():
        raise LuminaError(f"{path.parent} has nothing to resume; start the run without --resume")


def previous_state(path: Path) -> Path:
    """Return the file with the state that was saved before the last one."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def read_state(path: Path) -> dict:
    """Return the content of a state file.

    Raises:
        LuminaError: if it is missing or damaged; the message is the reason.
    """
    if not path.exists():
        raise LuminaError(f"{path.name} is missing")
    try:
        check_zip(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if type(state["step"]) is not int or not {"model", "optimizer"} <= state.keys():
            raise LuminaError(f"{path.name} is not the state of a run")
    except Exception as error:  # zip, pickle and torch raise exceptions of their own
        raise LuminaError(summarize_error(error)) from error
    return state


@dataclass
class TrainingProgress:
    """Weights, optimizer state and step of one run in one file, which is replaced atomically.

    The state before the last one is kept, in case the file is damaged. The settings of the run are stored
    next to it, as YAML.
    """

    path: Path
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    settings: BaseModel

    def save(self, step: int) -> None:
        """Write the state after `step` steps, and the settings."""
        settings = self.settings and self.settings.model_dump(mode="json")
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with disk_errors(self.path), atomic_write(self.path) as aside:
            with aside.open("wb") as file:
                torch.save(state | {"settings": settings}, file)
            self._keep_previous()
        write_text(self.path.with_suffix(".yaml"), yaml.safe_dump(settings, sort_keys=False))

    def _keep_previous(self) -> None:
        """Give the state file a second name, under which it remains when it is replaced."""
        previous = previous_state(self.path)
        if self.path.exists():
            previous.unlink(missing_ok=True)
            try:
                os.link(self.path, previous)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.path, previous)

    def load(self) -> tuple[int, str | None]:
        """Restore the last whole state; return its step, and a line about a damaged newer one.

        Raises:
            LuminaError: if no saved state is whole, or it holds a different network than the recipe
                describes.
        """
        check_state(self.path)
        state, damage = self._newest_whole()
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LuminaError(
                f"{self.path} holds a different network than the recipe describes; delete it to start over"
            ) from error
        return state["step"], damage

    def _newest_whole(self) -> tuple[dict, str | None]:
        try:
            return read_state(self.path), None
        except LuminaError as error:
            reason = str(error)
        previous = previous_state(self.path)
        try:
            state = read_state(previous)
        except LuminaError:
            raise LuminaError(f"{self.path} is damaged ({reason}); delete it to start over") from None
        return state, f"{self.path} is damaged ({reason}); resuming from {previous} at step {state['step']}"


def describer(settings: Any) -> Callable[[dict], tuple]:
    """Return a function that maps a row to (steps done, total steps, text) for a progress bar.

    `settings` are those of the run.
    """

    def describe(row: dict) -> tuple[int | None, int | None, str | None]:
        name = row.get("stage", settings.part)
        text = f"{name}  loss {row['loss']:.4g}" if "loss" in row else row.get("phase")
        return row.get("step", row.get("pictures")), _total(settings, row), text

    return describe


def _total(settings: Any, row: dict) -> int | None:
    """Return the step at which the run ends, counted over all stages, or the number of images to cache."""
    if "stage_step" not in row:
        return row.get("total", getattr(settings, "steps", None))
    names = settings.select_stages()
    left = sum(settings.stages[name].steps for name in names[names.index(row["stage"]) :])
    return row["step"] - row["stage_step"] + left
