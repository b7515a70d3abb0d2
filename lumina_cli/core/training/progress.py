"""Where a training run of a small part stands, so that it can go on after an interruption."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.formats.atomic import atomic_write, disk_errors


@dataclass
class Progress:
    """Weights, optimiser state and step of one run, in one file that is only ever replaced whole."""

    path: Path
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def save(self, step: int) -> None:
        """Write the state after `step` steps."""
        state = {"step": step, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        with disk_errors(self.path), atomic_write(self.path) as aside, aside.open("wb") as file:
            torch.save(state, file)

    def load(self) -> int:
        """Restore the last saved state and return its step."""
        if not self.path.exists():
            raise LuminaError(f"{self.path.parent} has nothing to resume; start it without --resume")
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["step"]
