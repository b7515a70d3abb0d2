"""Optimizer, learning rate, and moving average of the weights.

Muon trains the matrices of attention and feed-forward, AdamW the rest. The exponential moving average
generates better images than the weights themselves.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lumina_cli.core.training.config import OptimizerSettings, Stage

INNER = (".attention.", ".feed_forward.")  # in the parameter names of the matrices that Muon trains


class Optimizer:
    """Several torch optimizers that step together, with one learning rate.

    AdamW uses the stage's `lr`; Muon uses `muon_ratio` times as much. Muon's updates are scaled to the RMS of
    AdamW's updates, so that one learning rate suits both.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings, inner: tuple[str, ...] = INNER):
        matrices, rest = (
            split_parameters(model, inner) if settings.name == "muon" else ([], list(model.parameters()))
        )
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(
                rest, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay, foreach=True
            )
        }
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                matrices,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        self.ratios = {"adamw": 1.0, "muon": settings.muon_ratio}

    def step(self, lr: float) -> None:
        """Update the weights at learning rate `lr`, then reset the gradients."""
        for name, part in self.parts.items():
            for group in part.param_groups:
                group["lr"] = lr * self.ratios[name]
            part.step()
            part.zero_grad(set_to_none=True)

    def zero_grad(self) -> None:
        """Reset the gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """Return optimizer name -> state."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned.

        Raises:
            KeyError: if `state` is that of another optimizer.
        """
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def split_parameters(model: nn.Module, inner: tuple[str, ...] = INNER) -> tuple[list[Tensor], list[Tensor]]:
    """Return (matrices of attention and feed-forward, all other parameters)."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        within = any(part in name for part in inner)
        (matrices if within and parameter.ndim == 2 else rest).append(parameter)
    return matrices, rest


def learning_rate(stage: Stage, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warmup, constant, linear decay to 0."""
    warm = min(1.0, (step + 1) / stage.warmup) if stage.warmup else 1.0
    falling = stage.decay * stage.steps
    left = min(1.0, (stage.steps - step) / falling) if falling else 1.0
    return stage.lr * warm * left


def ema_decay(updates: int, decay: float) -> float:
    """Return the decay after `updates` steps: low at first, so that the untrained weights fade quickly."""
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def update_ema(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """Move each tensor of `average` towards the matching tensor of `weights` by 1 - decay, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)
