"""`lumina sample`: generate images from prompts."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lumina_cli.cli import options as shared
from lumina_cli.cli import output
from lumina_cli.cli.sample import options
from lumina_cli.cli.sample.explain import print_explanation
from lumina_cli.core.errors import UsageError
from lumina_cli.core.io.location import is_url, to_text


def sample(
    prompts: options.Prompts = None,
    captions: options.Captions = None,
    seed: options.Seed = None,
    count: options.Count = 1,
    size: options.Size = None,
    negative: options.Negative = None,
    system: options.System = None,
    negative_system: options.NegativeSystem = None,
    preset: options.Preset = None,
    steps: options.Steps = None,
    calls: options.Calls = None,
    guidance: options.Guidance = None,
    plan: options.Settings = "",
    model: options.Model = "auto",
    frozen: options.Frozen = None,
    lora: options.Lora = None,
    from_: options.From = None,
    init: options.Init = None,
    strength: options.Strength = None,
    mask: options.Mask = None,
    attention: options.Attention = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    memory: options.Memory = None,
    kernel: options.Kernel = "auto",
    compile: options.Compile = False,
    batch: options.Batch = None,
    workers: options.Workers = "1",
    out: options.Out = Path("pictures"),
    format: options.Format = "png",
    grid: options.Grid = None,
    gallery: options.Gallery = False,
    split: options.SplitOption = None,
    shard: shared.DeprecatedShard = None,
    force: options.Force = False,
    explain: options.Explain = False,
    json: shared.Json = False,
) -> None:
    """Generate images from prompts. Writes one row per image to stdout.

    Rows of a file may set their own "seed", "size" and "negative". Images that already exist with the same
    settings are not generated again, so an interrupted command can be rerun to resume.

    Examples:

        lumina sample "a red car left of a blue ball" --model nano --seed 7
        lumina sample prompts.txt --count 4 --size 16:9 --out images --gallery
        lumina sample "a cat" --init photo.png --strength 0.6 --mask mask.png
        lumina sample "a cat" --preset fast --grid "guidance=2,4 x seed=1,2"
    """
    if from_ and grid:
        raise UsageError("--from regenerates single images and cannot be combined with --grid")
    if explain and (from_ or grid):
        raise UsageError("--explain shows a single plan and cannot be combined with --from or --grid")
    if steps is not None and calls is not None:  # `apply` checks this too, but after the note on the model
        raise UsageError("--steps and --calls are mutually exclusive")
    split = shared.resolve_split(split, shard)
    processes = shared.parse_ray_workers(workers, grid=grid, from_=from_, attention=attention, init=init)
    if is_url(out) and (gallery or attention):
        raise UsageError(f"--out {to_text(out)}: --gallery and --attention need a folder on this machine")
    if gallery and _write_gallery_only(prompts, from_, out):
        return
    from lumina_cli.core.encoders.prompt_rows import parse_seeds

    seeds = None if seed is None else parse_seeds(seed)
    rows, total, wanted = _read_prompts(prompts, from_, captions, seeds or (0,))
    output.show_status(f"loading {model if not from_ else 'the model'}")
    with _pause_gc():
        from lumina_cli.core.flow.plan import read_settings
        from lumina_cli.core.sampling.batching import read_split
        from lumina_cli.core.sampling.model_options import ModelOptions
        from lumina_cli.core.sampling.request import SamplingRequest

    settings = read_settings(plan)
    settings |= _drop_none(steps=steps, calls=calls, guidance=guidance, cache=cache)
    settings |= {"cache": None} if cache == "off" else {}
    overrides = _drop_none(size=size, system=system, negative=negative, negative_system=negative_system)
    request = {"count": count, "preset": preset, "plan": settings, **overrides}
    request |= _drop_none(seed=seeds and (seeds if len(seeds) > 1 else seeds[0]))
    SamplingRequest(**request).check()  # now, before seconds of imports
    model_options = ModelOptions(
        tuple(lora or ()), quantize, init, mask, strength, tuple(attention or ()), memory, kernel, compile
    )
    if frozen is not None:
        from lumina_cli.core.models.locate import choose_model

        if processes.ray:
            raise UsageError("--frozen is for this machine; on workers, use a folder that convert wrote")
        model = choose_model(model, frozen)
    if explain:
        from lumina_cli.core.sampling.explain import explain_rows

        print_explanation(explain_rows(rows, model, model_options, **request), json)
        return
    own = read_split(split, shared=not from_ and total is None)
    with _pause_gc():
        from lumina_cli.core.sampling.loading import generate, replay

    if from_:
        from_ = [path for number, path in enumerate(from_) if own.has(number)]
        variants, model = _list_variants(rows, seeds), None if model == "auto" else model
        counter = len(from_) * len(variants)
        changes = settings | overrides | _drop_none(preset=preset)
        images = replay(from_, model, out, model_options, changes, format, output.write_note, variants)
    elif processes.ray:
        from lumina_cli.core.sampling.parallel.rows import generate_on_workers

        counter = output.ProgressCounter(_count_images(own, total, wanted, seeds, count))
        images = generate_on_workers(
            rows, model, out, model_options, processes, batch=batch, format=format, split=own, force=force,
            note=output.write_note, progress=counter, **request,
        )  # fmt: skip
    else:
        each = count * _count_cells(grid)
        counter = output.ProgressCounter(_count_images(own, total, wanted, seeds, each))
        images = generate(
            rows, model, out, model_options, grid, batch=batch, format=format, split=own, force=force,
            note=output.write_note, progress=counter, **request,
        )  # fmt: skip
    _write_images(images, json, counter, out if gallery else None)


def _read_prompts(
    prompts: list[str] | None, from_: list[Path] | None, captions: str | None, seeds: tuple[int, ...]
) -> tuple[Iterator[dict], int | None, int | None]:
    """Return the rows of prompts, their number and that of their images, None if stdin contains them.

    With --from, the prompts are optional.
    """
    from lumina_cli.core.encoders.prompt_rows import RowSurvey, captions_to_prompts, check_level

    if captions is not None:
        check_level(captions)
    key = "prompt" if captions is None else "captions"
    if from_ and not prompts:
        return iter(()), 0, 0
    survey = RowSurvey()
    rows, total = shared.read_rows(prompts, key), shared.count_rows(prompts, key, survey.add)
    for line in (*survey.notes(), *(shared.comment_notes(prompts) if captions is None else ())):
        output.write_note(line)
    rows = rows if captions is None else captions_to_prompts(rows, captions)
    if total is None:
        return _watch(rows), None, None
    return rows, total, survey.seeded + (total - survey.seeded) * len(seeds)


def _count_images(
    own: Any, rows: int | None, wanted: int | None, seeds: tuple[int, ...] | None, each: int
) -> int | None:
    """Return the number of images of a split, `each` for one row and seed; None if stdin contains the rows.

    wanted   number for all splits, where rows may have a seed of their own
    """
    if rows is None or wanted is None:
        return None
    return each * (wanted if own.count == 1 else own.size(rows) * len(seeds or (0,)))


def _watch(rows: Iterator[dict]) -> Iterator[dict]:
    """Yield rows of stdin; after the last one, report the keys that are not used."""
    from lumina_cli.core.encoders.prompt_rows import RowSurvey

    survey = RowSurvey()
    for row in rows:
        survey.add("-", row)
        yield row
    for line in survey.notes():
        output.write_note(line)


def _list_variants(rows: Iterator[dict], seeds: tuple[int, ...] | None) -> list[dict]:
    """Return the changes that --from makes to each image: each prompt with each seed."""
    names = ("prompt", "seed", "negative", "size")
    variants = [{name: row[name] for name in names if row.get(name) is not None} for row in rows] or [{}]
    if seeds is None:
        return variants
    return [{"seed": seed} | variant for variant in variants for seed in seeds]


def _write_gallery_only(prompts: list[str] | None, from_: list[Path] | None, out: Path) -> bool:
    """Write the gallery of a folder that exists if nothing is to be generated; return whether it was."""
    from lumina_cli.core.sampling.output.gallery import check_gallery

    check_gallery(out)  # before anything is generated
    if prompts or from_ or not _is_stdin_empty():
        return False
    _write_gallery(out)
    return True


def _drop_none(**settings: Any) -> dict[str, Any]:
    """Return the settings that were given on the command line."""
    return {name: value for name, value in settings.items() if value is not None}


def _count_cells(grid: str | None) -> int:
    """Return the number of images per prompt and seed that --grid asks for."""
    if not grid:
        return 1
    from lumina_cli.core.sampling.output.grid_axes import count_cells

    return count_cells(grid)


def _is_stdin_empty() -> bool:
    """Whether stdin is a terminal, the null device, or an empty file or pipe."""
    if sys.stdin.isatty():
        return True
    stream = getattr(sys.stdin, "buffer", sys.stdin)
    return hasattr(stream, "peek") and not stream.peek(1)


def _write_images(
    images: Iterator[dict], json: bool, counter: int | output.ProgressCounter, gallery: Path | None
) -> None:
    """Generate the images, write their rows, then a gallery of the folder `gallery`."""
    output.write_rows(images, json=json or None, label="images", total=counter)
    if gallery:
        _write_gallery(gallery)


def _write_gallery(folder: Path) -> None:
    from lumina_cli.core.sampling.output.gallery import write_gallery

    output.write_note(f"gallery: {write_gallery(folder, note=output.write_note)}")


@contextmanager
def _pause_gc() -> Iterator[None]:
    """Pause garbage collection during imports, which create no garbage: it takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
