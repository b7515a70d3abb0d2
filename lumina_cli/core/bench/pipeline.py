"""End-to-end generation time: this program against diffusers' pipeline on one model folder."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from lumina_cli.core.encoders.text import quiet_transformers
from lumina_cli.core.encoders.vae import quiet_diffusers
from lumina_cli.core.images.sizes import Size
from lumina_cli.core.models.folder import PlanLike
from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline
from lumina_cli.core.sampling.request import Job, SamplingRequest, check_at_least

PROMPTS = ("a red car left of a blue ball", "two green cups and a yellow star", "a small white cube")
PERCENTILES = (20, 50, 80)
THEIRS = {"num_inference_steps": 30, "guidance_scale": 4.0}  # the defaults of diffusers' Lumina2Pipeline


def compare_pipelines(
    model: str | Path | Pipeline = "nano",
    *,
    plan: PlanLike = None,
    preset: str | Path | None = None,
    prompts: Sequence[str] = PROMPTS,
    size: Size = None,
    pictures: int = 1,
    repeats: int = 7,
) -> Iterator[dict]:
    """Yield a row per side: seconds from text to pixels for a batch of `pictures` images of one prompt.

        model          a name or folder, or a loaded pipeline
        plan, preset   of our side, see `SamplingRequest`
        prompts        used in turn, one per round
        repeats        timed rounds, after one untimed round
        yields         "times_diffusers" is the median over rounds of diffusers' time divided by ours

    diffusers' pipeline uses its defaults, 30 guided Euler steps, in the same dtype and on the same device.
    The sides alternate in who is first, and text features are not cached across rounds.

    Raises:
        UsageError: if a setting is invalid.
    """
    check_at_least(1, pictures=pictures, repeats=repeats)
    request = SamplingRequest(plan=plan, preset=preset, size=size, count=pictures)
    request.check()
    ours = model if isinstance(model, Pipeline) else load_pipeline(model)
    sides = {"lumina": _our_side(ours, request), "diffusers": _their_side(ours, request)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        for side in list(sides) if turn % 2 else reversed(sides):
            seconds = _clock(sides[side], prompts[turn % len(prompts)], turn, ours.transformer)
            if turn:
                times[side].append(seconds)
    settings = request.resolve(ours).plan
    about = {"model": ours.name, "size": "{}x{}".format(*ours.size_for(size)), "pictures": pictures}
    about |= {"dtype": str(ours.transformer.dtype).removeprefix("torch."), "repeats": repeats}
    about |= {"threads": torch.get_num_threads()}
    ratio = np.median(np.array(times["diffusers"]) / np.array(times["lumina"]))
    calls = {"lumina": len(settings.calls()), "diffusers": 2 * THEIRS["num_inference_steps"]}
    rows = {"lumina": sum(call.branches for call in settings.calls()), "diffusers": calls["diffusers"]}
    for side, marks in ((side, np.percentile(one, PERCENTILES)) for side, one in times.items()):
        yield {
            "side": side,
            **{f"seconds_p{p}": float(mark) for p, mark in zip(PERCENTILES, marks, strict=True)},
            "times_diffusers": float(ratio) if side == "lumina" else 1.0,
            "calls": calls[side],
            "network_rows": rows[side],
            **about,
            **({"plan": settings.to_json(), "preset": str(preset or "")} if side == "lumina" else THEIRS),
        }


def _our_side(pipeline: Pipeline, request: SamplingRequest) -> Callable[[str, int], None]:
    """Our pipeline as (prompt, seed) -> None."""
    resolved, size = request.resolve(pipeline), pipeline.size_for(request.size)

    def generate(prompt: str, seed: int) -> None:
        pipeline.text_cache.kept.clear()
        jobs = [Job(prompt, seed, number) for number in range(request.count)]
        pipeline.generate_batch(jobs, resolved, size)

    return generate


def _their_side(pipeline: Pipeline, request: SamplingRequest) -> Callable[[str, int], None]:
    """The pipeline of diffusers on the same model folder, as (prompt, seed) -> None."""
    from diffusers.pipelines.lumina2.pipeline_lumina2 import Lumina2Pipeline

    network = pipeline.transformer
    with quiet_diffusers(), quiet_transformers():
        theirs = Lumina2Pipeline.from_pretrained(pipeline.folder, dtype=network.dtype)
    theirs = theirs.to(next(network.parameters()).device, network.dtype)
    theirs.set_progress_bar_config(disable=True)
    width, height = pipeline.size_for(request.size)

    def generate(prompt: str, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sides = {"width": width, "height": height}
        theirs(prompt, **sides, generator=generator, num_images_per_prompt=request.count, **THEIRS)

    return generate


def _clock(generate: Callable[[str, int], None], prompt: str, seed: int, network: torch.nn.Module) -> float:
    """The seconds that a call takes."""
    cuda = next(network.parameters()).is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    generate(prompt, seed)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
