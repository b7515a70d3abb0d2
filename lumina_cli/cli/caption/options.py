"""The options of `lumina caption`, in the groups that its help shows."""

from pathlib import Path
from typing import Annotated

import typer

CHECKS, MACHINE = "Checks and scores", "Engine and machine"

Source = Annotated[
    list[str],
    typer.Argument(
        help="Folders, pictures, files of rows, shards, nano:N, hf:NAME, or '-' for rows from stdin."
    ),
]
Levels = Annotated[str, typer.Option(help="Lengths to write, with commas: detailed, medium, short, tags.")]
Langs = Annotated[
    str,
    typer.Option(help="Languages, with commas: en, zh, ja, ru, de, or any that the model knows (fr, ...)"),
]
Domain = Annotated[
    str,
    typer.Option(help='auto (a row\'s own "domain"), natural, synthetic, document (with text) or panels.'),
]
Derive = Annotated[
    str, typer.Option(help="From the picture, the detailed text, or all in one answer: picture, text, once.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="A .jsonl file in place of stdout; an interrupted run goes on.", show_default=False),
]
Keep = Annotated[
    bool, typer.Option("--keep", help="Leave the captions that rows have; write those that are missing.")
]
Reuse = Annotated[
    Path | None,
    typer.Option(help="An earlier --out file, whose captions are taken over.", show_default=False),
]
Shard = Annotated[
    str | None,
    typer.Option(help="I/N describes every N-th row from row I on, counted from 0.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Any integer; the same seed writes the same captions.")]
Retries = Annotated[
    int,
    typer.Option(
        min=0, help="How often to ask again where a caption fails its checks.", rich_help_panel=CHECKS
    ),
]
Score = Annotated[
    str | None,
    typer.Option(
        help="Store how well captions fit: clip, objects, nano, clip:MODEL; clip@0.2 rejects below 0.2.",
        rich_help_panel=CHECKS,
        show_default=False,
    ),
]
MaxBadRate = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of pictures, unreadable or with every caption rejected, above which the exit code is 3.",
        rich_help_panel=CHECKS,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        help="transformers, openai, vllm, nano, noop, or one on a Ray cluster: ray:nano.",
        rich_help_panel=MACHINE,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="A folder or hub id of an image-text-to-text model, or a name that the endpoint knows. "
        "[default: U4R/OmniCaptioner]",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        help="URL for --engine openai, as http://localhost:8000/v1; the key is OPENAI_API_KEY.",
        rich_help_panel=MACHINE,
        show_default=False,
    ),
]
Batch = Annotated[
    int, typer.Option(min=1, help="Pictures at a time; for an endpoint, requests.", rich_help_panel=MACHINE)
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU if there is one.", rich_help_panel=MACHINE)
]
Json = Annotated[
    bool, typer.Option("--json", help="Rows on stdout, also on a terminal.", rich_help_panel=MACHINE)
]
