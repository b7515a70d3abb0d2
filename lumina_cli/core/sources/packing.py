"""Packing a SOURCE as shards: which rows are read, and by which processes."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.errors import TooManyRejects, UsageError
from lumina_cli.core.images.suffixes import LeftOut
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import dump_row, read_rows
from lumina_cli.core.io.parallel.workers import Workers, parse_workers
from lumina_cli.core.secrets import mask_url
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.reader import LEFT_OUT, TOTALS, read_totals
from lumina_cli.core.shards.tar import RejectedImage, TarImage
from lumina_cli.core.sources.settings import split_place
from lumina_cli.core.sources.source import REJECTS, read_deferred, read_rejects, read_source

ENDINGS = {"jpeg": "jpg", "tiff": "tif"} | {
    ending: ending for ending in ("jpg", "png", "webp", "gif", "bmp", "tif", "avif")
}


@dataclass(frozen=True)
class PackSettings:
    """Settings of packing; `workers` None: one process per core.

    See `read_source` for `links` and `lines`, and `write_shards` for the others.
    """

    per_shard: int = 1000
    max_bad_rate: float = 0.05
    force: bool = False
    workers: int | str | Workers | None = None
    check: str = "quick"
    encode: str | None = None
    tokenizer: str | None = None
    links: bool = False
    lines: str | None = None
    removed: str | None = None
    dry_run: bool = False


def pack_source(
    source: str,
    dest: str,
    packing: PackSettings,
    watch: Callable[[Iterator[dict]], Iterator[dict]] = iter,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write a SOURCE as shards in the folder `dest`; yield a row per shard.

    watch   wraps the iterator of source rows, to count or show them as they are read
    notify  receives messages, such as about rows that `lumina caption` rejected

    Rows that `lumina caption` rejected in a file of rows are rejects of the shards, too. This process renders
    or fetches the rows of nano: and hf: sources, so it also writes them; for other sources, workers read,
    check and write the files. Ray workers render the scenes of nano: themselves.

    Raises:
        UsageError: if `dest` is the folder of the source, a setting is invalid, or the source is not for Ray.
        LuminaError: if the source is missing or empty, or `dest` cannot be written.
        TooManyRejects: if more than `max_bad_rate` of the images are rejected.
    """
    dest = filesystem.to_text(dest)
    _check_apart(split_place(source)[0], dest)
    made_here = source.partition(":")[0] in ("nano", "hf") and not filesystem.is_url(source)
    workers = _choose_workers(source, dest, packing.workers, made_here)
    left_out = LeftOut()
    read = {
        "lenient": True,
        "links": packing.links,
        "notify": notify,
        "left_out": left_out,
        "lines": packing.lines,
    }
    if made_here and workers.ray and read_totals(dest) is None:
        rows = read_deferred(source)
    else:  # a finished folder is compared with images that this process makes
        rows = read_source(source, workers.processes if made_here else 0, **read)
        workers = Workers() if made_here else workers
    rejected = [] if made_here else read_rejects(source)
    if rejected:
        notify(f"{source}{REJECTS} lists {len(rejected)} rejected rows; they are rejects of the shards, too")
    kinds: set[str] = set()
    shards = write_shards(
        _note_formats(_note_missing(watch(rows), notify), kinds),
        dest,
        packing.per_shard,
        packing.max_bad_rate,
        packing.force,
        workers=workers,
        check=packing.check,
        encode=packing.encode,
        count=TokenCounter(packing.tokenizer) if packing.tokenizer else None,
        source=None if source == "-" else mask_url(source),
        upstream=rejected,
        removed=packing.removed,
        dry_run=packing.dry_run,
        notify=notify,
    )
    try:
        yield from shards
    except TooManyRejects as error:
        _write_left_out(dest, left_out)
        raise TooManyRejects(f"{error}{_first_reason(dest)}") from error
    if not packing.dry_run:
        _write_left_out(dest, left_out)
    if len(kinds) > 1 and not packing.encode:
        notify(
            f"images have several formats ({', '.join(sorted(kinds))}): webdataset and lumina read all, "
            "datasets.load_dataset only those of the first format; --encode converts all to one format"
        )


def _note_missing(rows: Iterator[dict], notify: Callable[[str], None]) -> Iterator[dict]:
    """Pass rows on; send a message about the first one whose image does not exist.

    Rows are numbered from 0, as in rejects.jsonl.
    """
    missing = False
    for number, row in enumerate(rows):
        image = row.get("image")
        if not missing and isinstance(image, RejectedImage) and image.code == "missing":
            missing = True
            notify(f"row {number}: {image.image}: {image.reason}")
        yield row


def _first_reason(dest: str) -> str:
    """Return the reason of the first reject of a folder of shards, unless `_note_missing` reported it."""
    with filesystem.open_file(filesystem.join(dest, "rejects.jsonl")) as file:
        first = next(read_rows(file), {})
    return "" if first.get("code") == "missing" else f"; the first: {first.get('reason')}"


def _write_left_out(dest: str, left_out: LeftOut) -> None:
    """Write the numbers of images that did not become rows; `lumina shard stats` counts them in the yield."""
    if not filesystem.is_file(filesystem.join(dest, TOTALS)):
        return
    if left_out.images:
        filesystem.write_file(filesystem.join(dest, LEFT_OUT), dump_row(dict(left_out.images)).encode())
    else:
        filesystem.remove(dest, [LEFT_OUT])


def _choose_workers(
    source: str, dest: str, requested: int | str | Workers | None, made_here: bool
) -> Workers:
    """Return the workers that were requested; by default one process per core, if processes can be used.

    Raises:
        UsageError: if Ray workers cannot read the source or write to `dest`.
    """
    workers = parse_workers(requested)
    in_memory = [place for place in (dest, source) if filesystem.is_process_local(place)]
    if requested is None and in_memory:
        return Workers(0)
    if workers.ray and in_memory:
        workers.check_output(in_memory[0])
    if workers.ray and made_here and not source.startswith("nano:"):
        raise UsageError(
            f"{source}: one process fetches these rows, and its images would pass through it to Ray workers; "
            "use --workers N"
        )
    return workers


def _note_formats(rows: Iterator[dict], kinds: set[str]) -> Iterator[dict]:
    """Pass rows on, and add the formats of their images to `kinds`, by file name."""
    for row in rows:
        image = row.get("image")
        name = image.member if isinstance(image, TarImage) else image
        if isinstance(name, str) and "error" not in row:
            ending = name.rpartition(".")[2].lower()
            if ending in ENDINGS:
                kinds.add(ENDINGS[ending])
        yield row


def _check_apart(source: str, dest: str) -> None:
    """Check that shards are not written to the folder of their source.

    Raises:
        UsageError: if they are.
    """
    place = filesystem.parent(source) if source.endswith(".tar") else filesystem.to_text(source)
    remote = filesystem.is_url(place) or filesystem.is_url(dest)
    if place == dest if remote else os.path.exists(place) and Path(place).resolve() == Path(dest).resolve():
        raise UsageError(f"{dest} is the folder of the source; choose another folder for the shards")
