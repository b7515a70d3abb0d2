"""`lumina eval`: how good pictures are, by benchmarks (prompts + a judge)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.cli.group import fallback
from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import BENCHMARKS, JUDGES

app = typer.Typer(
    cls=fallback("run", BENCHMARKS), no_args_is_help=True, help="Score a model, or a folder of pictures."
)

Benchmark = Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")]
Prompts = Annotated[str, typer.Option(help="nano: the embedded world's kinds; official: GenEval's own 553.")]
PerTask = Annotated[int, typer.Option(help="Nano prompts for each of the six tasks.")]
Langs = Annotated[str, typer.Option(help="Languages of the nano prompts, such as en,zh,ja,ru,de.")]
Split = Annotated[str, typer.Option(help="test; held-out: combinations that training never showed.")]
Seed = Annotated[int, typer.Option(help="Chooses the prompts, the noise and the bootstrap.")]
Ceiling = Annotated[bool, typer.Option("--ceiling", help="Score true renders: the judge's own limit.")]
Json = Annotated[bool, typer.Option("--json", help="Write rows to stdout even where it is a terminal.")]


@app.command()
def run(
    benchmark: Benchmark,
    model: Annotated[str | None, typer.Option(help="Draw with it: a name, a folder or a hub id.")] = None,
    images: Annotated[Path | None, typer.Option(help="Score a folder: 00000/samples/00000.png ...")] = None,
    ceiling: Ceiling = False,
    judge: Annotated[str, typer.Option(help=f"One of: {', '.join(JUDGES)}.")] = "nano",
    prompts: Prompts = "nano",
    per_task: PerTask = 40,
    pictures: Annotated[int, typer.Option(min=1, max=1000, help="Pictures for each prompt.")] = 4,
    langs: Langs = "en",
    split: Split = "test",
    plan: Annotated[str, typer.Option(help="Over the model's own plan: steps=20,shift=3; or a file.")] = "",
    preset: Annotated[
        str | None, typer.Option(help="Draw as official, diffusers, comfyui, fast, or a YAML file says.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="For pictures, rows.jsonl and summary.json.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn and judged at a time.")] = 16,
    gate: Annotated[list[str] | None, typer.Option(help="Exit 6 unless it holds: 'geneval>=0.8'.")] = None,
    json: Json = False,
) -> None:
    """Draw a benchmark's prompts, let a judge look, and score. A row per picture, and a summary."""
    from lumina_cli.cli.eval.drawer import make_generator
    from lumina_cli.core.evals.run import Evaluation

    if (images is not None) == (ceiling or model is not None):
        raise UsageError("name what to score: --model NAME, --images DIR, or --ceiling")
    if (plan or preset) and (images or ceiling):
        raise UsageError("--plan and --preset say how --model draws; there is nothing to draw")
    scores = Evaluation(BENCHMARKS.load(benchmark)(), JUDGES.load(judge)(), seed, out, batch, gate or ())
    if images:
        scores.find(images)
    else:
        scores.ask(prompts, per_task, langs.split(","), split)
        scores.draw(make_generator(model, ceiling, seed, plan, preset), pictures)
    if json or not sys.stdout.isatty():
        output.write_rows(scores, json=True, label="pictures", total=scores.total)
    else:
        list(output.progress(scores, "pictures", scores.total))
    output.table(scores.table(), title=scores.title)
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
    """Write the prompts of a benchmark as rows, in its folders' order."""
    rows = BENCHMARKS.load(benchmark)().prompts(prompts, per_task, langs.split(","), seed, split)
    output.write_rows(rows, json=json or None)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A folder that `lumina eval` wrote, or its summary.json.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    json: Json = False,
) -> None:
    """Compare two runs on the prompts they share. Second - first, with a paired bootstrap's 95 % interval."""
    from lumina_cli.core.evals import report

    output.write_rows(report.compare(first, second), json=json or None)
