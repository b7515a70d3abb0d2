"""The options of `lumina caption`, in the groups that its help shows."""

from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import options as shared

CAPTIONS, CHECKS, ENGINE, FILES = "Captions", "Checks and scores", "Engine", "Input and output"

Source = Annotated[
    list[str],
    typer.Argument(
        help="Image folders, images, files of rows, shards, nano:N, hf:NAME, or '-' for rows from stdin."
    ),
]

# Captions
Levels = Annotated[
    str | None,
    typer.Option(
        help="Levels of detail to write, comma-separated: detailed, medium, short, tags. [default: all; "
        "detailed with --instruction]",
        rich_help_panel=CAPTIONS,
        show_default=False,
    ),
]
Langs = Annotated[
    str,
    typer.Option(
        help="Languages, comma-separated: en, zh, ja, ru, de, or any other that the model supports.",
        rich_help_panel=CAPTIONS,
    ),
]
Instruction = Annotated[
    str | None,
    typer.Option(
        help="Your own question about the image, or a file with it. {level} and {language} are filled in. "
        "The answer may have any length and opening.",
        metavar="TEXT|FILE",
        show_default=False,
        rich_help_panel=CAPTIONS,
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        help="Text before each new caption, such as a trigger word: 'ohwx dog' gives 'ohwx dog, ...'.",
        show_default=False,
        rich_help_panel=CAPTIONS,
    ),
]
Domain = Annotated[
    str,
    typer.Option(
        help='Kind of image: natural, synthetic, document, panels, or auto (the row\'s "domain").',
        rich_help_panel=CAPTIONS,
    ),
]
Derive = Annotated[
    str,
    typer.Option(
        help="How captions are obtained: `picture` (ask about the image for each caption), `text` (write the "
        "detailed caption, derive the rest from it) or `once` (all captions in one JSON answer).",
        rich_help_panel=CAPTIONS,
    ),
]
Seed = Annotated[
    int,
    typer.Option(help="Random seed; the same seed gives the same captions.", rich_help_panel=CAPTIONS),
]

# Checks and scores
Retries = Annotated[
    int,
    typer.Option(
        min=0, help="Retries, each with a new seed, if a caption fails its checks.", rich_help_panel=CHECKS
    ),
]
Score = Annotated[
    str | None,
    typer.Option(
        help="Score image-caption agreement: clip, objects, nano or clip:MODEL. clip@0.2 rejects below 0.2. "
        "Without it, --engine nano rejects captions of images that are not rendered scenes.",
        rich_help_panel=CHECKS,
        show_default=False,
    ),
]
MaxBadRate = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Exit with code 3 if a larger fraction of the images is unreadable or gets no valid caption.",
        rich_help_panel=CHECKS,
    ),
]

# Engine
Engine = Annotated[
    str,
    typer.Option(
        help="Captioning engine: transformers, openai, vllm or nano (rendered scenes); ray:ENGINE uses Ray.",
        rich_help_panel=ENGINE,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Image-text-to-text model: a folder, a hub id, or a model name of the endpoint. "
        "[default: U4R/OmniCaptioner]",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="URL for --engine openai, e.g. http://localhost:8000/v1; the key is read from OPENAI_API_KEY.",
        rich_help_panel=ENGINE,
        show_default=False,
    ),
]
Batch = Annotated[
    int,
    typer.Option(min=1, help="Images per batch; for an endpoint, parallel requests.", rich_help_panel=ENGINE),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device: cpu, cuda or cuda:N. Default: a GPU if present.", rich_help_panel=ENGINE),
]

# Input and output
Keep = Annotated[
    bool,
    typer.Option(
        "--keep", help="Keep all captions of input rows; write only the missing ones.", rich_help_panel=FILES
    ),
]
Replace = Annotated[
    bool,
    typer.Option(
        "--replace",
        help="Replace all captions of input rows. Default: those that people wrote are kept, those that an "
        "engine wrote are replaced.",
        rich_help_panel=FILES,
    ),
]
Reuse = Annotated[
    Path | None,
    typer.Option(
        help="Earlier --out file whose captions are reused.", show_default=False, rich_help_panel=FILES
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write rows to this .jsonl file; rerun the same command to resume. [default: stdout]",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCHEME",
        callback=shared.allow_schemes_here,
        help="URL scheme that rows may read images from, such as s3. Repeatable.",
        rich_help_panel=FILES,
    ),
]
SidecarFiles = Annotated[
    bool,
    typer.Option(
        "--sidecars",
        help="Also write one caption per image, the first of --levels and --langs, to a .txt file next to it "
        "or into --out, if that is a folder. Existing files with other text are kept (--replace).",
        rich_help_panel=FILES,
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="Caption only split I of N of the rows, counted from 0 (I/N, e.g. 3/16).",
        show_default=False,
        rich_help_panel=FILES,
    ),
]
