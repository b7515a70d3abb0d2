"""Path, noise, solvers by their measured order, guidance by its identities, and the errors of a plan."""

import math
from itertools import pairwise

import pytest
import torch

from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan, draw_noise, interpolate, shift_time, train_shift
from lumina_cli.core.flow.guidance import apg, cfg, guide, renorm, renorm_data, renorm_rows, zero_star
from lumina_cli.core.flow.path import (
    from_sigma,
    predict_data,
    scheduler_config,
    shift_from_scheduler,
    to_sigma,
    velocity,
)
from lumina_cli.core.flow.plan import read_settings
from lumina_cli.core.registry import SOLVERS

ORDER = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dpmpp_2m": 2, "unipc": 3}
CALLS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dpmpp_2m": 1, "unipc": 1}
FIRST_NOISE = [0.1592954695224762, -1.77418851852417, 1.3265118598937988, 1.2048090696334839]
MEAN, SPREAD = 0.7, 0.4


def gaussian_velocity(x, t):
    """Return the exact velocity for normally distributed data with mean MEAN and standard deviation SPREAD."""
    variance = (t * SPREAD) ** 2 + (1 - t) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def gaussian_state(z, t):
    """Return the exact state at time `t` of the trajectory from noise `z`."""
    return t * MEAN + math.sqrt((t * SPREAD) ** 2 + (1 - t) ** 2) * z


def two_bumps_velocity(x, t):
    """Return the exact velocity for an even mixture of normal distributions around MEAN and -MEAN."""
    variance = (t * SPREAD) ** 2 + (1 - t) ** 2
    mean = MEAN * torch.tanh(MEAN * t * x / variance)
    data = mean + t * SPREAD**2 / variance * (x - t * mean)
    return (data - x) / (1 - t)


def end_state(name, steps):
    """Solve from nine points at t = 0.2 to t = 0.8 in equal steps."""
    times = [0.2 + 0.6 * n / steps for n in range(steps + 1)]
    *_, x = SOLVERS.load(name)(two_bumps_velocity, torch.linspace(-2, 2, 9, dtype=torch.float64), times)
    return x


@pytest.fixture(scope="module")
def exact():
    return end_state("rk4", 1000)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_error_converges_at_the_declared_order(name, exact):
    coarse, fine = ((end_state(name, steps) - exact).norm().item() for steps in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(SOLVERS.load(name).order, abs=0.15)


def test_the_solvers_declare_their_published_orders_and_calls():
    assert ORDER.items() <= {name: SOLVERS.load(name).order for name in SOLVERS}.items()
    assert CALLS.items() <= {name: SOLVERS.load(name).calls for name in SOLVERS}.items()


def test_an_alias_is_the_same_solver_and_stays_in_the_plan():
    assert SOLVERS.load("dpm") is SOLVERS.load("dpmpp_2m")
    assert "dpm" not in SOLVERS.names()
    plan = Plan("dpm", 9)
    assert (plan.to_json()["solver"], plan.times()) == ("dpm", Plan("dpmpp_2m", 9).times())


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_reaches_the_data_from_the_noise(name):
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    plan = Plan(solver=name, steps=200)
    *_, x = SOLVERS.load(name)(gaussian_velocity, z, plan.times())
    assert x.dtype == torch.float64
    torch.testing.assert_close(x, gaussian_state(z, 1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_point_of_data_is_reached_exactly(name):
    data, noise = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    *_, x = SOLVERS.load(name)(lambda x, t: data - noise, noise, Plan(solver="euler", steps=7).times())
    torch.testing.assert_close(x, data)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_solver_yields_one_state_per_step_and_makes_its_declared_calls(name, steps):
    calls = []
    velocity = lambda x, t: calls.append(t) or gaussian_velocity(x, t)  # noqa: E731
    states = list(SOLVERS.load(name)(velocity, torch.zeros(1), Plan(solver=name, steps=steps).times()))
    assert len(states) == steps
    assert len(calls) == steps * CALLS[name]
    assert all(state.isfinite().all() for state in states)


def test_path_runs_from_noise_to_data():
    data, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([0.25, 1.0])
    x = interpolate(data, noise, t)
    torch.testing.assert_close(x[0], 0.25 * data[0] + 0.75 * noise[0])
    torch.testing.assert_close(x[1], data[1])
    torch.testing.assert_close(predict_data(x, velocity(data, noise), t), data)


def test_time_shift_is_diffusers_sigma_shift_seen_from_the_other_end():
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        sigma = to_sigma(t)
        assert to_sigma(shift_time(t, 6.0)) == pytest.approx(6 * sigma / (1 + 5 * sigma))
        assert from_sigma(to_sigma(t)) == t
    assert [shift_time(t, 6) for t in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.052632, 0.142857, 0.333333], abs=1e-6
    )


def test_time_shift_keeps_the_ends_and_one_is_no_shift():
    t = torch.linspace(0, 1, 5)
    torch.testing.assert_close(shift_time(t, 1.0), t)
    assert shift_time(0.0, 6.0) == 0
    assert shift_time(1.0, 6.0) == 1


def test_train_shift_by_number_of_tokens():
    assert train_shift(4096) == pytest.approx(3.158192909689767)
    assert train_shift(256) == pytest.approx(math.exp(0.5))


def test_scheduler_config_is_read_back_and_is_what_diffusers_means():
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    assert shift_from_scheduler(scheduler_config(6.0)) == 6.0
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler_config(6.0))
    scheduler.set_timesteps(sigmas=[1 - n / 10 for n in range(10)])
    assert [1 - s for s in scheduler.sigmas.tolist()] == pytest.approx(
        Plan("euler", steps=10).times(), abs=1e-6
    )


def test_noise_depends_on_seed_and_index_alone():
    one = draw_noise(7, 3, (16, 4, 6))
    assert one.dtype == torch.float32
    assert torch.equal(one, draw_noise(7, 3, (16, 4, 6)))
    for seed, index in ((7, 4), (8, 3), (3, 7), (-7, 3)):
        assert not torch.equal(one, draw_noise(seed, index, (16, 4, 6)))


def test_noise_is_normal_and_the_same_on_every_machine():
    noise = draw_noise(0, 0, (16, 64, 64))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert noise.flatten()[:4].tolist() == pytest.approx(FIRST_NOISE, rel=1e-6)


def test_renorm_only_scales_down_and_each_image_on_its_own():
    plain = torch.randn(3, 4, 5, 5)
    guided = plain * torch.tensor([0.5, 1.0, 4.0]).view(3, 1, 1, 1)
    out = renorm(guided, plain)
    torch.testing.assert_close(out[:2], guided[:2])
    torch.testing.assert_close(out[2], plain[2])
    torch.testing.assert_close(renorm(guided, plain, ratio=2.0)[2], 2 * plain[2])
    torch.testing.assert_close(out[2:], renorm(guided[2:], plain[2:]))


def test_renorm_of_zeros_is_zero():
    assert torch.equal(renorm(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))


def paired_velocity(rows):
    """Return a velocity of 3 for the first half of the batch and 1 for the second; it records batch sizes."""

    def velocity(x, t):
        rows.append(len(x))
        return torch.cat(
            [torch.full_like(half, value) for half, value in zip(x.chunk(2), (3.0, 1.0), strict=True)]
        )

    return velocity


def test_guidance_runs_within_its_interval_only():
    rows = []
    plain = lambda x, t: rows.append(len(x)) or torch.full_like(x, 3.0)  # noqa: E731
    plan = Plan("euler", 4, shift=1.0, guide_from=0.25, guide_until=0.75, renorm=None)
    x = torch.zeros(2, 1, 2, 2)
    states = [x, *plan.solve(plain, paired_velocity(rows), x)]
    assert [(4 * (s - t)).unique().tolist() for t, s in pairwise(states)] == [[3], [9], [9], [3]]
    assert rows == [2, 4, 4, 2]


@pytest.mark.parametrize("unit", ["time", "sigma"])
def test_guidance_until_one_covers_the_very_end(unit):
    whole = Plan(guide_until=1.0, guide_unit=unit)
    assert all(whole.guides(step, t) for step, t in ((0, 0.0), (16, 1.0)))
    assert not any(
        Plan(guide_until=0.0, guide_unit=unit).guides(step, t) for step, t in ((0, 0.0), (16, 1.0))
    )
    assert guide(paired_velocity([]), cfg(2.0), ratio=None)(torch.zeros(1, 1, 2, 2), 1.0).unique() == 5


def test_a_guidance_scale_of_one_calls_the_conditional_branch_only():
    assert [call.branches for call in Plan(guidance=1.0, guide_until=1.0, steps=3).calls()] == [1] * 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_calls_of_a_plan(solver):
    plan = Plan(solver, steps=5, guide_until=0.25)
    calls = plan.calls()
    assert len(calls) == 5 * plan.calls_per_step == 5 * CALLS[solver]
    assert [call.step for call in calls] == [n for n in range(5) for _ in range(CALLS[solver])]
    assert all(call.branches == (2 if call.t < 0.25 else 1) for call in calls)


def test_the_same_quarter_in_three_units():
    """0.25 is a time in the official code, a fraction of the steps in diffusers, a sigma in ComfyUI."""
    guided = lambda **settings: [call.branches - 1 for call in Plan("euler", 12, 6.0, **settings).calls()]  # noqa: E731
    assert sum(guided(guide_until=0.25)) == 8  # t = u / (6 - 5 u) < 0.25 as long as u < 2 / 3
    assert guided(guide_until=0.25, guide_unit="steps") == [1] * 3 + [0] * 9
    assert guided(guide_until=0.25, guide_unit="sigma") == [0] * 12  # the last call's sigma is 0.35
    assert guided(guide_until=0.4, guide_unit="sigma") == [0] * 11 + [1]
    for unit in ("time", "steps", "sigma"):
        assert guided(guide_until=1.0, guide_unit=unit) == [1] * 12
        assert guided(guide_until=0.0, guide_unit=unit) == [0] * 12
    assert guided(guide_from=0.5, guide_until=0.75, guide_unit="steps") == [0] * 6 + [1] * 3 + [0] * 3


@pytest.mark.parametrize("steps", [1, 7, 30, 50])
@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.3, 0.5, 0.7, 1.0])
def test_steps_count_as_diffusers_counts_them(steps, ratio):
    plan = Plan("euler", steps, guide_until=ratio, guide_unit="steps")
    assert [call.branches == 2 for call in plan.calls()] == [(i + 1) / steps <= ratio for i in range(steps)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)])
def test_all_calls_of_a_guided_step_are_guided_and_no_others(solver, low, high):
    plan = Plan(solver, 8, guide_from=low, guide_until=high, guide_unit="steps")
    rows = [call.branches for call in plan.calls()]
    assert rows == [
        2 if low <= step / 8 and (step + 1) / 8 <= high else 1
        for step in range(8)
        for _ in range(CALLS[solver])
    ]


def random_images(*shape):
    return torch.randn(3, *shape, dtype=torch.float64)


def test_zero_star_is_cfg_with_the_closest_multiple_of_the_unconditional_velocity():
    captioned, free, x = (random_images(4, 5, 5) for _ in range(3))
    guided = zero_star(3.0)(captioned, free, x, 0.3)
    rest = (captioned - guided) / (1 - 3.0)  # captioned minus the scaled free one
    torch.testing.assert_close(
        (rest * free).sum((1, 2, 3)), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(guided[1:], zero_star(3.0)(captioned[1:], free[1:], x[1:], 0.3))
    assert zero_star(3.0)(captioned, torch.zeros_like(free), x, 0.3).isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_cfg_zero_skips_its_first_step(solver):
    plan = Plan(solver, 5, guide="cfg-zero", guide_until=1.0)
    assert [call.step for call in plan.calls()] == [n for n in range(1, 5) for _ in range(CALLS[solver])]


def test_apg_scales_the_parallel_component():
    captioned, free, x, t = *(random_images(4, 5, 5) for _ in range(3)), 0.3
    data = predict_data(x, captioned, t)
    along = lambda guided: ((predict_data(x, guided, t) - data) * data).sum((1, 2, 3))  # noqa: E731
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(along(apg(4.0, 0.0, 0.0)(captioned, free, x, t)), zero, atol=1e-9, rtol=0)
    full, half = (along(apg(4.0, share, 0.0)(captioned, free, x, t)) for share in (1.0, 0.5))
    torch.testing.assert_close(half, full / 2)
    plain = cfg(4.0)(captioned, free, x, t)
    torch.testing.assert_close(apg(4.0, 1.0, 0.0)(captioned, free, x, t), plain)


def test_apg_has_momentum_and_limits_the_norm_per_image():
    captioned, free, x, t = *(random_images(4, 5, 5) for _ in range(3)), 0.3
    combine = apg(2.0, 1.0, -0.5)
    first, second = (combine(captioned, free, x, t) - captioned for _ in range(2))
    torch.testing.assert_close(second, first / 2)
    held = apg(2.0, 1.0, 0.0, limit=0.1)(captioned, free, x, t) - captioned
    norms = (1 - t) * torch.linalg.vector_norm(held, dim=(1, 2, 3))
    torch.testing.assert_close(norms, torch.full_like(norms, 0.1))
    assert torch.equal(combine(captioned, free, x, 1.0), captioned)


def test_row_norms_become_the_conditional_ones_in_both_directions():
    plain = torch.randn(2, 3, 4, 8)
    guided = plain * torch.rand(2, 3, 4, 1) * 3
    torch.testing.assert_close(renorm_rows(guided, plain), plain)


def norms_of(images):
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True)


def test_renorm_of_data_compares_norms_of_the_predicted_data():
    captioned, guided, x, t = *(random_images(4, 5, 5) for _ in range(3)), 0.3
    guided = guided * torch.tensor([0.1, 5.0, 50.0], dtype=torch.float64).view(3, 1, 1, 1)
    own, before = predict_data(x, captioned, t), predict_data(x, guided, t)
    after = predict_data(x, renorm_data(guided, captioned, x, t, 0.9), t)
    torch.testing.assert_close(norms_of(after), torch.minimum(norms_of(before), 0.9 * norms_of(own)))
    torch.testing.assert_close(after / norms_of(after), before / norms_of(before))
    assert norms_of(after)[2] < norms_of(before)[2]
    rows = predict_data(x, renorm_data(guided, captioned, x, t, "row"), t)
    torch.testing.assert_close(rows.norm(dim=-1), own.norm(dim=-1))
    assert torch.equal(renorm_data(guided, captioned, x, 1.0, 1.0), guided)


def test_a_plan_renormalizes_velocity_or_data():
    captioned, free, x = (random_images(4, 5, 5) for _ in range(3))
    drawn = {}
    for of in ("velocity", "data"):
        plan = Plan("euler", 1, guidance=9.0, guide_until=1.0, renorm_of=of)
        (drawn[of],) = plan.solve(None, lambda x, t: torch.cat([captioned, free]), x)
    torch.testing.assert_close(norms_of(drawn["velocity"] - x), norms_of(captioned))
    torch.testing.assert_close(norms_of(drawn["data"]), norms_of(x + captioned))


def test_unipc_agrees_with_diffusers():
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    times = Plan("unipc", steps=9).times()
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2
    )
    scheduler.set_timesteps(9)
    scheduler.sigmas = torch.tensor([to_sigma(t) for t in times], dtype=torch.float64)
    x = noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 9)
    for t, number in zip(times, scheduler.timesteps, strict=False):
        x = scheduler.step(-two_bumps_velocity(x, t), number, x).prev_sample
    *_, ours = SOLVERS.load("unipc")(two_bumps_velocity, noise, times)
    torch.testing.assert_close(ours, x)


def test_default_plan_has_the_official_times():
    times = [round(t, 4) for t in Plan().times()]
    assert times[:9] == [0, 0.0103, 0.0217, 0.0345, 0.0488, 0.0649, 0.0833, 0.1045, 0.129]
    assert times[-3:] == [0.5556, 0.7273, 1]
    assert len(times) == 18


def test_dpm_has_the_official_sigmas():
    sigmas = [round(to_sigma(t), 5) for t in Plan(solver="dpm", steps=20).times()]
    assert sigmas[:5] == [0.99983, 0.99113, 0.98164, 0.97124, 0.95981]
    assert sigmas[-3:] == [0.39973, 0.23981, 0]


def test_a_plan_round_trips_through_json():
    plan = Plan(solver="dpm", steps=14, shift=3.0, renorm=None)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json('{"steps": 4}') == Plan(steps=4)
    older = Plan(renorm=2.0).to_json()
    del older["renorm_of"]  # missing in the metadata of older images
    assert Plan.from_json(older) == Plan(renorm=2.0, renorm_of="velocity")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "eular"}, "unknown solver 'eular'; did you mean 'euler'?"),
        ({"steps": 0}, "steps must be an integer of at least 1, and at most 10000, not 0"),
        ({"steps": True}, "steps must be an integer of at least 1, and at most 10000, not True"),
        (
            {"solver": ["euler"]},
            "solver must be one of euler, midpoint, heun, rk4, dpmpp_2m, unipc, not ['euler']",
        ),
        (["euler", 4], """a plan must be settings by name, such as {"steps": 17}, not ['euler', 4]"""),
        ("[]", """a plan must be settings by name, such as {"steps": 17}, not []"""),
        ("steps", "the plan 'steps' is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ({"shift": 0.0}, "shift must be a positive number, not 0.0"),
        ({"guidance": math.nan}, "guidance must be a number, not nan"),
        ({"renorm": -1}, "renorm must be a positive number, row, or off, not -1"),
        ({"renorm_of": "noise"}, "renorm_of must be one of velocity, data, not 'noise'"),
        ({"stpes": 3}, "a plan has no setting 'stpes'; did you mean 'steps'?"),
    ],
)
def test_errors_of_a_plan_name_the_setting_and_its_valid_values(settings, words):
    with pytest.raises(UsageError) as caught:
        Plan.from_json(settings)
    assert str(caught.value) == words


def test_settings_from_the_command_line(tmp_path):
    assert read_settings("") == {}
    assert read_settings("solver=euler,steps=20,renorm=off") == {
        "solver": "euler",
        "steps": 20,
        "renorm": None,
    }
    (tmp_path / "plan.json").write_text('{"shift": 3.0}')
    assert read_settings(str(tmp_path / "plan.json")) == {"shift": 3.0}


@pytest.mark.parametrize("text", ["steps=2.5", "stpes=3", "solver=eular", "nothing.json", "shift"])
def test_invalid_settings_are_usage_errors(text):
    with pytest.raises(UsageError):
        read_settings(text)
