"""Solvers of the probability flow ODE dx/dt = velocity(x, t), from noise (t = 0) to data (t = 1).

A solver is a generator `(velocity, x, times)` that yields the state at the end of every step:

    velocity   (x, t) -> like x   the velocity of state x at time t
    x          (B, ...)           the state at times[0], in any floating-point dtype, which the solver keeps
    times                         increasing floats, one more than there are steps

The exponential integrators use the letters of their papers. On the straight path x_t = t x_1 + (1 - t) noise:

    alpha_t = t    sigma_t = 1 - t    lambda_t = log(alpha_t / sigma_t)    h = lambda_t - lambda_s
    x0             the predicted data, x + (1 - t) velocity; the papers count time from the data
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lumina_cli.core.flow.path import predict_data, shift_time

Velocity = Callable[[Tensor, float], Tensor]
Step = Callable[[Velocity, Tensor, Sequence[float]], Iterator[Tensor]]
Grid = Callable[[int, float], list[float]]

FIRST_DPM_TIME = 0.001  # before the shift: lambda_t is minus infinity at t = 0


def even_grid(steps: int, shift: float) -> list[float]:
    """Return `steps` + 1 times from 0 to 1, evenly spaced before the time shift."""
    return [shift_time(n / steps, shift) for n in range(steps + 1)]


def dpm_grid(steps: int, shift: float) -> list[float]:
    """Return `steps` + 1 times from just above 0 to 1, evenly spaced before the time shift."""
    span = 1 - FIRST_DPM_TIME
    return [shift_time(FIRST_DPM_TIME + span * n / steps, shift) for n in range(steps)] + [1.0]


@dataclass(frozen=True)
class Solver:
    """A solver and its properties: an entry of SOLVERS. Calling it calls `step`.

    step    the generator, see the module
    order   its order of convergence, which a test measures
    calls   network calls per step
    grid    (steps, shift) -> the times of a plan
    """

    step: Step
    order: int
    calls: int = 1
    grid: Grid = even_grid

    def __call__(self, velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
        """Yield the state at the end of every step."""
        return self.step(velocity, x, times)


def solver(order: int, calls: int = 1, grid: Grid = even_grid) -> Callable[[Step], Solver]:
    """Decorate a generator to make it a `Solver`."""
    return lambda step: Solver(step, order, calls, grid)


@solver(order=1)
def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Euler's method: first order, one call per step."""
    for t, t_next in pairwise(times):
        x = x + (t_next - t) * velocity(x, t)
        yield x


@solver(order=2, calls=2)
def midpoint(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Explicit midpoint method: second order, two calls per step."""
    for t, t_next in pairwise(times):
        half = (t_next - t) / 2
        x = x + (t_next - t) * velocity(x + half * velocity(x, t), t + half)
        yield x


@solver(order=2, calls=2)
def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Heun's method, the explicit trapezoidal rule: second order, two calls per step."""
    for t, t_next in pairwise(times):
        k1 = velocity(x, t)
        k2 = velocity(x + (t_next - t) * k1, t_next)
        x = x + (t_next - t) * (k1 + k2) / 2
        yield x


@solver(order=4, calls=4)
def rk4(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """Kutta's 3/8 rule, which torchdiffeq calls `rk4`: fourth order, four calls per step."""
    for t, t_next in pairwise(times):
        h = t_next - t
        k1 = velocity(x, t)
        k2 = velocity(x + h / 3 * k1, t + h / 3)
        k3 = velocity(x + h * (k2 - k1 / 3), t + 2 * h / 3)
        k4 = velocity(x + h * (k1 - k2 + k3), t_next)
        x = x + h / 8 * (k1 + 3 * (k2 + k3) + k4)
        yield x


@solver(order=2, grid=dpm_grid)
def dpmpp_2m(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """DPM-Solver++(2M): second-order multistep, one call per step.

        D   = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0_last    with r = h_last / h
        x_t = sigma_t / sigma_s x_s - alpha_t (e^-h - 1) D

    The first and the last step are of first order (D = x0). Source: DPM-Solver++ (arXiv 2211.01095),
    algorithm 2, on the straight path as in Sana (arXiv 2410.10629).
    """
    final = len(times) - 2
    x0_last, h_last = None, 0.0
    for n, (s, t) in enumerate(pairwise(times)):
        alpha_s, sigma_s, alpha_t, sigma_t = s, 1 - s, t, 1 - t
        exp_minus_h = alpha_s * sigma_t / (sigma_s * alpha_t)
        h = -math.log(exp_minus_h) if exp_minus_h > 0 else math.inf
        D = x0 = predict_data(x, velocity(x, s), s)
        if x0_last is not None and n < final:
            D = x0 + (x0 - x0_last) * (h / (2 * h_last))
        x = sigma_t / sigma_s * x + alpha_t * (1 - exp_minus_h) * D
        x0_last, h_last = x0, h
        yield x


@solver(order=3, grid=dpm_grid)
def unipc(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Iterator[Tensor]:
    """UniPC-2: second-order predictor (UniP) and corrector (UniC), third order, one call per step.

    The call at the end of a step also serves the corrector, which improves the state that the step predicted
    before the next step starts. The step to t = 1 returns the predicted data, since lambda_1 is infinite.
    Source: UniPC (arXiv 2302.04867), UniP-2 and UniC-2 in the form for data prediction, with B_2(h).
    """
    known: list[tuple[float, Tensor]] = []  # (lambda, x0) of the last two calls
    x_last, t_last = x, 0.0  # the corrected state at the last call, and its time
    for s, t in pairwise(times):
        new = half_log_snr(s), predict_data(x, velocity(x, s), s)
        if known:
            x = unipc_update(x_last, t_last, s, known, new)  # UniC
        known = [*known[-1:], new]
        x_last, t_last = x, s
        x = unipc_update(x, s, t, known)  # UniP
        yield x


def unipc_update(
    x: Tensor, s: float, t: float, known: list[tuple[float, Tensor]], new: tuple[float, Tensor] | None = None
) -> Tensor:
    """Move the state `x` from time s to t: by UniP, or by UniC if `new` is given.

    x_t = sigma_t / sigma_s x_s - alpha_t B(h) (x0_s + sum_m a_m / r_m (x0_m - x0_s))
    B(h) = e^-h - 1,  r_m = (lambda_m - lambda_s) / h

    known   (lambda, x0) of the last calls, the last of them at time s
    new     (lambda, x0) of the call at time t
    """
    lambda_s, x0_s = known[-1]
    if t >= 1:
        return x0_s
    h = half_log_snr(t) - lambda_s
    others = [*known[:-1], new] if new else known[:-1]
    r = [(lambda_m - lambda_s) / h for lambda_m, _ in others]
    D = x0_s
    for a_m, r_m, (_, x0_m) in zip(unipc_coefficients(r, h), r, others, strict=True):
        D = D + a_m / r_m * (x0_m - x0_s)
    sigma_s, sigma_t, alpha_t, B_h = 1 - s, 1 - t, t, math.expm1(-h)
    return sigma_t / sigma_s * x - alpha_t * B_h * D


def unipc_coefficients(r: list[float], h: float) -> list[float]:
    """Return the coefficients a_m of UniPC, which solve sum_m a_m r_m^(n - 1) = b_n for n = 1, 2, ...

        b_n = -h n! phi_(n + 1)(-h) / B(h)
        phi_1(z) = (e^z - 1) / z,  phi_(n + 1)(z) = (phi_n(z) - 1 / n!) / z

    With one ratio, a_1 is 1/2 for every h, as in the paper. With two, the second ratio is 1 (the corrector).
    """
    if len(r) < 2:
        return [0.5] * len(r)
    B_h = math.expm1(-h)
    b_1 = (B_h / -h - 1) / B_h
    b_2 = ((B_h / -h - 1) / -h - 0.5) * 2 / B_h
    a_1 = (b_1 - b_2) / (1 - r[0])
    return [a_1, b_1 - a_1]


def half_log_snr(t: float) -> float:
    """Return lambda_t = log(alpha_t / sigma_t), finite at t = 0 as well."""
    return math.log(max(t, 1e-9) / (1 - t))
