"""The options of `lumina sample`, in the groups that its help shows."""

from pathlib import Path
from typing import Annotated

import typer

SPEED, EDITING, FILES = "Speed and memory", "Pictures from pictures", "Files and runs"

Prompts = Annotated[
    list[str] | None,
    typer.Argument(help="Prompts, files of them (.txt, .jsonl, .csv), or '-' for stdin.", show_default=False),
]
Model = Annotated[str, typer.Option(help="nano, lumina-image-2, auto, a model or run folder, or a hub id.")]
Seed = Annotated[
    int | None, typer.Option(help="Any integer; the same seed draws the same picture. [default: 0]")
]
Count = Annotated[int, typer.Option(min=1, help="Pictures for each prompt.")]
Size = Annotated[
    str | None, typer.Option(help="1024x768, 16:9, portrait, wide@512...; the model's own size.")
]
Preset = Annotated[
    str | None, typer.Option(help="official, diffusers, comfyui, fast or a YAML file; the model's own plan.")
]
Steps = Annotated[int | None, typer.Option(help="Steps of the solver, as the preset counts them.")]
Calls = Annotated[int | None, typer.Option(help="Instead of --steps: a budget of network calls.")]
Guidance = Annotated[float | None, typer.Option(help="1 follows the prompt freely, 4 closely.")]
Settings = Annotated[
    str, typer.Option(help="Any other setting: solver=euler,shift=3,renorm=off; or a JSON file.")
]
Negative = Annotated[str | None, typer.Option(help="What guidance moves away from.")]
NegativeSystem = Annotated[
    bool | None,
    typer.Option(
        "--negative-system/--no-negative-system",
        help="Put the system prompt before --negative, too; as the preset does.",
        show_default=False,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        help="System prompt, as text or by name: real, base, align, aesthetics, 4grid, dual-panel, "
        "two-panel, empty. [default: real]"
    ),
]
Lora = Annotated[
    list[str] | None, typer.Option(help="A LoRA file, or FILE:0.8 for less of it; again for another.")
]
Cache = Annotated[
    str | None,
    typer.Option(help="Leave out layers: tea:0.2, first:0.1, error:0.05, or off.", rich_help_panel=SPEED),
]
Quantize = Annotated[
    str | None, typer.Option(help="int8: faster products; int8-weights: less memory.", rich_help_panel=SPEED)
]
Kernel = Annotated[
    str, typer.Option(help="Attention: auto, flash, varlen, sdpa or direct.", rich_help_panel=SPEED)
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile what lies between products.", rich_help_panel=SPEED)
]
Memory = Annotated[
    str | None, typer.Option(help="A budget such as 8G: parts in turn.", rich_help_panel=SPEED)
]
Batch = Annotated[int | None, typer.Option(min=1, help="Pictures drawn at once.", rich_help_panel=SPEED)]
Grid = Annotated[
    str | None, typer.Option(help='"guidance=3,4 x calls=10,20": a sheet of all.', rich_help_panel=EDITING)
]
From = Annotated[
    list[Path] | None, typer.Option("--from", help="Draw a picture again.", rich_help_panel=EDITING)
]
Init = Annotated[Path | None, typer.Option(help="A picture to start from.", rich_help_panel=EDITING)]
Strength = Annotated[
    float | None, typer.Option(help="0 keeps --init, 1 only its size.", rich_help_panel=EDITING)
]
Mask = Annotated[Path | None, typer.Option(help="White where --init is drawn anew.", rich_help_panel=EDITING)]
Attention = Annotated[
    list[str] | None,
    typer.Option(help="A word: show where the picture looks at it.", rich_help_panel=EDITING),
]
Out = Annotated[Path, typer.Option(help="Folder for the pictures.", rich_help_panel=FILES)]
Format = Annotated[str, typer.Option(help="png, webp, jpg or avif.", rich_help_panel=FILES)]
Gallery = Annotated[
    bool, typer.Option("--gallery", help="Make a page of the folder's pictures.", rich_help_panel=FILES)
]
Shard = Annotated[
    str | None,
    typer.Option(help="I/N draws every N-th row from row I on, counted from 0.", rich_help_panel=FILES),
]
Force = Annotated[
    bool, typer.Option("--force", help="Draw again what is already there.", rich_help_panel=FILES)
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Draw nothing: show plan, calls, texts.", rich_help_panel=FILES),
]
Json = Annotated[
    bool, typer.Option("--json", help="Rows on stdout, also on a terminal.", rich_help_panel=FILES)
]
