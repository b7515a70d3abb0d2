"""Bootstrap intervals: coverage, paired differences and determinism."""

import numpy as np
import pytest

from lumina_cli.core.evals import bootstrap


def stratum(*cells):
    return np.array(cells)


def test_scores_are_means_over_images():
    strata = [stratum((4, 4), (0, 4)), stratum((1, 1), (0, 3))]
    assert bootstrap.task_scores(strata) == pytest.approx([0.5, 0.25])


def test_interval_depends_on_the_seed():
    strata = [stratum(*((k % 5, 4) for k in range(30)))]
    first, again, other = (bootstrap.resample(strata, seed) for seed in (3, 3, 4))
    assert (first == again).all()
    assert not (first == other).all()


def test_interval_covers_the_mean_and_narrows_with_more_prompts():
    rng = np.random.default_rng(0)
    widths = []
    for prompts in (20, 80, 320):
        cells = np.stack([rng.binomial(4, 0.7, prompts), np.full(prompts, 4)], axis=1)
        low, high = bootstrap.interval(bootstrap.resample([cells])[:, 0])
        assert low < cells[:, 0].sum() / cells[:, 1].sum() < high
        widths.append(high - low)
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.2)
    assert widths[2] / widths[1] == pytest.approx(0.5, abs=0.2)


def test_interval_has_its_nominal_coverage():
    rng = np.random.default_rng(1)
    covered = 0
    for run in range(200):
        cells = np.stack([rng.binomial(4, 0.7, 60), np.full(60, 4)], axis=1)
        low, high = bootstrap.interval(bootstrap.resample([cells], seed=run, resamples=300)[:, 0])
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_prompts_are_resampled_instead_of_images():
    """Four pictures that always agree are one observation: the interval is that of 25 prompts, not of 100 pictures."""
    clustered = stratum(*((4 * (k % 2), 4) for k in range(25)))
    single = stratum(*((k % 2, 1) for k in range(25)))
    assert (bootstrap.resample([clustered]) == bootstrap.resample([single])).all()


def test_a_perfect_run_has_an_interval_of_zero_width():
    assert bootstrap.interval(bootstrap.resample([stratum((4, 4), (4, 4))])[:, 0]) == [1.0, 1.0]


def test_paired_difference_is_zero_for_equal_runs_and_narrower():
    cells = stratum(*((k % 5, 4) for k in range(40)))
    assert not bootstrap.paired_difference([cells], [cells]).any()
    better = np.stack([np.minimum(cells[:, 0] + 1, 4), cells[:, 1]], axis=1)
    paired = bootstrap.interval(bootstrap.paired_difference([cells], [better])[:, 0])
    apart = bootstrap.resample([better], 1) - bootstrap.resample([cells], 2)
    low, high = bootstrap.interval(apart[:, 0])
    assert paired[0] > 0
    assert paired[1] - paired[0] < (high - low) / 2
