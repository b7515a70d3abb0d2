"""Where a training run stands: how far a row is, and for a small part a state to go on from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io.atomic import atomic_write, disk_errors
from lumina_cli.core.weights.run_folder import first_line, write_text


def check_state(path: Path) -> None:
    """Raise LuminaError where there is no run to go on with."""
    if not path.exists():
        raise LuminaError(f"{path.parent} has nothing to resume; start it without --resume")


@dataclass
class TrainingProgress:
    """Weights, optimiser state and step of one run, in one file that is only ever replaced whole.

    The settings of the run lie beside it, as YAML.
    """

    path: Path
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    settings: BaseModel

    def save(self, step: int) -> None:
        """Write the state after `step` steps, and the settings."""
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with disk_errors(self.path), atomic_write(self.path) as aside, aside.open("wb") as file:
            torch.save(state, file)
        settings = self.settings.model_dump(mode="json")
        write_text(self.path.with_suffix(".yaml"), yaml.safe_dump(settings, sort_keys=False))

    def load(self) -> int:
        """Restore the last saved state and return its step; LuminaError if it is damaged or does not fit."""
        check_state(self.path)
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            step, weights, optimizer = state["step"], state["model"], state["optimizer"]
        except Exception as error:  # zip, pickle and torch each raise their own kind
            raise LuminaError(
                f"{self.path} cannot be read ({first_line(error)}); delete it to start again"
            ) from error
        try:
            self.model.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LuminaError(
                f"{self.path} holds another network than these settings make; delete it to start again"
            ) from error
        return step


def describer(settings: Any, stage: str) -> Callable[[dict], tuple]:
    """Return a function that says how far a row is: (steps done, of how many, stage and loss)."""

    def describe(row: dict) -> tuple[int | None, int | None, str | None]:
        name = row.get("stage", settings.part)
        text = f"{name}  loss {row['loss']:.4g}" if "loss" in row else row.get("phase")
        return row.get("step", row.get("pictures")), _total(settings, stage, row), text

    return describe


def _total(settings: Any, stage: str, row: dict) -> int | None:
    """Return the step at which the run ends: a stage counts on from wherever the one before it stopped."""
    if "stage_step" not in row:
        return getattr(settings, "steps", None)
    names = settings.chosen(stage)
    left = sum(settings.stages[name].steps for name in names[names.index(row["stage"]) :])
    return row["step"] - row["stage_step"] + left
