"""Pipelines with model options: LoRAs, quantization, memory budget, image editing, attention maps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumina_cli.core.device import pick_device
from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.sizes import Size
from lumina_cli.core.models.folder import component_errors
from lumina_cli.core.models.locate import ModelChoice, choose_model, find_local
from lumina_cli.core.sampling.batching import local_device
from lumina_cli.core.sampling.model_options import ModelOptions
from lumina_cli.core.sampling.output.metadata import Lora
from lumina_cli.core.sampling.pipeline import Pipeline, default_dtype, load_pipeline
from lumina_cli.core.sampling.request import check_settings
from lumina_cli.core.sampling.runner import generate_rows
from lumina_cli.core.weights.fingerprint import digest_adapter

Note = Callable[[str], None]


def open_pipeline(
    options: ModelOptions,
    model: str | Path | ModelChoice,
    note: Note,
    size: Size = None,
    batch: int = 1,
    device: str | None = None,
    dtype: Any = None,
) -> Pipeline:
    """Load a model as `options` specify, with hooks for image editing.

        note    called with one line per remark: what "auto" chose, LoRA tensors without a target
        size    of most images; with a memory budget it is validated before anything is loaded
        batch   images per batch that a memory budget has to allow
        device, dtype   see `load_pipeline`; a memory budget decides both

    `generate` adds the hook for attention maps.

    Raises:
        UsageError: if the model is unknown, an option is invalid or the memory budget is too small.
        LuminaError: if a file is missing or damaged.
    """
    edit = None
    if options.init is not None:
        from lumina_cli.core.sampling.editing.img2img import EditHook, read_edit

        edit = EditHook(read_edit(options.init, options.mask, options.strength), note)
    choice = model if isinstance(model, ModelChoice) else choose_model(model)
    if choice.reason:
        note(choice.reason)
    if options.memory is None:
        pipeline = load_pipeline(choice, device or local_device(), dtype)
        _change_weights(options, pipeline, note)
    else:
        pipeline = _open_within(options, choice, note, batch)
    pipeline.note = note
    if edit is not None:
        pipeline = pipeline.with_hooks(edit)
    if pipeline.memory_manager is not None:
        pipeline.memory_manager.plan_ahead(pipeline.size_for(size), (pipeline.token_side,) * 2)
    return pipeline


def _open_within(options: ModelOptions, choice: ModelChoice, note: Note, batch: int) -> Pipeline:
    """A pipeline whose components are loaded on first use; LoRAs are merged while weights are read."""
    from lumina_cli.core.kernels.dispatch import choose_kernel
    from lumina_cli.core.nextdit.config import config_from_diffusers
    from lumina_cli.core.nextdit.lora.merge import LoraStack
    from lumina_cli.core.sampling.memory.budget import plan_memory
    from lumina_cli.core.sampling.memory.offload import MemoryManager, load_components
    from lumina_cli.core.sampling.memory.plan import MemoryPlan, parse_memory
    from lumina_cli.core.weights.json_files import read_json

    folder, device = choice.folder, pick_device(local_device())
    with component_errors(folder / "transformer"):
        config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
        dtype = default_dtype(folder, device)
    stack = LoraStack(config, options.loras) if options.loras else None
    kernel, budget = choose_kernel(options.kernel, device, dtype), parse_memory(options.memory)

    def plan_for(size: tuple[int, int], count: int, cached: bool) -> MemoryPlan:
        return plan_memory(folder, budget, size, count, dtype, device, bool(options.loras), cached)

    plan = MemoryPlan(budget)
    components = load_components(folder, plan, device, dtype, stack, kernel=kernel, fused=options.compile)
    pipeline = Pipeline(choice, *components)
    pipeline.memory_manager = MemoryManager(components, plan_for, batch, note)
    pipeline.record_changes(describe_loras(stack.applied if stack else (), note))
    return pipeline


def _change_weights(options: ModelOptions, pipeline: Pipeline, note: Note) -> None:
    """Merge LoRAs, quantize, and update the fingerprint of the weights: the images will differ."""
    from lumina_cli.core.kernels.dispatch import choose_kernel

    loras, network = [], pipeline.transformer
    network.kernel = choose_kernel(options.kernel, network.x_embedder.weight.device, network.dtype)
    network.fused = options.compile
    if options.loras:
        from lumina_cli.core.nextdit.lora.merge import apply_loras

        loras = describe_loras(apply_loras(network, options.loras, keep=False), note)
    if options.quantize:
        from lumina_cli.core.nextdit.packed.quantize import quantize

        quantize(network, options.quantize)
    pipeline.record_changes(loras, options.quantize)


def describe_loras(applied: Iterable, note: Note) -> list[Lora]:
    """The LoRAs as image metadata stores them; `note` is called for tensors without a target."""
    for one in applied:
        if one.note:
            note(one.note)
    return [(one.path, one.scale, digest_adapter(Path(one.path))) for one in applied]


def generate(
    rows: Iterable[dict],
    model: str | Path | ModelChoice,
    out: str | Path,
    options: ModelOptions,
    grid: str | None = None,
    **settings,
) -> Iterator[dict]:
    """Yield the rows of `generate_rows`, or of `generate_grid` if `grid` describes one.

    The model is opened with `options`; `settings` are those of `generate_rows`. With attention maps, images
    that exist are generated again: the maps are recorded while an image is generated.

    Raises:
        UsageError: if options exclude each other or a setting is invalid.
        LuminaError: if a row, a file or the disk prevents an image.
    """
    axes = None
    if grid is not None:
        from lumina_cli.core.sampling.output.grid import generate_grid
        from lumina_cli.core.sampling.output.grid_axes import read_grid

        if options.attention:
            raise UsageError("a grid has no attention maps: omit --attention or --grid")
        axes = read_grid(grid)
    elif options.plain:
        yield from generate_rows(rows, model, out, **settings)
        return
    note = settings["note"]
    if options.memory is not None:
        settings["batch"] = settings.get("batch") or 1  # the budget is planned for a fixed batch size
    pipeline = open_pipeline(options, model, note, settings.get("size"), settings.get("batch") or 1)
    if axes is not None:
        yield from generate_grid(rows, axes, pipeline, out, **settings)
    elif options.attention:
        from lumina_cli.core.sampling.editing.attention_maps import AttentionHook, with_overlays

        maps = AttentionHook(options.attention)
        generated = generate_rows(rows, pipeline.with_hooks(maps), out, **settings | {"force": True})
        yield from with_overlays(generated, maps)
    else:
        yield from generate_rows(rows, pipeline, out, **settings)


def replay(
    paths: Sequence[Path],
    model: str | None,
    out: Path,
    options: ModelOptions,
    changes: dict,
    format: str,
    note: Note,
    variants: Sequence[Mapping[str, Any]] = ({},),
) -> Iterator[dict]:
    """Yield the rows of `replay_images`, with models opened with `options`.

    `variants` are those of `replay_images`. LoRAs and quantization are those of `options` or, if it has none,
    those of each image.

    Raises:
        UsageError: if `options` contain image editing or attention maps.
        LuminaError: if an image has no usable metadata or a file is missing.
    """
    from lumina_cli.core.sampling.editing.replay import replay_images

    def load(name: str, loras: tuple[str, ...], quantize: str | None) -> Pipeline:
        own = options.quantize or (
            None if options.memory else quantize
        )  # a budget cannot be combined with quantization
        choice = name if model is not None or name == "auto" else find_local(name)
        return open_pipeline(replace(options, loras=options.loras or loras, quantize=own), choice, note)

    if options.init or options.attention:
        raise UsageError("--from regenerates an image as it was generated: omit --init and --attention")
    check_settings(changes)
    yield from replay_images(paths, load, out, model, changes, format, variants, note)
