"""The flow from noise to data: path, initial noise, solvers, guidance, and the plan with their settings."""

from lumina_cli.core.flow.noise import draw_noise
from lumina_cli.core.flow.path import interpolate, shift_time, train_shift
from lumina_cli.core.flow.plan import Plan

__all__ = ["Plan", "draw_noise", "interpolate", "shift_time", "train_shift"]
