"""A pipeline as a run asks for it: with LoRAs, in 8 bits, starting from a picture, watched."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lumina_cli.core.device import pick_device
from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.sizes import Size
from lumina_cli.core.models.folder import component_errors
from lumina_cli.core.models.locate import ModelChoice, choose_model
from lumina_cli.core.sampling.batching import own_device
from lumina_cli.core.sampling.model_options import ModelOptions
from lumina_cli.core.sampling.output.metadata import Lora
from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline, usual_dtype
from lumina_cli.core.sampling.runner import generate_rows
from lumina_cli.core.weights.fingerprint import digest_adapter


def open_pipeline(
    opening: ModelOptions,
    model: str | Path | ModelChoice,
    note: Callable[[str], None],
    size: Size = None,
    batch: int = 1,
) -> Pipeline:
    """Load a model and do to it what `opening` says; `note` is told what "auto" chose and LoRAs leave unused.

    A budget of memory is for `batch` pictures at once, of `size` or any other.
    """
    edit = None
    if opening.init is not None:
        from lumina_cli.core.sampling.editing.img2img import EditingPipeline, read_edit

        edit = read_edit(opening.init, opening.mask, opening.strength)
    choice = model if isinstance(model, ModelChoice) else choose_model(model)
    if choice.reason:
        note(choice.reason)
    if opening.memory is None:
        pipeline = load_pipeline(choice, own_device())
        _change(opening, pipeline, note)
    else:
        pipeline = _open_within(opening, choice, note, batch)
    pipeline.note = note
    if edit is not None:
        pipeline = EditingPipeline(pipeline, edit, note)
    if pipeline.room is not None:
        pipeline.room.expect(pipeline.size_for(size), (pipeline.token_side,) * 2)
    if opening.attention:
        from lumina_cli.core.sampling.editing.attention_maps import AttentionPipeline

        pipeline = AttentionPipeline(pipeline, opening.attention)
    return pipeline


def _open_within(
    opening: ModelOptions, choice: ModelChoice, note: Callable[[str], None], batch: int
) -> Pipeline:
    """A pipeline whose parts are loaded when they are used, LoRAs merged into what is read."""
    from lumina_cli.core.kernels.dispatch import choose_kernel
    from lumina_cli.core.nextdit.config import config_from_diffusers
    from lumina_cli.core.nextdit.lora.merge import LoraStack
    from lumina_cli.core.sampling.memory.budget import MemoryPlan, parse_memory, plan_memory
    from lumina_cli.core.sampling.memory.offload import MemoryManager, load_parts
    from lumina_cli.core.weights.json_files import read_json

    folder, device = choice.folder, pick_device(own_device())
    with component_errors(folder / "transformer"):
        config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
        dtype = usual_dtype(folder, device)
    stack = LoraStack(config, opening.loras) if opening.loras else None
    kernel, budget = choose_kernel(opening.kernel, device, dtype), parse_memory(opening.memory)

    def plan_for(size: tuple[int, int], count: int, cached: bool) -> MemoryPlan:
        return plan_memory(folder, budget, size, count, dtype, device, bool(opening.loras), cached)

    plan = MemoryPlan(budget)
    parts = load_parts(folder, plan, device, dtype, stack, kernel=kernel, fused=opening.compile)
    pipeline = Pipeline(choice, *parts)
    pipeline.room = MemoryManager(parts, plan_for, batch, note)
    pipeline.changed(_told(stack.applied if stack else (), note))
    return pipeline


def _change(opening: ModelOptions, pipeline: Pipeline, note: Callable[[str], None]) -> None:
    """Change the weights, and their fingerprint with them: the pictures are others."""
    from lumina_cli.core.kernels.dispatch import choose_kernel

    loras, network = [], pipeline.transformer
    network.kernel = choose_kernel(opening.kernel, network.x_embedder.weight.device, network.dtype)
    network.fused = opening.compile
    if opening.loras:
        from lumina_cli.core.nextdit.lora.merge import apply_loras

        loras = _told(apply_loras(network, opening.loras, keep=False), note)
    if opening.quantize:
        from lumina_cli.core.nextdit.packed.quantize import quantize

        quantize(network, opening.quantize)
    pipeline.changed(loras, opening.quantize)


def _told(applied: Iterable, note: Callable[[str], None]) -> list[Lora]:
    """What pictures tell of LoRAs that are in use; `note` is told what these leave unused."""
    for one in applied:
        if one.note:
            note(one.note)
    return [(one.path, one.scale, digest_adapter(Path(one.path))) for one in applied]


def generate(
    rows: Iterable[dict],
    model: str | Path | ModelChoice,
    out: str | Path,
    opening: ModelOptions,
    grid: str | None = None,
    **how,
) -> Iterator[dict]:
    """Yield the rows of `draw_rows`, or of `draw_grid`, drawn by a model that `opening` opened.

    `how` is what `draw_rows` takes. With words to watch, pictures are drawn even where they are there.
    """
    axes = None
    if grid is not None:
        from lumina_cli.core.sampling.output.grid import draw_grid, read_grid

        if opening.attention:
            raise UsageError("a grid has no maps of attention: leave --attention or --grid out")
        axes = read_grid(grid)
    elif opening.plain:
        yield from generate_rows(rows, model, out, **how)
        return
    note = how["note"]
    if opening.memory is not None:
        how["batch"] = how.get("batch") or 1  # the budget is for so many at once
    pipeline = open_pipeline(opening, model, note, how.get("size"), how.get("batch") or 1)
    if axes is not None:
        yield from draw_grid(rows, axes, pipeline, out, **how)
    elif opening.attention:
        from lumina_cli.core.sampling.editing.attention_maps import with_overlays

        yield from with_overlays(generate_rows(rows, pipeline, out, **how | {"force": True}), pipeline)
    else:
        yield from generate_rows(rows, pipeline, out, **how)


def replay(
    paths: Sequence[Path],
    model: str | None,
    out: Path,
    opening: ModelOptions,
    changes: dict,
    format: str,
    note: Callable[[str], None],
) -> Iterator[dict]:
    """Yield the rows of `draw_again`, drawn by models that `opening` opened.

    LoRAs and 8 bits are those of the opening or, where it has none, of the pictures; see `draw_again`.
    """
    from lumina_cli.core.sampling.editing.replay import replay_images

    def load(name: str, loras: tuple[str, ...], quantize: str | None) -> Pipeline:
        own = opening.quantize or (None if opening.memory else quantize)  # a budget takes no 8 bits
        return open_pipeline(replace(opening, loras=opening.loras or loras, quantize=own), name, note)

    if opening.init or opening.attention:
        raise UsageError("--from draws a picture as it was drawn: leave --init and --attention out")
    yield from replay_images(paths, load, out, model, changes, format, note)
