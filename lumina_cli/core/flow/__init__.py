"""The flow from noise to data: path, noise, solvers, guidance, and the plan that names their settings."""

from lumina_cli.core.flow.noise import draw_noise
from lumina_cli.core.flow.path import interpolate, shift_time, train_shift
from lumina_cli.core.flow.plan import Plan

__all__ = ["Plan", "draw_noise", "interpolate", "shift_time", "train_shift"]
