"""`lumina eval run | prompts | compare`: scores of a benchmark, which is prompts and a judge."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.eval import options
from lumina_cli.cli.group import default_command
from lumina_cli.cli.help import VerbApp
from lumina_cli.cli.options import Json, parse_ray_workers
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import BENCHMARKS, JUDGES

HELP = """Score a model or a folder of images with a benchmark, and compare results.

`lumina eval BENCHMARK` is short for `lumina eval run BENCHMARK`.

Examples:

    lumina eval geneval --model nano --out runs/geneval
    lumina eval compare runs/before runs/after
    lumina eval captions qwen.jsonl omni.jsonl --page captions.html
"""
app = VerbApp(cls=default_command("run", BENCHMARKS), help=HELP)


@app.command()
def run(
    benchmark: options.Benchmark,
    model: options.Model = None,
    frozen: options.Frozen = None,
    images: options.Images = None,
    ceiling: options.Ceiling = False,
    prompts: options.Prompts = "nano",
    per_task: options.PerTask = 40,
    pictures: options.Pictures = 4,
    langs: options.Langs = "en",
    split: options.Split = "test",
    seed: options.Seed = 0,
    preset: options.Preset = None,
    plan: options.Plan = "",
    batch: options.Batch = 16,
    workers: options.Workers = "1",
    judge: options.Judge = "nano",
    gate: options.Gate = None,
    out: options.Out = None,
    json: Json = False,
) -> None:
    """Generate images for a benchmark's prompts and score them. Writes one row per image to stdout.

    The last row is the summary, as in summary.json; it does not have a "filename". Pass exactly one of
    --model, --images or --ceiling. A table of the scores is printed to stderr at the end.

    Examples:

        lumina eval geneval --model nano --out runs/geneval
        lumina eval geneval --images images --judge nano
        lumina eval geneval --model runs/first --split held-out --gate "geneval>=0.8"
        lumina eval geneval --model nano --out s3://bucket/geneval --workers ray:8
    """
    output.show_status(f"loading the {judge} judge{f' and {model}' if model else ''}")
    from lumina_cli.cli.eval.generator import make_generator, make_opener
    from lumina_cli.core.evals.run import Evaluation

    if frozen is not None and model is None:
        raise UsageError("--frozen completes the transformer that --model names: pass --model too")
    if (images is not None) == (ceiling or model is not None):
        raise UsageError("pass exactly one of --model NAME, --images DIR or --ceiling")
    if (plan or preset) and (images or ceiling):
        raise UsageError("--plan and --preset need --model: --images and --ceiling do not sample")
    processes = parse_ray_workers(workers, images=images)
    scores = Evaluation(BENCHMARKS.load(benchmark)(), JUDGES.load(judge)(), seed, out, batch, gate or ())
    if images:
        scores.use_images(images, output.write_note)
    else:
        scores.choose_prompts(prompts, per_task, langs.split(","), split)
        if processes.ray:
            opener = make_opener(model, ceiling, seed, plan, preset, frozen)
            scores.generate_on(processes, opener, (benchmark, judge), pictures, output.write_note)
        else:
            scores.generate(make_generator(model, ceiling, seed, plan, preset, frozen=frozen), pictures)
    if json or not sys.stdout.isatty():
        output.write_rows(scores, json=True, label="images", total=scores.total)
        output.write_rows([scores.summary], json=True)
    else:
        list(output.track_progress(scores, "images", scores.total))
    output.print_table(scores.table(), title=scores.title)
    scores.check_gates()


@app.command()
def prompts(
    benchmark: options.Benchmark,
    prompts: options.Prompts = "nano",
    per_task: options.PerTask = 40,
    langs: options.Langs = "en",
    split: options.Split = "test",
    seed: options.Seed = 0,
    json: Json = False,
) -> None:
    """Write the prompts of a benchmark, one row per prompt.

    The rows are in the order of the numbered folders that `lumina eval run --images` reads.

    Examples:

        lumina eval prompts geneval --per-task 5
        lumina eval prompts geneval --prompts official | lumina sample - --out images
    """
    rows = BENCHMARKS.load(benchmark)().prompts(prompts, per_task, langs.split(","), seed, split)
    output.write_rows(rows, json=json or None)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Output folder of `lumina eval`, or its summary.json.")],
    second: Annotated[Path, typer.Argument(help="Output folder to compare with it.")],
    json: Json = False,
) -> None:
    """Compare two runs on the prompts they share. Writes one row per difference.

    Each difference is second - first, with a 95 % interval from a paired bootstrap.

    Examples:

        lumina eval compare runs/before runs/after
        lumina eval compare runs/before/summary.json runs/after/summary.json --json
    """
    from lumina_cli.core.evals import report

    output.write_rows(report.compare(first, second), json=json or None)
