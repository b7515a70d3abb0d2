"""The training loop of the nano components: resume, rows of metrics, checkpoints and exports.

Each trainer passes its own step and export. Batches and random numbers depend on the step only, so a resumed
run computes what an uninterrupted one computes.
"""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lumina_cli.core.training.progress import TrainingProgress

TrainStep = Callable[[int], dict[str, float]]
Export = Callable[[], dict | None]


def fit(
    progress: TrainingProgress,
    train_step: TrainStep,
    export: Export,
    *,
    log_every: int,
    measures: bool = False,
    resume: bool = False,
) -> Iterator[dict]:
    """Train from step 0 or from the saved state to the last step; yield rows of metrics.

    progress    model, optimizer, state file and settings, which contain `steps` and `save_every`
    train_step  trains one step, counted from 0; returns its metrics
    export      writes the trained component; returns its measurements or None
    log_every   steps between rows
    measures    whether rows of steps that save contain the measurements of `export`. They are then yielded
                after the export, and each of them is a row; otherwise rows are yielded before it
    resume      whether to continue from the saved state

    Raises:
        LuminaError: if `resume` is set and the saved state is missing, damaged or of another network.
    """
    steps, save_every = progress.settings.steps, progress.settings.save_every
    first, damage = progress.load() if resume else (0, None)
    start = time.monotonic()
    if damage:
        yield {"phase": "resume", "step": first, "why": damage}
    if first >= steps:  # the process may have been killed, or the disk full, before the last export ended
        yield {"step": first} | (export() or {})
    for step in range(first, steps):
        metrics = train_step(step)
        row = {"step": step + 1, **metrics, "seconds": time.monotonic() - start}
        last = step + 1 == steps
        saves = last or (step + 1) % save_every == 0
        if not (saves and measures) and (last or (step + 1) % log_every == 0):
            yield row
        if saves:
            progress.save(step + 1)
            measurements = export() or {}
            if measures:
                yield row | measurements


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate: half a cosine down to 0, with a linear warmup."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def descend(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, clip: float) -> None:
    """Update the weights by one step along the gradient of `loss`, clipped to the norm `clip`."""
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
