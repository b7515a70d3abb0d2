"""The options of `lumina sample`, in the groups that its help shows."""

from pathlib import Path
from typing import Annotated

import typer

IMAGE, PLAN, MODEL, EDITING = "Image", "Plan", "Model", "Editing"
SPEED, OUTPUT = "Speed and memory", "Output"

Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        help="Prompts, files of prompts (.txt, .jsonl, .json, .csv, .tsv, .parquet), or '-' for stdin.",
        show_default=False,
    ),
]

# Image
Seed = Annotated[
    str | None,
    typer.Option(
        help="Random seed, or several (1,2,7-9); the same seed gives the same image. [default: 0]",
        rich_help_panel=IMAGE,
    ),
]
Captions = Annotated[
    str | None,
    typer.Option(
        help="Use a caption of each row as its prompt: detailed, medium, short, tags, longest, zh:short...",
        rich_help_panel=IMAGE,
    ),
]
Count = Annotated[int, typer.Option(min=1, help="Images per prompt.", rich_help_panel=IMAGE)]
Size = Annotated[
    str | None,
    typer.Option(
        help="Image size: 1024x768, 16:9, portrait, wide@512... Default: the model's own size.",
        rich_help_panel=IMAGE,
    ),
]
Negative = Annotated[str | None, typer.Option(help="Negative prompt.", rich_help_panel=IMAGE)]
System = Annotated[
    str | None,
    typer.Option(
        help="System prompt, as text or by name: real, base, align, aesthetics, neta, 4grid, dual-panel, "
        "two-panel, empty. [default: real, or the model's own]",
        rich_help_panel=IMAGE,
    ),
]
NegativeSystem = Annotated[
    bool | None,
    typer.Option(
        "--negative-system/--no-negative-system",
        help="Prepend the system prompt to the negative prompt too. Default: set by the preset.",
        show_default=False,
        rich_help_panel=IMAGE,
    ),
]

# Plan
Preset = Annotated[
    str | None,
    typer.Option(
        help="Sampling preset: official, diffusers, comfyui, fast or a YAML file. Default: the model's own.",
        rich_help_panel=PLAN,
    ),
]
Steps = Annotated[
    int | None, typer.Option(help="Number of solver steps, as the preset counts them.", rich_help_panel=PLAN)
]
Calls = Annotated[
    int | None,
    typer.Option(
        help="Maximum number of network calls; cannot be combined with --steps.", rich_help_panel=PLAN
    ),
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Classifier-free guidance scale; 1 disables guidance.", rich_help_panel=PLAN),
]
Settings = Annotated[
    str,
    typer.Option(
        help="Further sampling settings, e.g. solver=euler,shift=3,renorm=off, or a JSON file.",
        rich_help_panel=PLAN,
    ),
]

# Model
Model = Annotated[
    str,
    typer.Option(
        help="Model: nano, lumina-image-2, neta-lumina, netayume-lumina, auto, a model or run folder, a "
        "weight file (ComfyUI's too), or a hub id.",
        rich_help_panel=MODEL,
    ),
]
Frozen = Annotated[
    str | None,
    typer.Option(
        help="Model that provides the autoencoder, text encoder and tokenizer if --model is a transformer "
        "alone.",
        rich_help_panel=MODEL,
    ),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(help="LoRA to apply, with optional weight (FILE:0.8). Repeatable.", rich_help_panel=MODEL),
]

# Editing
From = Annotated[
    list[Path] | None,
    typer.Option(
        "--from",
        help="Regenerate an image from its metadata, also with new PROMPTS or settings. Repeatable.",
        rich_help_panel=EDITING,
    ),
]
Init = Annotated[
    Path | None, typer.Option(help="Image to start from (image-to-image).", rich_help_panel=EDITING)
]
Strength = Annotated[
    float | None,
    typer.Option(
        help="Editing strength: 0 keeps the --init image, 1 keeps only its size.",
        rich_help_panel=EDITING,
    ),
]
Mask = Annotated[
    Path | None,
    typer.Option(help="Inpainting mask; white areas are regenerated.", rich_help_panel=EDITING),
]
Attention = Annotated[
    list[str] | None,
    typer.Option(
        help="Save an attention map for this word of the prompt. Repeatable.", rich_help_panel=EDITING
    ),
]

# Speed and memory
Cache = Annotated[
    str | None,
    typer.Option(
        help="Skip layers when their output barely changes: tea:0.2, first:0.1, error:0.05 or off.",
        rich_help_panel=SPEED,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="Quantization: int8 (faster matmuls) or int8-weights (less memory).", rich_help_panel=SPEED
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(help="Memory budget (e.g. 8G); components are offloaded to fit.", rich_help_panel=SPEED),
]
Kernel = Annotated[
    str,
    typer.Option(help="Attention kernel: auto, flash, varlen, sdpa or direct.", rich_help_panel=SPEED),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Fuse elementwise ops with torch.compile.", rich_help_panel=SPEED),
]
Batch = Annotated[
    int | None,
    typer.Option(
        min=1, help="Images generated at once. Default: depends on their size.", rich_help_panel=SPEED
    ),
]

# Output
Out = Annotated[Path, typer.Option(help="Output folder.", rich_help_panel=OUTPUT)]
Format = Annotated[str, typer.Option(help="File format: png, webp, jpg or avif.", rich_help_panel=OUTPUT)]
Grid = Annotated[
    str | None,
    typer.Option(
        help='Generate every combination and a contact sheet: "guidance=3,4 x calls=10,20".',
        rich_help_panel=OUTPUT,
    ),
]
Gallery = Annotated[
    bool,
    typer.Option(
        "--gallery",
        help="Write an HTML gallery of the output folder; without prompts, of one that exists.",
        rich_help_panel=OUTPUT,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Generate only split I of N of the prompts, counted from 0 (I/N, e.g. 3/16).",
        rich_help_panel=OUTPUT,
    ),
]
Workers = Annotated[
    str,
    typer.Option(
        metavar="ray[:N]",
        help="Generate on a Ray cluster with N workers: ray:N, or ray for one per GPU (else per CPU).",
        rich_help_panel=SPEED,
        show_default=False,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Regenerate images that already exist.", rich_help_panel=OUTPUT),
]
Explain = Annotated[
    bool,
    typer.Option(
        "--explain",
        help="Print the plan, the network calls and the prompts without generating.",
        rich_help_panel=OUTPUT,
    ),
]
