"""Arguments and options that several commands share: rows of words, files and stdin; deprecated options."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from lumina_cli.cli import output
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io import jsonl
from lumina_cli.core.io.parallel.workers import Workers as WorkersSetting
from lumina_cli.core.io.parallel.workers import parse_workers
from lumina_cli.core.io.tables import TABLES
from lumina_cli.core.registry import DIFFUSERS_NAMES

Json = Annotated[bool, typer.Option("--json", help="Write JSON Lines to stdout, even on a terminal.")]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda or cuda:N. Default: a GPU if present.")]
MaxBadRate = Annotated[
    float,
    typer.Option(min=0, max=1, help="Exit with code 3 if a larger fraction of the images is unreadable."),
]
Shards = Annotated[str, typer.Argument(help="Folder of shards, a single tar, or a selection; path or URL.")]
Workers = Annotated[
    str,
    typer.Option(
        metavar="N|ray[:N]",
        help="Worker processes; each handles one shard. ray or ray:N: workers on a Ray cluster.",
    ),
]


def allow_schemes_here(names: list[str] | None) -> list[str] | None:
    """Allow the schemes of --allow in this process; without the option, none."""
    from lumina_cli.core.io.allowed import allow_schemes

    allow_schemes(names or ())
    return names


Allow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SCHEME",
        callback=allow_schemes_here,
        help="URL scheme that rows may read images from, such as s3. Repeatable. Without it, rows may name "
        "local files and files in the folder of their own SOURCE.",
    ),
]
ROW_FILES = (*jsonl.JSON_FILES, *TABLES, ".txt")
DeprecatedShard = Annotated[str | None, typer.Option("--shard", hidden=True)]


def parse_ray_workers(text: str, **others: object) -> "WorkersSetting":
    """Return the workers of a command that runs in this process or on Ray.

    `others` are the values of options that need this process, by their names.

    Raises:
        UsageError: if the text is neither 1 nor ray[:N], or another option needs this process.
    """
    workers = parse_workers(text, 1)
    if not workers.ray and workers != WorkersSetting(1):
        raise UsageError(
            f"--workers {text}: must be ray or ray:N; several processes need --split or torchrun"
        )
    if workers.ray and (given := [name.strip("_") for name, value in others.items() if value]):
        raise UsageError(f"--workers {text} cannot be combined with --{given[0]}; omit one of them")
    return workers


def resolve_split(split: str | None, shard: str | None) -> str | None:
    """Return the value of --split; --shard, its name in version 0.1, still works and prints a note."""
    if shard is None:
        return split
    if split is not None:
        raise UsageError("--shard is the deprecated name of --split; give --split only")
    output.write_note("--shard is deprecated; use --split")
    return shard


def read_rows(arguments: list[str] | None, key: str) -> Iterator[dict]:
    """Yield rows from words, files of rows (ROW_FILES) or stdin ("-", or a pipe without arguments).

    Each row has a value for `key`; a word, or a line of plain text, is that value. A word that is the path of
    a file is never that value.

    Raises:
        UsageError: without arguments, if stdin is a terminal.
        LuminaError: if a file does not exist or has another format, a row has no `key`, or nothing is found.
    """
    if not arguments:
        if sys.stdin.isatty():
            raise UsageError(f"no {key} given: write one in quotes, name a file of rows, or pipe rows in")
        arguments = ["-"]
    return _read_arguments(arguments, key)


def count_rows(
    arguments: list[str] | None, key: str, visit: Callable[[str, dict], None] | None = None
) -> int | None:
    """Return the number of rows that `read_rows` will yield, with its errors; None if it reads stdin.

    visit   called with (word, row) for each of them
    """
    if not arguments or "-" in arguments:
        return None
    return sum(1 for _ in _read_arguments(arguments, key, visit))


def note_missing_values(source: str, encodings: bool = False) -> None:
    """Write a note if overlays of a SOURCE of shards lack values; see `describe_missing`."""
    from lumina_cli.core.shards.overlays.coverage import describe_missing

    if note := describe_missing(source, encodings):
        output.write_note(note)


def comment_notes(arguments: list[str] | None) -> Iterator[str]:
    """Yield a note for each .txt file of prompts with lines that are comments."""
    for word in arguments or ():
        if word.lower().endswith(".txt") and _is_row_file(word) and os.path.isfile(word):
            count = jsonl.count_comments(Path(word))
            if count:
                begin = "which begins" if count == 1 else "which begin"
                yield f"{word}: skipped {count} comment line{'s' * (count != 1)}, {begin} with #"


def _read_arguments(
    arguments: list[str], key: str, visit: Callable[[str, dict], None] | None = None
) -> Iterator[dict]:
    count = 0
    for word in arguments:
        for row in _read_argument(word, key):
            count += 1
            if visit:
                visit(word, row)
            yield row
    if not count:
        places = ", ".join("stdin" if word == "-" else word for word in arguments)
        raise LuminaError(f"no {key}s {'on' if places == 'stdin' else 'in'} {places}")


def _read_argument(word: str, key: str) -> Iterator[dict]:
    if word == "-":
        yield from jsonl.read_rows(getattr(sys.stdin, "buffer", sys.stdin), key)
    elif not word.strip():
        raise LuminaError(f"the {key} is empty")
    elif _is_row_file(word):
        yield from jsonl.read_rows(word, key)
    elif os.path.lexists(word):
        kind = "folder" if os.path.isdir(word) else "file"
        raise LuminaError(
            f"{word} is a {kind}, not a {key}, and not a file of {key}s ({', '.join(ROW_FILES)}); to use the "
            f"word itself, pipe it to '-'"
        )
    else:
        yield {key: word}


def _is_row_file(word: str) -> bool:
    """Whether a word ends like a file of rows and either exists or has no space, so must be a file name."""
    spaced = any(letter.isspace() for letter in Path(word).name)
    return word.lower().endswith(ROW_FILES) and (not spaced or os.path.isfile(word))


# options of other programs than diffusers, and what stands for them here, by command ("" for all)
OTHER_NAMES = {
    "": {"--output": "--out", "--output-dir": "--out", "--outdir": "--out"},
    "sample": {
        "--sampler": "--plan solver=NAME",
        "--scheduler": "--plan solver=NAME",
        "--solver": "--plan solver=NAME",
        "--shift": "--plan shift=NUMBER",
        "--cfg": "--guidance",
        "--cfg-scale": "--guidance",
        "--num-images": "--count",
        "--n": "--count",
        "--width": "--size WIDTHxHEIGHT",
        "--height": "--size WIDTHxHEIGHT",
        "--resolution": "--size",
        "--ckpt": "--model",
        "--checkpoint": "--model",
        "--denoise": "--strength",
        "--prompt": "the prompt as an argument",
    },
    "train": {
        "--out": "out=FOLDER",
        "--output": "out=FOLDER",
        "--output-dir": "out=FOLDER",
        "--model": "model=NAME",
        "--data": "data=SOURCE",
        "--train-data-dir": "data=SOURCE",
        "--steps": "stages.hq.steps=NUMBER",
        "--max-train-steps": "stages.hq.steps=NUMBER",
        "--batch": "stages.hq.batch=NUMBER",
        "--batch-size": "stages.hq.batch=NUMBER",
        "--train-batch-size": "stages.hq.batch=NUMBER",
        "--lr": "stages.hq.lr=NUMBER",
        "--learning-rate": "stages.hq.lr=NUMBER",
        "--resolution": "stages.hq.size=NUMBER",
        "--size": "stages.hq.size=NUMBER",
        "--seed": "seed=NUMBER",
    },
}


def hint_other_name(command: str | None, option: str, known: list[str]) -> str:
    """Return "; use X" for an option that another program has under this name, or an empty string."""
    name = option.replace("_", "-").lower()
    found = OTHER_NAMES.get(command or "", {}).get(name) or OTHER_NAMES[""].get(name)
    argument = DIFFUSERS_NAMES.get(name.removeprefix("--").replace("-", "_")) if command == "sample" else None
    found = found or (argument and f"--{argument}")
    if found is None or (found.startswith("--") and found.split()[0] not in known):
        return ""
    return f"; use {found}"
