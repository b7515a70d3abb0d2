"""Calibration of TeaCache: distances between inputs of the main layers predict those of their residuals."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.errors import UsageError
from lumina_cli.core.flow import Plan, draw_noise
from lumina_cli.core.io.atomic import check_writable
from lumina_cli.core.nano.captions import describe_scene
from lumina_cli.core.nano.scene import draw_scenes
from lumina_cli.core.sampling.latents import draw_latents
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.teacache.fit import FIT_FILE, CacheFit, Measurement, write_cache_fit
from lumina_cli.core.sampling.teacache.layer_cache import InterceptedNetwork, LayerCache, LayerStackLike
from lumina_cli.core.sampling.teacache.policy import fit_curve, relative_l1_distance

THRESHOLDS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
LAGS = (1, 2, 4)  # calls between compared calls; larger ones stand for plans with fewer steps
LEVELS = ("short", "medium", "detailed")


class DistanceRecorder:
    """Runs all main layers and records distances of modulated inputs and residuals between calls.

    distances   (of the modulated input, of the residual) for each batch entry, call and lag
    """

    def __init__(self):
        self.distances: list[tuple[float, float]] = []
        self.reset()

    def reset(self) -> None:
        """Start another batch; the recorded distances stay."""
        self.past: dict[int, deque[tuple[Tensor, Tensor]]] = {}

    def __call__(self, stack: LayerStackLike) -> list[Tensor]:
        """Return the image tokens of each batch entry after the main layers."""
        outputs = stack.run(list(range(stack.entries)))
        for entry, output in enumerate(outputs):
            signal, residual = stack.signal(entry), output - stack.image(entry)
            past = self.past.setdefault(entry, deque(maxlen=max(LAGS)))
            for lag in LAGS:
                if lag <= len(past):
                    signal_then, residual_then = past[-lag]
                    distance = relative_l1_distance(signal, signal_then)
                    self.distances.append((distance, relative_l1_distance(residual, residual_then)))
            past.append((signal, residual))
        return outputs


def scene_prompts(count: int, seed: int = 0) -> list[str]:
    """Return captions of `count` random scenes of nano, short, medium and detailed in turn."""
    scenes = enumerate(draw_scenes(seed, count))
    return [describe_scene(scene, "en", LEVELS[number % len(LEVELS)], seed) for number, scene in scenes]


def fit_teacache(
    pipeline: Pipeline,
    prompts: Sequence[str],
    plans: Sequence[Plan] = (),
    out: Path | None = None,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    batch: int = 8,
    seed: int = 0,
) -> Iterator[dict]:
    """Fit TeaCache's curve to a model, measure the error of thresholds, and write both to `out`.

        plans        to fit and measure under; the model's own plan if empty
        out          a .json file, or a folder to write FIT_FILE to; None: the model's own folder
        thresholds   to measure
        batch        prompts per batch
        yields       a row for the fit, one for each plan and threshold, and one for the file. "error" is the
                     mean over images of |latents - uncached| / |uncached|, "worst" the largest, "skipped" the
                     fraction of batch entries that reused a residual

    First the latents of all prompts are sampled without a cache under each plan. The relative L1 distances of
    the modulated input of the first main layer between calls, paired with those of the residual of the main
    layers, are the points of the fit. Then the latents are sampled with each threshold and compared.

    Raises:
        UsageError: if `prompts` is empty, or there are too few calls to fit a curve.
        LuminaError: if the file cannot be written, which is checked first.
    """
    if not prompts:
        raise UsageError("the calibration needs at least one prompt")
    path = Path(out or pipeline.folder)
    path = path if path.suffix == ".json" else path / FIT_FILE
    check_writable(path)
    plans = [replace(plan, cache=None) for plan in (plans or [pipeline.plan])]
    batches = [_inputs(pipeline, prompts, start, batch, seed) for start in range(0, len(prompts), batch)]
    recorder, exact = DistanceRecorder(), []
    for plan in plans:
        exact.append([_record(pipeline, recorder, inputs, plan) for inputs in batches])
    curve, r2 = fit_curve(*zip(*recorder.distances, strict=True))
    fit = CacheFit(pipeline.weights, curve, r2, len(recorder.distances))
    yield {"step": "fit", "r2": r2, "points": fit.points, **asdict(curve)}
    for plan, latents in zip(plans, exact, strict=True):
        for threshold in thresholds:
            found, worst = _measure(pipeline, batches, latents, plan, threshold, fit)
            fit = replace(fit, measures=(*fit.measures, found))
            yield {"step": "measure", **asdict(found), "worst": worst}
    write_cache_fit(fit, path)
    yield {"step": "write", "file": str(path), "weights": fit.weights}


def _record(pipeline: Pipeline, recorder: DistanceRecorder, inputs: list[Tensor], plan: Plan) -> Tensor:
    """Sample the latents of a batch without a cache, recording distances."""
    recorder.reset()
    return draw_latents(InterceptedNetwork(pipeline.transformer, recorder), *inputs, plan)


def _measure(
    pipeline: Pipeline,
    batches: Sequence[list[Tensor]],
    exact: Sequence[Tensor],
    plan: Plan,
    threshold: float,
    fit: CacheFit,
) -> tuple[Measurement, float]:
    """Return the measurement of a threshold, and the largest error of an image."""
    cache = LayerCache(replace(plan, cache=f"tea:{threshold}"), fit)
    errors, rows, skipped = [], 0, 0
    for inputs, uncached in zip(batches, exact, strict=True):
        latents = draw_latents(pipeline.transformer, *inputs, cache.plan, cache=cache)
        errors += _relative_errors(latents, uncached)
        report = cache.report()
        rows, skipped = rows + report["rows"], skipped + report["skipped"]
    mean = sum(errors) / len(errors)
    found = Measurement(plan.solver, len(plan.calls()), threshold, mean, skipped / rows)
    return found, max(errors)


def _inputs(pipeline: Pipeline, prompts: Sequence[str], start: int, batch: int, seed: int) -> list[Tensor]:
    """Return noise, text and mask of the prompts from `start`, and text and mask of the empty prompt."""
    chosen = [full_prompt(prompt) for prompt in prompts[start : start + batch]]
    text, mask = pipeline.text.encode(chosen)
    side = pipeline.transformer.config.sample_size
    shape = (pipeline.transformer.config.in_channels, side, side)
    noise = torch.stack([draw_noise(seed, start + number, shape) for number in range(len(chosen))])
    return [noise.to(text.device), text, mask, *pipeline.text.encode([""])]


def _relative_errors(latents: Tensor, exact: Tensor) -> list[float]:
    """|latents - exact| / |exact| of each image."""
    size = vector_norm(exact.flatten(1), dim=1)
    return (vector_norm((latents - exact).flatten(1), dim=1) / size).tolist()
