"""Figures of a report: quantiles and ranked counts."""

import numpy as np

QUANTILES = {"p1": 0.01, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}


def rank_counts(counts: dict[str, int]) -> dict[str, int]:
    """Sort counts: the most frequent first, then "en" (of languages), then by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0] != "en", item[0])))


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Return mean, least, quantiles and most of values (N,); {} if there are none."""
    if not len(values):
        return {}
    found = dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())), strict=True))
    whole = {"mean": values.mean(), "least": values.min(), **found, "most": values.max()}
    return {name: round(float(value), 4) for name, value in whole.items()}
