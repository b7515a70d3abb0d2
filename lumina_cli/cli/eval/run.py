"""`lumina eval run | prompts | compare`: scores of a benchmark, which is prompts and a judge."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.group import default_command
from lumina_cli.cli.help import VerbApp
from lumina_cli.cli.options import Json
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import BENCHMARKS, JUDGES

HELP = """Score a model or a folder of images with a benchmark, and compare results.

`lumina eval BENCHMARK` is short for `lumina eval run BENCHMARK`.

Examples:

    lumina eval geneval --model nano --out runs/geneval
    lumina eval compare runs/before runs/after
    lumina eval captions qwen.jsonl omni.jsonl --page captions.html
"""
SUBJECT, PROMPTS, SAMPLING, SCORING = "Subject", "Prompts", "Sampling", "Scoring and output"

app = VerbApp(cls=default_command("run", BENCHMARKS), help=HELP)

Benchmark = Annotated[str, typer.Argument(help=f"Benchmark: {', '.join(BENCHMARKS)}.")]
Prompts = Annotated[
    str,
    typer.Option(
        help="Prompt set: nano (for models of nano's world) or official (GenEval's 553 prompts).",
        rich_help_panel=PROMPTS,
    ),
]
PerTask = Annotated[
    int, typer.Option(help="Prompts per task of the nano prompt set.", rich_help_panel=PROMPTS)
]
Langs = Annotated[
    str,
    typer.Option(
        help="Languages of the nano prompts, comma-separated: en, zh, ja, ru, de.", rich_help_panel=PROMPTS
    ),
]
Split = Annotated[
    str,
    typer.Option(
        help="Split of the nano prompts: test, or held-out (combinations absent from training).",
        rich_help_panel=PROMPTS,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Random seed of prompts, noise and bootstrap.", rich_help_panel=PROMPTS)
]


@app.command()
def run(
    benchmark: Benchmark,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model to generate with: a name, a model or run folder, or a hub id.",
            rich_help_panel=SUBJECT,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Score existing images in this folder (00000/samples/00000.png ...).",
            rich_help_panel=SUBJECT,
        ),
    ] = None,
    ceiling: Annotated[
        bool,
        typer.Option(
            "--ceiling",
            help="Score ground-truth renders: the upper bound that the judge allows.",
            rich_help_panel=SUBJECT,
        ),
    ] = False,
    prompts: Prompts = "nano",
    per_task: PerTask = 40,
    pictures: Annotated[
        int, typer.Option(min=1, max=1000, help="Images per prompt.", rich_help_panel=PROMPTS)
    ] = 4,
    langs: Langs = "en",
    split: Split = "test",
    seed: Seed = 0,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sampling preset: official, diffusers, comfyui, fast or a YAML file.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    plan: Annotated[
        str,
        typer.Option(
            help="Further sampling settings, e.g. steps=20,shift=3, or a JSON file.", rich_help_panel=SAMPLING
        ),
    ] = "",
    batch: Annotated[
        int, typer.Option(min=1, help="Images generated and judged at once.", rich_help_panel=SAMPLING)
    ] = 16,
    judge: Annotated[
        str, typer.Option(help=f"Judge: {', '.join(JUDGES)}.", rich_help_panel=SCORING)
    ] = "nano",
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Exit with code 6 unless this holds, e.g. 'geneval>=0.8'. Repeatable.",
            rich_help_panel=SCORING,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder: images, rows.jsonl and summary.json.", rich_help_panel=SCORING),
    ] = None,
    json: Json = False,
) -> None:
    """Generate images for a benchmark's prompts and score them. A model or images in, one row per image out.

    A table of the scores follows on stderr. Name one subject: --model, --images or --ceiling.

    Examples:

        lumina eval geneval --model nano --out runs/geneval
        lumina eval geneval --images images --judge nano
        lumina eval geneval --model runs/first --split held-out --gate "geneval>=0.8"
    """
    from lumina_cli.cli.eval.generator import make_generator
    from lumina_cli.core.evals.run import Evaluation

    if (images is not None) == (ceiling or model is not None):
        raise UsageError("name what to score: --model NAME, --images DIR, or --ceiling")
    if (plan or preset) and (images or ceiling):
        raise UsageError("--plan and --preset need --model: --images and --ceiling do not sample")
    scores = Evaluation(BENCHMARKS.load(benchmark)(), JUDGES.load(judge)(), seed, out, batch, gate or ())
    if images:
        scores.find(images)
    else:
        scores.ask(prompts, per_task, langs.split(","), split)
        scores.draw(make_generator(model, ceiling, seed, plan, preset), pictures)
    if json or not sys.stdout.isatty():
        output.write_rows(scores, json=True, label="images", total=scores.total)
    else:
        list(output.track_progress(scores, "images", scores.total))
    output.print_table(scores.table(), title=scores.title)
    scores.check_gates()


@app.command()
def prompts(
    benchmark: Benchmark,
    prompts: Prompts = "nano",
    per_task: PerTask = 40,
    langs: Langs = "en",
    split: Split = "test",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Write the prompts of a benchmark. A benchmark in, one row per prompt out.

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
    """Compare two runs on the prompts they share. Two result folders in, rows of differences out.

    Each difference is second - first, with a 95 % interval from a paired bootstrap.

    Examples:

        lumina eval compare runs/before runs/after
        lumina eval compare runs/before/summary.json runs/after/summary.json --json
    """
    from lumina_cli.core.evals import report

    output.write_rows(report.compare(first, second), json=json or None)
