"""Fitting a cache: how changes before the main layers foretell changes of what these layers add."""

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
from lumina_cli.core.nano.captions import describe_scene
from lumina_cli.core.nano.scene import draw_scenes
from lumina_cli.core.sampling.latents import draw_latents
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.teacache.layer_cache import (
    FIT_FILE,
    CacheFit,
    LayerCache,
    LayerStackLike,
    Measurement,
    Through,
    write_cache_fit,
)
from lumina_cli.core.sampling.teacache.policy import fit_curve, relative_change

THRESHOLDS = (0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
APART = (1, 2, 4)  # calls between the two that are compared: shorter plans have larger changes
LEVELS = ("short", "medium", "detailed")


class Recorder:
    """Runs all main layers and notes how far the signal and residual of each row are from earlier calls."""

    def __init__(self):
        self.changes: list[tuple[float, float]] = []
        self.start()

    def start(self) -> None:
        """Expect a new draw; the changes stay."""
        self.past: dict[int, deque[tuple[Tensor, Tensor]]] = {}

    def __call__(self, stage: LayerStackLike) -> list[Tensor]:
        """Return the image tokens of every row after the main layers."""
        outs = stage.run(list(range(stage.rows)))
        for row, out in enumerate(outs):
            signal, residual = stage.signal(row), out - stage.image(row)
            past = self.past.setdefault(row, deque(maxlen=max(APART)))
            for apart in APART:
                if apart <= len(past):
                    signal_then, residual_then = past[-apart]
                    self.changes.append(
                        (relative_change(signal, signal_then), relative_change(residual, residual_then))
                    )
            past.append((signal, residual))
        return outs


def scene_prompts(count: int, seed: int = 0) -> list[str]:
    """Return captions of `count` scenes of the embedded world, short, medium and detailed in turn."""
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
    """Fit TeaCache's curve to a model, measure what thresholds do, and write both to `out`.

    The prompts are drawn without a cache under each plan, the model's own if none is given. From call to call
    of a row, mean|m - m_before| / mean|m_before| of the modulated input m of the first main layer is paired
    with the same of what the main layers add to the image tokens. Then they are drawn again under every plan
    with every threshold. Yields a row for the fit and a row for each of these: "error" is the mean over
    pictures of |latents - uncached| / |uncached|, "worst" the largest, "skipped" the share of rows skipped.
    `out` is a file, or a folder to write FIT_FILE in; without it the model's own.
    """
    if not prompts:
        raise UsageError("there is no prompt to fit a cache to")
    path = Path(out or pipeline.folder)
    path = path if path.suffix == ".json" else path / FIT_FILE
    plans = [replace(plan, cache=None) for plan in (plans or [pipeline.plan])]
    groups = [_inputs(pipeline, prompts, start, batch, seed) for start in range(0, len(prompts), batch)]
    recorder, exact = Recorder(), {}
    for number, plan in enumerate(plans):
        for place, inputs in enumerate(groups):
            recorder.start()
            exact[number, place] = draw_latents(Through(pipeline.transformer, recorder), *inputs, plan)
    curve, r2 = fit_curve(*zip(*recorder.changes, strict=True))
    fit = CacheFit(pipeline.weights, curve, r2, len(recorder.changes))
    yield {"step": "fit", "r2": r2, "points": fit.points, **asdict(curve)}
    for number, plan in enumerate(plans):
        for threshold in thresholds:
            cache = LayerCache(replace(plan, cache=f"tea:{threshold}"), fit)
            errors, rows, skipped = [], 0, 0
            for place, inputs in enumerate(groups):
                latents = draw_latents(pipeline.transformer, *inputs, cache.plan, cache=cache)
                errors += _relative(latents, exact[number, place])
                report = cache.report()
                rows, skipped = rows + report["rows"], skipped + report["skipped"]
            mean = sum(errors) / len(errors)
            found = Measurement(plan.solver, len(plan.calls()), threshold, mean, skipped / rows)
            fit = replace(fit, measures=(*fit.measures, found))
            yield {"step": "measure", **asdict(found), "worst": max(errors)}
    write_cache_fit(fit, path)
    yield {"step": "write", "file": str(path), "weights": fit.weights}


def _inputs(pipeline: Pipeline, prompts: Sequence[str], start: int, batch: int, seed: int) -> list[Tensor]:
    """Return noise, text, mask and those of the empty prompt, for the prompts from `start`."""
    chosen = [full_prompt(prompt) for prompt in prompts[start : start + batch]]
    text, mask = pipeline.text.encode(chosen)
    side = pipeline.transformer.config.sample_size
    shape = (pipeline.transformer.config.in_channels, side, side)
    noise = torch.stack([draw_noise(seed, start + number, shape) for number in range(len(chosen))])
    return [noise.to(text.device), text, mask, *pipeline.text.encode([""])]


def _relative(latents: Tensor, exact: Tensor) -> list[float]:
    size = vector_norm(exact.flatten(1), dim=1)
    return (vector_norm((latents - exact).flatten(1), dim=1) / size).tolist()
