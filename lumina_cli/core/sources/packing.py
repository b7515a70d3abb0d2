"""Packing a SOURCE as shards: which rows are read, and by which processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.device import cpu_count
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.errors import UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.tar import TarImage
from lumina_cli.core.sources.settings import split_place
from lumina_cli.core.sources.source import REJECTS, read_rejects, read_source

ENDINGS = {"jpeg": "jpg", "tiff": "tif"} | {
    ending: ending for ending in ("jpg", "png", "webp", "gif", "bmp", "tif", "avif")
}


@dataclass(frozen=True)
class PackSettings:
    """Settings of packing; `workers` None: one process per core. See `write_shards` for the others."""

    per_shard: int = 1000
    max_bad_rate: float = 0.05
    force: bool = False
    workers: int | None = None
    check: str = "quick"
    encode: str | None = None
    tokenizer: str | None = None
    links: bool = False


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
    check and write the files.

    Raises:
        UsageError: if `dest` is the folder of the source, or a setting is invalid.
        LuminaError: if the source is missing or empty, or `dest` cannot be written.
        TooManyRejects: if more than `max_bad_rate` of the images are rejected.
    """
    dest = filesystem.to_text(dest)
    _check_apart(split_place(source)[0], dest)
    made_here = source.partition(":")[0] in ("nano", "hf") and not filesystem.is_url(source)
    workers = packing.workers
    if workers is None:
        workers = (
            0 if filesystem.is_process_local(dest) or filesystem.is_process_local(source) else cpu_count()
        )
    rows = read_source(source, workers if made_here else 0, lenient=True, links=packing.links, notify=notify)
    rejected = [] if made_here else read_rejects(source)
    if rejected:
        notify(f"{source}{REJECTS} lists {len(rejected)} rejected rows; they are rejects of the shards, too")
    kinds: set[str] = set()
    yield from write_shards(
        _note_formats(watch(rows), kinds),
        dest,
        packing.per_shard,
        packing.max_bad_rate,
        packing.force,
        workers=0 if made_here else workers,
        check=packing.check,
        encode=packing.encode,
        count=TokenCounter(packing.tokenizer) if packing.tokenizer else None,
        source=None if source == "-" else source,
        upstream=rejected,
        notify=notify,
    )
    if len(kinds) > 1 and not packing.encode:
        notify(
            f"images have several formats ({', '.join(sorted(kinds))}): webdataset and lumina read all, "
            "datasets.load_dataset only those of the first format; --encode converts all to one format"
        )


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
    if place == dest if remote else Path(place).exists() and Path(place).resolve() == Path(dest).resolve():
        raise UsageError(f"{dest} is the folder of the source; choose another folder for the shards")
