"""Layer cache: decisions of the policies, the curve, cached sampling, and the fit file."""

import json

import pytest
import torch

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.sampling import draw_latents
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.teacache.calibrate import DistanceRecorder, fit_teacache, scene_prompts
from lumina_cli.core.sampling.teacache.fit import CacheFit, Measurement, read_cache_fit, write_cache_fit
from lumina_cli.core.sampling.teacache.kinds import fit_digest
from lumina_cli.core.sampling.teacache.layer_cache import InterceptedNetwork, LayerCache, cache_for
from lumina_cli.core.sampling.teacache.policy import (
    Curve,
    FirstBlockCache,
    GenerationState,
    TeaCache,
    fit_curve,
    relative_l1_distance,
    should_run,
)
from lumina_cli.core.weights.fingerprint import fingerprint

LINE = Curve((0.0, 1.0), 1.0)  # the distance itself


def run_through(rule, progress, *calls):
    """Return the decision for each call, given a signal for each branch; computed calls leave residuals."""
    runs = []
    for signals in calls:
        runs.append(should_run(rule, progress, [torch.tensor([value]) for value in signals]))
        if runs[-1]:
            for memory, _ in zip(progress.branches, signals, strict=False):
                memory.residual = torch.zeros(1)
    return runs


def test_teacache_accumulates_distances_until_the_threshold():
    # distances 0.1, 0.1, 0.1 | 0.1: three sum to 0.3 > 0.25, and the sum restarts at 0
    signals = [1.0, 1.1, 1.21, 1.331, 1.4641, 9.0]
    progress = GenerationState(total_calls=7)
    runs = run_through(TeaCache(0.25, LINE), progress, *([value] for value in signals))
    assert runs == [True, False, False, True, False, True]
    assert (progress.entries, progress.skipped) == (6, 3)


def test_teacache_rescales_distances_by_its_curve():
    runs = run_through(
        TeaCache(0.25, Curve((0.0, 3.0), 1.0)), GenerationState(9), [1.0], [1.05], [1.1025], [1.1576]
    )
    assert runs == [True, False, True, False]  # 0.15, then 0.3


def test_first_block_cache_compares_with_the_last_computation():
    signals = [1.0, 1.1, 1.2, 1.3, 1.4, 1.2, 1.0]  # from 1.0: 0.1, 0.2, 0.3 | from 1.3: 0.08, 0.08, 0.23
    runs = run_through(FirstBlockCache(0.25), GenerationState(9), *([value] for value in signals))
    assert runs == [True, False, False, True, False, False, False]


def test_first_and_last_call_are_computed():
    runs = run_through(TeaCache(9.0, LINE), GenerationState(4), [1.0], [1.0], [1.0], [1.0])
    assert runs == [True, False, False, True]


def test_branches_are_computed_together_and_new_ones_at_once():
    calls = [[1.0], [1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 2.0], [1.0], [1.0]]
    progress = GenerationState(9)
    assert run_through(TeaCache(0.5, LINE), progress, *calls) == [
        True,
        False,
        True,
        False,
        True,
        False,
        False,
    ]
    assert (progress.entries, progress.skipped) == (10, 5)


@pytest.mark.parametrize("rule", [TeaCache(0.0, LINE), FirstBlockCache(0.0)])
def test_threshold_zero_always_computes(rule):
    assert all(run_through(rule, GenerationState(9), *([1.0] for _ in range(5))))


def test_nan_is_never_cached():
    assert run_through(TeaCache(9.0, LINE), GenerationState(9), [1.0], [float("nan")], [1.0]) == [True] * 3


def test_relative_l1_distance():
    assert relative_l1_distance(torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])) == pytest.approx(0.5)


def test_curve_is_nondecreasing_and_fits_a_cubic():
    x = torch.linspace(0, 0.4, 50, dtype=torch.float64)
    curve, r2 = fit_curve(x.tolist(), (0.1 + x + 5 * x**3).tolist())
    assert curve(0.2) == pytest.approx(0.1 + 0.2 + 0.04, abs=1e-6)
    assert r2 == pytest.approx(1.0)
    torch.manual_seed(0)
    wild = (torch.sin(20 * x) - 0.3 + 0.2 * torch.randn(50)).tolist()
    curve, _ = fit_curve(x.tolist(), wild)
    values = [curve(place / 100) for place in range(80)]
    assert values == sorted(values)
    assert values[0] >= 0


def test_curve_is_the_least_squares_optimum():
    """No small step that keeps the heights nondecreasing reduces the error."""
    x = [place / 30 for place in range(1, 31)]
    y = [value**2 - 0.2 + 0.3 * ((7 * n) % 5 - 2) / 5 for n, value in enumerate(x)]
    curve, _ = fit_curve(x, y)
    missed = lambda one: sum((one(a) - b) ** 2 for a, b in zip(x, y, strict=True))  # noqa: E731
    for height in range(5):
        for step in (-1e-3, 1e-3):
            heights = [h + step * (place >= height) for place, h in enumerate(curve.heights)]
            if heights == sorted(heights) and heights[0] >= 0:
                assert missed(Curve(tuple(heights), curve.until)) >= missed(curve)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    config = NextDiTConfig(
        dim=24, num_layers=3, num_refiner_layers=1, num_heads=2, num_kv_heads=1, multiple_of=16, text_dim=16,
        axes_dim=(4, 4, 4), axes_len=(300, 64, 64), sample_size=8,
    )  # fmt: skip
    model = NextDiT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(2)
    noise, text = (torch.randn(*size, generator=generator) for size in ((3, 16, 8, 8), (3, 7, 16)))
    mask = torch.arange(7) < torch.tensor([7, 4, 5])[:, None]
    return noise, text, mask, torch.randn(1, 2, 16, generator=generator), None


CACHES = {"tea": "tea:0.15", "first": "first:0.3"}
FIT = CacheFit(
    "w", LINE, 1.0, 9, (Measurement("euler", 8, 0.1, 0.02, 0.3), Measurement("euler", 8, 0.2, 0.06, 0.5))
)


def draw(network, inputs, cache, **settings):
    """Return the latents and the cache."""
    plan = Plan(**{"solver": "euler", "steps": 8, "shift": 3.0} | settings, cache=cache)
    cached = LayerCache(plan, FIT)
    return draw_latents(network, *inputs, plan, cache=cached), cached


def plain(network, inputs, **settings):
    return draw_latents(network, *inputs, Plan(**{"solver": "euler", "steps": 8, "shift": 3.0} | settings))


@pytest.mark.parametrize("kind", ["tea", "first"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "rk4", "dpm", "unipc"])
def test_threshold_zero_is_bit_identical_to_no_cache(network, inputs, kind, solver):
    latents, cached = draw(network, inputs, f"{kind}:0", solver=solver, steps=3)
    assert torch.equal(latents, plain(network, inputs, solver=solver, steps=3))
    assert cached.report()["skipped"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tea", "first"])
@pytest.mark.parametrize("solver", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize(
    "guidance", [{"guide_until": 1.0}, {"guide_until": 0.25}, {"guide_from": 0.1, "guide_until": 0.5}, {"guidance": 1.0}]
)  # fmt: skip
def test_cached_images_do_not_depend_on_the_batch(network, inputs, kind, solver, guidance):
    settings = {"solver": solver, "steps": 4, **guidance}
    together, cached = draw(network, inputs, CACHES[kind], **settings)
    assert 0 < cached.report()["skipped"] < cached.report()["rows"]
    noise, text, mask, *null = inputs
    for row in range(3):
        own = slice(row, row + 1)
        alone, single = draw(network, (noise[own], text[own], mask[own], *null), CACHES[kind], **settings)
        assert (alone - together[own]).abs().max() < 1e-4
        assert single.report() == cached.report(row)


def test_reported_rows_match_the_plan(network, inputs):
    _, cached = draw(network, inputs, "tea:0.15", solver="midpoint", guide_until=0.25)
    calls = cached.plan.calls()
    assert cached.report(0)["rows"] == sum(call.branches for call in calls)
    assert [one.calls for one in cached.states] == [len(calls)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tea", "first"])
def test_error_and_savings_grow_with_the_threshold(network, inputs, kind):
    exact, errors, skipped = plain(network, inputs, steps=16), [0.0], [0]
    for threshold in (0.1, 0.2, 0.6):
        latents, cached = draw(network, inputs, f"{kind}:{threshold}", steps=16)
        errors.append(((latents - exact).norm() / exact.norm()).item())
        skipped.append(cached.report()["skipped"])
    assert skipped == sorted(set(skipped))
    assert errors == sorted(set(errors))


def test_skipped_rows_run_no_main_layer(network, inputs):
    """Layers from 1 on run only for the batch entries that the report counts as computed."""
    seen = []
    cached = LayerCache(Plan("euler", 8, cache="first:0.15")).reset(3)

    def through(stage):
        run = stage.run
        stage.run = lambda rows: seen.append(len(rows)) or run(rows)
        return cached(stage)

    draw_latents(InterceptedNetwork(network, through), *inputs, Plan("euler", 8))
    report = cached.report()
    assert sum(seen) == report["rows"] - report["skipped"] < report["rows"]


def test_recorder_pairs_distances_of_signal_and_residual():
    class Stage:
        entries = 1

        def __init__(self, value):
            self.value = value

        def signal(self, entry):
            return torch.tensor([[self.value]])

        def image(self, entry):
            return torch.tensor([[1.0]])

        def run(self, entries):
            return [torch.tensor([[1.0 + self.value**2]])]

    recorder = DistanceRecorder()
    for value in (1.0, 2.0, 4.0):
        recorder(Stage(value))
    assert recorder.distances == [(1.0, 3.0), (1.0, 3.0), (3.0, 15.0)]


def test_error_budget_chooses_the_largest_threshold(network, inputs):
    latents, cached = draw(network, inputs, "error:0.05")
    assert torch.equal(latents, draw(network, inputs, "tea:0.1")[0])
    assert cached.report()["measured"] == "euler, 8 calls"
    assert LayerCache(Plan("euler", 8, cache="error:0.06"), FIT).policy.threshold == 0.2
    assert LayerCache(Plan("euler", 8, cache="error:0.01"), FIT).policy.threshold == 0.0


def test_error_budget_uses_the_plan_nearest_in_calls():
    fit = CacheFit(
        "w",
        LINE,
        1.0,
        9,
        (*FIT.measures, Measurement("dpm", 30, 0.4, 0.04, 0.6), Measurement("dpm", 8, 0.3, 0.05, 0.1)),
    )

    def threshold(solver, steps):
        return LayerCache(Plan(solver, steps, cache="error:0.05"), fit).policy.threshold

    assert [threshold("midpoint", 17), threshold("euler", 10), threshold("dpm", 10)] == [0.4, 0.1, 0.3]


def test_cache_without_its_fit_is_rejected(network, inputs):
    with pytest.raises(
        LuminaError, match=r"cache tea:0\.2 needs teacache\.json; create it with `lumina bench teacache`"
    ):
        draw_latents(network, *inputs, Plan(steps=2, cache="tea:0.2"))


def test_fit_file_round_trip(tmp_path):
    write_cache_fit(FIT, tmp_path / "teacache.json")
    assert read_cache_fit(tmp_path, "w") == FIT
    assert cache_for(Plan(cache="tea:0.1"), tmp_path, "w").policy == TeaCache(0.1, LINE)
    assert cache_for(Plan(), tmp_path / "nowhere", "w") is None
    assert cache_for(Plan(cache="first:0.1"), tmp_path / "nowhere", "w").policy == FirstBlockCache(0.1)


def test_shipped_fit_matches_the_shipped_weights():
    folder = ASSETS / "nano"
    assert read_cache_fit(folder, fingerprint(folder)).measures


def test_fit_of_other_weights_is_rejected(tmp_path):
    write_cache_fit(FIT, tmp_path / "teacache.json")
    with pytest.raises(LuminaError) as caught:
        cache_for(Plan(cache="error:0.1"), tmp_path, "other")
    again = f"create one with `lumina bench teacache --model {tmp_path}`"
    assert (
        str(caught.value)
        == f"{tmp_path / 'teacache.json'} was calibrated for different weights (w, not other); {again}"
    )


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"curve": {"heights": [2, 1], "until": 1}}', None])
def test_damaged_or_missing_fit_is_a_one_line_error(tmp_path, text):
    if text is not None:
        known = {"weights": "w", "r2": 1, "points": 3, "measures": []}
        text = json.dumps(known | json.loads(text)) if "heights" in text else text
        (tmp_path / "teacache.json").write_text(text)
    with pytest.raises(LuminaError, match="`lumina bench teacache --model") as caught:
        read_cache_fit(tmp_path, "w")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["tee:0.1", "tea", "tea:", "tea:-1", "tea:nan", "first:inf", "0.3", 3])
def test_invalid_cache_settings_are_rejected(text):
    with pytest.raises(UsageError, match=rf"^(unknown cache|cache \w+ needs a number.*, not) {text!r}"):
        Plan(cache=text)


@pytest.mark.parametrize(
    ("x", "message"),
    [([1.0] * 4, r"too few data points .* \(4, need at least 5\)"), ([0.0] * 6, "the inputs of all 6 data")],
)
def test_a_curve_needs_enough_data_points_above_0(x, message):
    with pytest.raises(UsageError, match=message):
        fit_curve(x, x)


def test_released_cache_keeps_its_counts(network, inputs):
    _, cached = draw(network, inputs, "first:0.3")
    before = cached.report()
    assert before["skipped"] > 0
    assert all(memory.residual is not None for one in cached.states for memory in one.branches)
    cached.release()
    assert cached.report() == before
    assert not any(memory.residual is not None or memory.reference is not None
                   for one in cached.states for memory in one.branches)  # fmt: skip


def test_fit_digest_follows_the_content_of_the_file(tmp_path):
    tea = Plan(cache="tea:0.1")
    assert fit_digest(tea, tmp_path) is None
    found = set()
    for points in (9, 10):
        write_cache_fit(CacheFit("w", LINE, 1.0, points), tmp_path / "teacache.json")
        found |= {fit_digest(tea, tmp_path), fit_digest(Plan(cache="error:0.2"), tmp_path)}
        assert fit_digest(Plan(cache="first:0.1"), tmp_path) is fit_digest(Plan(), tmp_path) is None
    assert len(found) == 2
    assert all(len(digest) == 12 for digest in found)


@pytest.mark.parametrize("out", ["blocked/teacache.json", "blocked/folder"])
def test_the_file_is_checked_before_the_fit(out, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("a file where a folder is needed")
    pipeline = load_pipeline(tiny_folder)
    monkeypatch.setattr("lumina_cli.core.sampling.teacache.calibrate._record", None)  # generates nothing
    with pytest.raises(LuminaError, match=r"cannot write .*blocked.*\.json: "):
        next(fit_teacache(pipeline, scene_prompts(2), [], tmp_path / out))
    (tmp_path / "teacache.json").mkdir()
    with pytest.raises(LuminaError, match=r"cannot write .*teacache\.json: Is a directory"):
        next(fit_teacache(pipeline, scene_prompts(2), [], tmp_path))


def test_fit_teacache_on_a_model(tiny_folder, tmp_path):
    pipeline = load_pipeline(tiny_folder)
    plan = Plan("euler", 5, guidance=2.0, guide_until=1.0)
    rows = list(
        fit_teacache(pipeline, scene_prompts(2), [plan], tmp_path, thresholds=(0.0, 0.05, 5.0), batch=2)
    )
    fit = read_cache_fit(tmp_path, pipeline.weights)
    assert [row["step"] for row in rows] == ["fit", "measure", "measure", "measure", "write"]
    assert fit.points == 2 * 2 * (4 + 3 + 1)  # prompts, branches, pairs of calls at lags 1, 2 and 4
    assert rows[1]["error"] == rows[1]["skipped"] == 0
    assert rows[3]["skipped"] == pytest.approx(3 / 5)
    assert rows[3]["error"] > 0
    assert [one.error for one in fit.measures] == [row["error"] for row in rows[1:4]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [("p.txt", "two cups\na ball\n"), ("p.jsonl", '{"prompt": "two cups"}\n{"prompt": "a ball"}\n')],
)
def test_command_fits_to_prompts_of_a_file(tiny_folder, tmp_path, capfd, name, text):
    (tmp_path / name).write_text(text)
    words = ["--model", str(tiny_folder), "--prompts", str(tmp_path / name), "--out", str(tmp_path)]
    assert run(["bench", "teacache", *words, "--plan", "solver=euler,steps=3,guidance=1"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert rows[0]["points"] == 2 * (2 + 1)  # prompts, pairs of calls 1 and 2 apart
    assert (tmp_path / "teacache.json").is_file()


@pytest.mark.parametrize(
    ("prompts", "code", "message"),
    [
        ("0", 2, "--prompts must be a number of at least 1, or a file of prompts, not 0"),
        ("none.txt", 1, "none.txt: no such file of prompts"),
    ],
)
def test_command_rejects_missing_prompts(prompts, code, message, capfd):
    assert run(["bench", "teacache", "--prompts", prompts]) == code
    assert capfd.readouterr().err == f"lumina bench: {message}\n"
