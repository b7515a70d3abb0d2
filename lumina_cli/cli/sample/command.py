"""`lumina sample`: prompts in, pictures out."""

from pathlib import Path

from lumina_cli.cli import output
from lumina_cli.cli.sample import options
from lumina_cli.cli.sample.explain import show
from lumina_cli.core.errors import UsageError


def sample(
    prompts: options.Prompts = None,
    model: options.Model = "auto",
    seed: options.Seed = None,
    count: options.Count = 1,
    size: options.Size = None,
    preset: options.Preset = None,
    steps: options.Steps = None,
    calls: options.Calls = None,
    guidance: options.Guidance = None,
    plan: options.Settings = "",
    negative: options.Negative = None,
    negative_system: options.NegativeSystem = None,
    system: options.System = None,
    lora: options.Lora = None,
    cache: options.Cache = None,
    quantize: options.Quantize = None,
    memory: options.Memory = None,
    kernel: options.Kernel = "auto",
    compile: options.Compile = False,
    batch: options.Batch = None,
    grid: options.Grid = None,
    from_: options.From = None,
    init: options.Init = None,
    strength: options.Strength = None,
    mask: options.Mask = None,
    attention: options.Attention = None,
    out: options.Out = Path("pictures"),
    format: options.Format = "png",
    gallery: options.Gallery = False,
    shard: options.Shard = None,
    force: options.Force = False,
    explain: options.Explain = False,
    json: options.Json = False,
) -> None:
    """Draw a picture for each prompt. Prompts in, rows with an image out.

    lumina sample "a red car left of a blue ball" --model nano --seed 7

    A row of a file may have its own "seed", "size" and "negative". Pictures that are already there, drawn in
    the same way, are not drawn again: a run that was interrupted goes on where it stopped.
    """
    if from_ and (prompts or grid or preset):
        raise UsageError("--from brings prompt and plan of its own: leave PROMPTS, --grid and --preset out")
    rows = total = None
    if not from_:
        rows, total = output.read_rows(prompts, key="prompt"), output.count_rows(prompts, key="prompt")
    from lumina_cli.core import sampling
    from lumina_cli.core.flow.plan import read_settings

    given = {"steps": steps, "calls": calls, "guidance": guidance, "cache": cache}
    given = {name: value for name, value in given.items() if value is not None}
    settings = read_settings(plan) | given | ({"cache": None} if cache == "off" else {})
    said = {"seed": seed, "size": size, "system": system, "negative": negative}
    said["negative_system"] = negative_system
    said = {name: value for name, value in said.items() if value is not None}
    wishes = {"count": count, "preset": preset, "plan": settings, **said}
    sampling.SamplingRequest(**wishes).check()  # now, before seconds of imports
    words = tuple(attention or ())
    opening = sampling.ModelOptions(
        tuple(lora or ()), quantize, init, mask, strength, words, memory, kernel, compile
    )
    if explain:
        if from_ or grid:
            raise UsageError("--explain shows one plan: leave --from and --grid out")
        show(sampling.explain_rows(rows, model, opening, **wishes), json)
        return
    split = sampling.read_split(shard, shared=not from_ and total is None)
    if from_:
        from_ = [path for number, path in enumerate(from_) if split.has(number)]
        meter, model = len(from_), None if model == "auto" else model
        drawn = sampling.replay(from_, model, out, opening, settings | said, format, output.note)
    else:
        cells = 1
        if grid:
            from lumina_cli.core.sampling.output.grid import count_cells

            cells = count_cells(grid)
        meter = output.Meter(total and split.size(total) * count * cells)
        drawn = sampling.generate(
            rows, model, out, opening, grid, batch=batch, format=format, split=split, force=force,
            note=output.note, progress=meter, **wishes,
        )  # fmt: skip
    output.write_rows(drawn, json=json or None, label="pictures", total=meter)
    if gallery:
        output.note(f"gallery: {sampling.write_gallery(out, note=output.note)}")
