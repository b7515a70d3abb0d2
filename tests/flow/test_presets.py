"""Presets reproduce what the same flags mean in each program."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from lumina_cli import load
from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.flow.presets import apply, find_preset
from lumina_cli.core.sampling.request import Job, SamplingRequest


def test_official_counts_points_and_cuts_guidance_in_time():
    plan = find_preset("official").resolve(3.0, {"steps": 18})
    assert plan == Plan("midpoint", 17, 6.0, 4.0, 0.25, 1.0)
    assert len(plan.calls()) == 34
    assert sum(call.branches == 2 for call in plan.calls()) == 23


def test_diffusers_takes_the_models_shift_and_cuts_by_steps():
    plan = find_preset("diffusers").resolve(3.0, {"steps": 50, "guide_until": 0.25})
    assert (plan.shift, plan.renorm) == (3.0, "row")
    assert [call.branches for call in plan.calls()] == [2] * 12 + [1] * 38


def test_comfyui_neither_truncates_nor_renormalizes_by_default():
    plan = find_preset("comfyui").resolve(3.0, {})
    assert (plan.shift, plan.renorm, [call.branches for call in plan.calls()]) == (6.0, None, [2] * 36)
    assert plan.renorm_of == "data"
    late = find_preset("comfyui").resolve(3.0, {"guide_until": 0.5}).calls()
    assert [call.branches == 2 for call in late] == [1 - call.t < 0.5 for call in late]


@pytest.mark.parametrize(("solver", "steps"), [("euler", 13), ("midpoint", 6), ("rk4", 3), ("unipc", 13)])
def test_a_budget_of_calls_for_every_solver(solver, steps):
    plan = apply(Plan(), {"solver": solver, "calls": 13})
    assert plan.steps == steps
    assert 13 - plan.calls_per_step < len(plan.calls()) <= 13


def test_a_preset_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("plan: {solver: dpm, steps: 14, renorm: off}\n")
    assert find_preset(path).resolve(2.0, {}) == Plan("dpm", 14, 2.0, renorm=None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 3, "calls": 3}, "--steps and --calls are mutually exclusive"),
        ({"calls": 1}, "calls must be at least 2, the calls per step of midpoint, not 1"),
        (
            {"steps": 1},
            "steps must be at least 2 with this preset, which counts time points (solver steps + 1), not 1",
        ),
    ],
)
def test_invalid_budgets_are_usage_errors(given, words):
    with pytest.raises(UsageError) as caught:
        find_preset("official").resolve(6.0, given)
    assert str(caught.value) == words


def test_unknown_and_invalid_presets(tmp_path):
    with pytest.raises(UsageError, match="unknown preset 'offical'; did you mean 'official'"):
        find_preset("offical")
    path = tmp_path / "mine.yaml"
    path.write_text("plan: {solvr: dpm}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml line 1: .*solvr"):
        find_preset(path)


def toy(x, t, captioned):
    """Return a velocity that differs between branches, times and entries; guidance scales some up, some down."""
    rotated = x.flip(-1) * (0.4 if captioned else -0.7)
    return (
        torch.tanh(rotated + t)
        + (x - 0.3 * t if captioned else 0.8 * x) * torch.linspace(-1, 2, x.shape[-2])[:, None]
    )


def shifted(u, s):
    return u / (u + s * (1 - u))


def official_loop(x, points):
    def velocity(x, t):
        own = toy(x, t, True)
        if t >= 0.25:
            return own
        v = toy(x, t, False) + 4 * (own - toy(x, t, False))
        longest, length = own.norm(), v.norm()
        return v * longest / length if length >= longest else v

    times = [shifted(k / (points - 1), 6.0) for k in range(points)]
    for t, s in pairwise(times):
        half = x + (s - t) / 2 * velocity(x, t)
        x = x + (s - t) * velocity(half, t + (s - t) / 2)
    return x


def diffusers_loop(x, steps, ratio, shift):
    sigmas = [shift * u / (1 + (shift - 1) * u) for u in np.linspace(1, 1 / steps, steps)] + [0.0]
    for i in range(steps):
        own = toy(x, 1 - sigmas[i], True)
        v = own
        if (i + 1) / steps <= ratio:
            null = toy(x, 1 - sigmas[i], False)
            v = null + 4 * (own - null)
            v = v * (own.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True))
        x = x + (sigmas[i + 1] - sigmas[i]) * -v
    return x


def comfyui_loop(x, steps, until, ratio):
    """Guidance of a ComfyUI node on predicted data: `own` and `null` are those of the two branches."""
    sigmas = [1 - shifted(k / steps, 6.0) for k in range(steps + 1)]
    for sigma, after in pairwise(sigmas):
        own, null = (x + sigma * toy(x, 1 - sigma, captioned) for captioned in (True, False))
        clean = own
        if sigma < until:
            clean = null + 4 * (own - null)
            if ratio and clean.norm() > ratio * own.norm():
                clean = clean * (ratio * own.norm() / clean.norm())
        x = x + (after - sigma) * (x - clean) / sigma
    return x


def ours(x, plan):
    def paired(x, t):
        captioned, free = x.chunk(2)
        return torch.cat([toy(captioned, t, True), toy(free, t, False)])

    *_, last = plan.solve(lambda x, t: toy(x, t, True), paired, x)
    return last


PROGRAMS = {
    "official": ({}, lambda x: official_loop(x, 18)),
    "official, 30 points": ({"steps": 30}, lambda x: official_loop(x, 30)),
    "diffusers": ({}, lambda x: diffusers_loop(x, 30, 1.0, 3.0)),
    "diffusers, truncated": ({"steps": 50, "guide_until": 0.25}, lambda x: diffusers_loop(x, 50, 0.25, 3.0)),
    "comfyui": ({}, lambda x: comfyui_loop(x, 36, 100.0, None)),
    "comfyui, RenormCFG": (
        {"steps": 20, "guide_until": 0.5, "renorm": 1.0}, lambda x: comfyui_loop(x, 20, 0.5, 1.0)
    ),
    "comfyui, RenormCFG throughout": ({"renorm": 0.9}, lambda x: comfyui_loop(x, 36, 100.0, 0.9)),
}  # fmt: skip


@pytest.mark.parametrize("case", PROGRAMS)
def test_each_preset_computes_the_loop_of_its_program(case):
    given, loop = PROGRAMS[case]
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plan = find_preset(case.partition(",")[0]).resolve(3.0, given)
    torch.testing.assert_close(ours(x, plan), loop(x), rtol=1e-9, atol=1e-9)


def test_the_comfyui_node_does_not_compare_velocities():
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = ({"renorm": 1.0}, {"renorm": 1.0, "renorm_of": "velocity"}, {})
    node, official, none = (ours(x, find_preset("comfyui").resolve(3.0, some)) for some in given)
    assert min((node - official).norm(), (node - none).norm()) > 0.1


def test_presets_differ_for_the_same_flags():
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given = {"solver": "euler", "guide_until": 0.25, "renorm": 1.0, "shift": 6.0}
    drawn = [
        ours(x, find_preset(name).resolve(6.0, given | {"steps": steps}))
        for name, steps in (("official", 21), ("diffusers", 20), ("comfyui", 20))
    ]
    assert min((one - two).norm() for one, two in ((drawn[0], drawn[1]), (drawn[1], drawn[2]))) > 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of diffusers' and transformers' own making
@pytest.mark.parametrize(("steps", "ratio"), [(4, 1.0), (8, 0.25)])
def test_diffusers_itself_generates_the_same_images(steps, ratio):
    from diffusers import Lumina2Pipeline

    pipe, prompts = load("nano"), ["a red car left of a blue ball", "ein gelber Stern", "two cups"]
    theirs = Lumina2Pipeline.from_pretrained(pipe.folder, torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.stack([draw_noise(3, number, (16, 16, 16)) for number in range(3)])
    drawn = theirs(
        prompt=prompts, negative_prompt=["", "a blue ball", ""], latents=noise, height=128, width=128,
        num_inference_steps=steps, guidance_scale=4.0, cfg_normalization=True, cfg_trunc_ratio=ratio,
    ).images  # fmt: skip
    setup = SamplingRequest(preset="diffusers", plan={"steps": steps, "guide_until": ratio}).resolve(pipe)
    jobs = [
        Job(prompt, 3, n, negative)
        for n, (prompt, negative) in enumerate(zip(prompts, ["", "a blue ball", ""], strict=True))
    ]
    for one, two in zip(pipe.generate_batch(jobs, setup), drawn, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(two, float)).max() <= 2
