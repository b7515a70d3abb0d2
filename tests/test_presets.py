"""Presets: each program's own meaning of the same flags."""

import pytest

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import apply, find_preset


def test_official_counts_points_and_cuts_guidance_in_time():
    plan = find_preset("official").resolve(3.0, {"steps": 18})
    assert plan == Plan("midpoint", 17, 6.0, 4.0, 0.25, 1.0)
    assert len(plan.calls()) == 34
    assert sum(call.rows == 2 for call in plan.calls()) == 23


def test_diffusers_takes_the_models_shift_and_cuts_by_steps():
    plan = find_preset("diffusers").resolve(3.0, {"steps": 50, "guide_until": 0.25})
    assert (plan.shift, plan.renorm) == (3.0, "row")
    assert [call.rows for call in plan.calls()] == [2] * 12 + [1] * 38


def test_comfyui_neither_truncates_nor_renormalises_of_itself():
    plan = find_preset("comfyui").resolve(3.0, {})
    assert (plan.shift, plan.renorm, [call.rows for call in plan.calls()]) == (6.0, None, [2] * 36)
    late = find_preset("comfyui").resolve(3.0, {"guide_until": 0.5}).calls()
    assert [call.rows == 2 for call in late] == [1 - call.t < 0.5 for call in late]


@pytest.mark.parametrize(("solver", "steps"), [("euler", 13), ("midpoint", 6), ("rk4", 3), ("unipc", 13)])
def test_a_budget_of_calls_whatever_the_solver(solver, steps):
    plan = apply(Plan(), {"solver": solver, "calls": 13})
    assert plan.steps == steps
    assert 13 - plan.calls_per_step < len(plan.calls()) <= 13


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("plan: {solver: dpm, steps: 14, renorm: off}\n")
    assert find_preset(path).resolve(2.0, {}) == Plan("dpm", 14, 2.0, renorm=None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 3, "calls": 3}, "steps and calls both say how long to draw; give one of them"),
        ({"calls": 1}, "1 calls are no step: midpoint needs 2 for each"),
        ({"steps": 1}, "steps is 1, but this preset counts points in time, of which 2 are a step"),
    ],
)
def test_budgets_that_cannot_be(given, words):
    with pytest.raises(UsageError) as caught:
        find_preset("official").resolve(6.0, given)
    assert str(caught.value) == words


def test_what_is_no_preset(tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'offical'; did you mean 'official'"):
        find_preset("offical")
    path = tmp_path / "mine.yaml"
    path.write_text("plan: {solvr: dpm}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml line 1: .*solvr"):
        find_preset(path)
