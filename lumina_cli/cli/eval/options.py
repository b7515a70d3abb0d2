"""The options of `lumina eval run` and `prompts`, in the groups that their help shows."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.core.registry import BENCHMARKS, JUDGES

SUBJECT, PROMPTS, SAMPLING, SCORING = "What to score", "Prompts", "Sampling", "Scoring and output"

Benchmark = Annotated[str, typer.Argument(help=f"Benchmark: {', '.join(BENCHMARKS)}.")]
Prompts = Annotated[
    str,
    typer.Option(
        help="Prompt set: nano (about nano's synthetic scenes) or official (GenEval's 553 prompts).",
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
Model = Annotated[
    str | None,
    typer.Option(
        help="Model to generate with: a name, a model or run folder, a weight file, or a hub id.",
        rich_help_panel=SUBJECT,
    ),
]
Frozen = Annotated[
    str | None,
    typer.Option(
        help="Model that provides the autoencoder, text encoder and tokenizer if --model is a transformer "
        "alone.",
        rich_help_panel=SUBJECT,
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Score existing images in this folder (00000/samples/00000.png ...).",
        rich_help_panel=SUBJECT,
    ),
]
Ceiling = Annotated[
    bool,
    typer.Option(
        "--ceiling",
        help="Score ground-truth renders, to measure the best score that this judge can give.",
        rich_help_panel=SUBJECT,
    ),
]
Pictures = Annotated[int, typer.Option(min=1, max=1000, help="Images per prompt.", rich_help_panel=PROMPTS)]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Sampling preset: official, diffusers, comfyui, fast or a YAML file.",
        rich_help_panel=SAMPLING,
    ),
]
Plan = Annotated[
    str,
    typer.Option(
        help="Further sampling settings, e.g. steps=20,shift=3, or a JSON file.", rich_help_panel=SAMPLING
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, help="Images generated and judged at once.", rich_help_panel=SAMPLING)
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="ray[:N]",
        help="Generate and judge on a Ray cluster: ray:N workers, or ray for one per GPU (else per CPU).",
        rich_help_panel=SAMPLING,
        show_default=False,
    ),
]
Judge = Annotated[str, typer.Option(help=f"Judge: {', '.join(JUDGES)}.", rich_help_panel=SCORING)]
Gate = Annotated[
    list[str] | None,
    typer.Option(
        help="Exit with code 6 unless this holds, e.g. 'geneval>=0.8'. Repeatable.",
        rich_help_panel=SCORING,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Output folder: images, rows.jsonl and summary.json.", rich_help_panel=SCORING),
]
