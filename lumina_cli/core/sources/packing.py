"""From a SOURCE to shards: what is read how, and by which processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.device import cpu_count
from lumina_cli.core.encoders.token_count import TokenCounter
from lumina_cli.core.errors import UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.reader import split_source
from lumina_cli.core.shards.pack import write_shards
from lumina_cli.core.shards.tar import TarImage
from lumina_cli.core.sources.source import LEFT_OUT, left_out_of, read_source

ENDINGS = {"jpeg": "jpg", "tiff": "tif"} | {
    ending: ending for ending in ("jpg", "png", "webp", "gif", "bmp", "tif", "avif")
}


@dataclass(frozen=True)
class PackSettings:
    """How a source is packed; `workers` None means as many processes as cores. See `write_shards`."""

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
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write a SOURCE as shards; yield a row per shard. `watch` sees the rows of the source as they are read.

    What `lumina caption` left out of a file of rows counts as rejects of these shards, too. `tell` hears of
    that, and of a folder that grows.

    Rows of nano and of hf: are made here or fetched by this process, so it writes them, too; the files that
    other sources name are read, checked and written by the workers.
    """
    dest = filesystem.to_text(dest)
    _check_apart(split_source(source)[0], dest)
    made_here = source.partition(":")[0] in ("nano", "hf") and not filesystem.is_url(source)
    workers = packing.workers
    if workers is None:
        workers = (
            0 if filesystem.is_process_local(dest) or filesystem.is_process_local(source) else cpu_count()
        )
    rows = read_source(source, workers if made_here else 0, lenient=True, links=packing.links)
    left_out = [] if made_here else left_out_of(source)
    if left_out:
        tell(f"{source}{LEFT_OUT} has {len(left_out)} rows that were left out; they are rejects here, too")
    kinds: set[str] = set()
    yield from write_shards(
        _kinds_noted(watch(rows), kinds),
        dest,
        packing.per_shard,
        packing.max_bad_rate,
        packing.force,
        workers=0 if made_here else workers,
        check=packing.check,
        encode=packing.encode,
        count=TokenCounter(packing.tokenizer) if packing.tokenizer else None,
        source=None if source == "-" else source,
        upstream=left_out,
        notify=tell,
    )
    if len(kinds) > 1 and not packing.encode:
        tell(
            f"pictures are of several kinds ({', '.join(sorted(kinds))}): webdataset and lumina read all, "
            "datasets.load_dataset only those of the first kind; --encode makes one kind of them"
        )


def _kinds_noted(rows: Iterator[dict], kinds: set[str]) -> Iterator[dict]:
    """Pass rows on, and note by what endings their pictures go."""
    for row in rows:
        image = row.get("image")
        name = image.member if isinstance(image, TarImage) else image
        if isinstance(name, str) and "error" not in row:
            ending = name.rpartition(".")[2].lower()
            if ending in ENDINGS:
                kinds.add(ENDINGS[ending])
        yield row


def _check_apart(source: str, dest: str) -> None:
    """Raise UsageError where shards would be written over the pictures that they are made of."""
    place = filesystem.parent(source) if source.endswith(".tar") else filesystem.to_text(source)
    remote = filesystem.is_url(place) or filesystem.is_url(dest)
    if place == dest if remote else Path(place).exists() and Path(place).resolve() == Path(dest).resolve():
        raise UsageError(f"{dest} is where the pictures come from; give the shards a folder of their own")
