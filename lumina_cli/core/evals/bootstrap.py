"""Bootstrap confidence intervals over prompts, because the images of one prompt are not independent.

S strata (tasks); a stratum is an array (P, 2) with one line per prompt: correct images, images. Each stratum
is resampled separately, so every resample has as many prompts per task as the run.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95


def task_scores(strata: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean score over images of each task, (S,)."""
    return np.array([stratum[:, 0].sum() / stratum[:, 1].sum() for stratum in strata])


def resample(strata: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Return the task scores of bootstrap resamples, (resamples, S); deterministic for a given seed."""
    columns = []
    for number, stratum in enumerate(strata):
        weights = _weights(len(stratum), seed, number, resamples)
        hits, images = (weights @ stratum).T
        columns.append(hits / images)
    return np.stack(columns, axis=1)


def _weights(prompts: int, seed: int, number: int, resamples: int) -> np.ndarray:
    """Return how often each resample contains each prompt, (resamples, P)."""
    rng = np.random.default_rng([abs(seed), number])
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)


def interval(samples: np.ndarray, level: float = LEVEL) -> list[float]:
    """Return [low, high], the percentile interval of `samples` (resamples,), rounded to 5 decimals."""
    tail = (1 - level) / 2
    return [round(float(value), 5) for value in np.quantile(samples, (tail, 1 - tail))]


def paired_difference(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the task scores of `second` minus those of `first` for each bootstrap resample, (resamples, S).

    Line p of a stratum must be the same prompt in both runs; both use the same resampled prompts.
    """
    return resample(second, seed, resamples) - resample(first, seed, resamples)
