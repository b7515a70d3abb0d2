"""Confidence intervals by the bootstrap over prompts: pictures of one prompt are not independent.

A stratum is one task: an array (P, 2) with a line per prompt, (correct pictures, pictures). Strata are
resampled each on its own, so that every resample holds as many prompts of a task as the run did.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def task_scores(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over pictures of each of S tasks, (S,)."""
    return np.array([stratum[:, 0].sum() / stratum[:, 1].sum() for stratum in strata])


def resample(strata: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return task scores of bootstrap resamples, (resamples, S); the same seed gives the same draws."""
    columns = []
    for number, stratum in enumerate(strata):
        weights = _weights(len(stratum), seed, number, resamples)
        hits, pictures = (weights @ stratum).T
        columns.append(hits / pictures)
    return np.stack(columns, axis=1)


def _weights(prompts: int, seed: int, number: int, resamples: int) -> np.ndarray:
    """How often each prompt is in each resample, (resamples, P)."""
    rng = np.random.default_rng([abs(seed), number])
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)


def interval(samples: np.ndarray, level: float = LEVEL) -> list[float]:
    """Return [low, high], the percentile interval of (resamples,) values, to 5 decimals."""
    tail = (1 - level) / 2
    return [round(float(value), 5) for value in np.quantile(samples, (tail, 1 - tail))]


def paired_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return second - first of bootstrap resamples, (resamples, S).

    Line p of a stratum is the same prompt in both runs, and a resample takes the same prompts of both.
    """
    return resample(second, seed, resamples) - resample(first, seed, resamples)
