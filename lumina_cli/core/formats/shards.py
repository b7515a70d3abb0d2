"""Shards: plain webdataset tars of pictures and their rows, with an index beside each.

    000000.tar           for each sample {key}.jpg|png|webp, then {key}.json; {key}.depth.png and
                         {key}.masks.png where the row has a true depth and masks (formats/images.py)
    000000.index.jsonl   a line per sample: key, image (member name), offset, length and sha256 of its bytes,
                         width and height as it is seen, row [offset, length] of the JSON, and the same for
                         depth and masks
    shards.json          written last: totals; a folder without it is unfinished
    rejects.jsonl        rows whose picture could not be read, with the reason

The same rows give the same bytes on every machine.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, TooManyBad, UsageError
from lumina_cli.core.formats.atomic import atomic_write, disk_errors, open_aside
from lumina_cli.core.formats.images import png_bytes, probe
from lumina_cli.core.formats.rows import dump_row, parse_row, read_rows, write_rows
from lumina_cli.core.formats.tars import TRUTH, TarImage, add_member, find_tars, read_span, safe_key, scan

__all__ = [
    "ShardReader",
    "TarImage",
    "describe_shards",
    "find_tars",
    "read_shards",
    "safe_key",
    "verify_shards",
    "write_shards",
]

_ORIGINAL = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # kept byte for byte; other formats become PNG
_OURS = re.compile(r"\d{6}\.(tar|index\.jsonl)|shards\.json|rejects\.jsonl")


def write_shards(
    rows: Iterable[dict],
    dest: str | Path,
    per_shard: int = 1000,
    max_bad_rate: float = 0.05,
    force: bool = False,
) -> Iterator[dict]:
    """Write rows with pictures as shards; yield a row per finished shard: shard, samples, bytes, rejects.

    `rows` need an "image": a path, a PIL picture, the bytes of a picture file or a TarImage. "depth" and
    "masks", bytes of a PNG or a TarImage, become members of their own. A row whose
    picture cannot be read goes to rejects.jsonl; after the last shard TooManyBad is raised if more than
    `max_bad_rate` of all did. UsageError where `dest` holds shards already; `force` removes them.
    """
    dest = Path(dest)
    if per_shard < 1:
        raise UsageError(f"a shard holds at least 1 sample, not {per_shard}")
    _make_room(dest, force)
    rejects: list[dict] = []
    samples = _samples(rows, rejects)
    total = shards = 0
    for first in samples:
        tar = dest / f"{shards:06d}.tar"
        entries = _write_shard(tar, chain([first], islice(samples, per_shard - 1)))
        total, shards = total + len(entries), shards + 1
        yield {
            "shard": str(tar),
            "samples": len(entries),
            "bytes": tar.stat().st_size,
            "rejects": len(rejects),
        }
    if not total and not rejects:
        raise LuminaError("nothing to shard: the source has no rows")
    with disk_errors(dest):
        if rejects:
            write_rows(dest / "rejects.jsonl", rejects)
        write_rows(dest / "shards.json", [{"samples": total, "shards": shards, "rejects": len(rejects)}])
    if len(rejects) > max_bad_rate * (total + len(rejects)):
        bad = f"{len(rejects)} of {total + len(rejects)} pictures cannot be used"
        raise TooManyBad(f"{bad}, more than --max-bad-rate allows; {dest / 'rejects.jsonl'} says why")


def _make_room(dest: Path, force: bool) -> None:
    if dest.exists() and not dest.is_dir():
        raise UsageError(f"{dest} is a file; shards are written to a folder")
    old = [path for path in dest.glob("*") if _OURS.fullmatch(path.name)]
    if old and not force:
        state = "shards" if (dest / "shards.json").exists() else "shards of an unfinished run"
        raise UsageError(f"{dest} already holds {state}; --force replaces them")
    dest.mkdir(parents=True, exist_ok=True)
    for path in sorted(
        old, key=lambda path: path.name != "shards.json"
    ):  # first what makes the folder look finished
        path.unlink()


@dataclass(frozen=True)
class _Sample:
    key: str
    suffix: str
    data: bytes
    truth: dict[str, bytes]
    row: dict


def _samples(rows: Iterable[dict], rejects: list[dict]) -> Iterator[_Sample]:
    """Yield rows ready to be written, each with its own key; those with a bad picture go to `rejects`."""
    keys: dict[str, int] = {}
    for row in rows:
        image = row.get("image")
        origin = str(image) if isinstance(image, str | Path | TarImage) else None
        try:
            data, suffix, width, height = _encode(image)
            truth = {name: _truth(row[name]) for name in TRUTH if _is_truth(row.get(name))}
        except LuminaError as error:
            rejects.append({"key": row.get("key"), "image": origin, "reason": str(error)})
            continue
        key = safe_key(str(row.get("key") or Path(origin or "picture").stem), keys)
        kept = {name: value for name, value in row.items() if name != "image" and name not in truth}
        kept |= {"key": key, "width": width, "height": height}
        if origin is not None:
            kept.setdefault("origin", origin)
        yield _Sample(key, suffix, data, truth, kept)


def _is_truth(value: Any) -> bool:
    """Whether a row's "depth" or "masks" is a picture; other tools mean other things by these words."""
    return isinstance(value, bytes | TarImage) or (isinstance(value, str) and ".tar#" in value)


def _truth(value: bytes | str | TarImage) -> bytes:
    return value if isinstance(value, bytes) else read_image_bytes(value)


def _encode(image: Any) -> tuple[bytes, str, int, int]:
    """Return (file bytes, suffix, width, height) of a row's picture; a file's own bytes where possible."""
    if isinstance(image, Image.Image):
        return png_bytes(image.convert("RGB")), "png", *image.size
    if not isinstance(image, str | Path | bytes | TarImage):
        raise LuminaError("the row has no 'image'")
    data = image if isinstance(image, bytes) else read_image_bytes(image)
    format, picture = probe(data, name="rendered picture" if isinstance(image, bytes) else str(image))
    if format not in _ORIGINAL:
        return png_bytes(picture), "png", *picture.size
    return data, _ORIGINAL[format], *picture.size


def _write_shard(tar: Path, samples: Iterable[_Sample]) -> list[dict]:
    """Write the index of one tar, then the tar, each whole or not at all; return the index."""
    entries = []
    with atomic_write(tar) as aside, open_aside(aside, tar) as file:
        for sample in samples:  # reading them may fail, too, and that is no fault of this tar
            with disk_errors(tar):
                entries.append(_add_sample(file, sample))
        with disk_errors(tar):
            file.write(bytes(2 * tarfile.BLOCKSIZE))
            write_rows(index_of(tar), entries)  # before the tar: one without index is another tool's
    return entries


def _add_sample(file: IO[bytes], sample: _Sample) -> dict:
    image, row = f"{sample.key}.{sample.suffix}", dump_row(sample.row).encode()
    entry = {"key": sample.key, "image": image, "offset": add_member(file, image, sample.data)}
    entry |= {"length": len(sample.data), "sha256": hashlib.sha256(sample.data).hexdigest()}
    entry |= {"width": sample.row["width"], "height": sample.row["height"]}
    entry["row"] = [add_member(file, f"{sample.key}.json", row), len(row)]
    for name, data in sample.truth.items():
        entry[name] = [add_member(file, f"{sample.key}.{name}.png", data), len(data)]
    return entry


def index_of(tar: Path) -> Path:
    """Return the path of the index beside a tar."""
    return tar.with_name(f"{tar.stem}.index.jsonl")


def open_shards(path: str | Path) -> list[Path]:
    """Return the tars that `path` stands for; LuminaError where a folder of ours is not whole."""
    tars, folder = find_tars(path), Path(path)
    if folder.suffix == ".tar" and folder.is_file():
        return tars
    ours = [tar for tar in tars if _OURS.fullmatch(tar.name)]
    totals = folder / "shards.json"
    if not totals.is_file():
        if any(_OURS.fullmatch(index.name) for index in folder.glob("*.index.jsonl")):
            raise LuminaError(
                f"{folder} is unfinished: `lumina shard SOURCE {folder} --force` writes it anew"
            )
        return tars
    wanted = next(read_rows(totals), {})
    found = {"shards": len(ours)}
    if all(index_of(tar).is_file() for tar in ours):
        found["samples"] = sum(_count_lines(index_of(tar)) for tar in ours)
    for name, count in found.items():
        if count != wanted.get(name):
            raise LuminaError(
                f"{folder} holds {count} {name}, but its shards.json says {wanted.get(name)}; "
                f"`lumina shard SOURCE {folder} --force` writes it anew"
            )
    return tars


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())


class ShardReader:
    """Random access to the rows of shards, by number; cheap to pickle, holds no open file.

    Tars without an index, which other tools wrote, are scanned once. A row is what the JSON member holds,
    with "image" a TarImage, "key", width and height where they are known, and "depth" and "masks", each a
    TarImage, where the shards hold them.
    """

    def __init__(self, path: str | Path):
        self.entries = [(str(tar), entry) for tar in open_shards(path) for entry in read_index(tar)]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> dict:
        tar, entry = self.entries[number]
        return read_entry(tar, entry)

    def __iter__(self) -> Iterator[dict]:
        return (read_entry(tar, entry) for tar, entry in self.entries)


def read_shards(path: str | Path) -> Iterator[dict]:
    """Yield the rows of a tar or of a folder of them; "image" is a TarImage, read when it is opened."""
    for tar in open_shards(path):
        for entry in read_index(tar):
            yield read_entry(str(tar), entry)


def read_entry(tar: str, entry: dict) -> dict:
    """Return the row of one line of an index."""
    row = {name: entry[name] for name in ("key", "width", "height") if entry.get(name) is not None}
    if entry.get("row"):
        text = read_span(tar, *entry["row"], f"{entry['key']}.json")
        row = parse_row(text.decode(errors="replace"), f"{tar}#{entry['key']}.json") | row
    return row | {name: TarImage(tar, *span) for name, span in _pictures(entry).items()}


def _pictures(entry: dict) -> dict[str, tuple[str, int, int]]:
    """Return the pictures of a sample by name, each as (member, offset, length)."""
    truth = {name: (f"{entry['key']}.{name}.png", *entry[name]) for name in TRUTH if entry.get(name)}
    return {"image": (entry["image"], entry["offset"], entry["length"])} | truth


def read_index(tar: Path) -> list[dict]:
    """Return the index of a tar from the file beside it, or by scanning the tar where there is none."""
    path = index_of(tar)
    if not path.is_file():
        return list(scan(tar))
    entries = list(read_rows(path))
    size = tar.stat().st_size
    for number, entry in enumerate(entries, start=1):
        spans = [[entry.get("offset"), entry.get("length")], entry.get("row")]
        spans += [entry[name] for name in TRUTH if name in entry]
        if not all(_fits(span, size) for span in spans) or not isinstance(entry.get("image"), str):
            raise LuminaError(
                f"{path} line {number} does not belong to {tar.name}; delete the index to scan the tar"
            )
    return entries


def _fits(span: Any, size: int) -> bool:
    whole = (
        isinstance(span, list)
        and len(span) == 2
        and all(isinstance(part, int) and part >= 0 for part in span)
    )
    return whole and sum(span) <= size


def read_image_bytes(image: str | Path | TarImage) -> bytes:
    """Return the bytes of a picture file: a path, a TarImage, or its text "DIR/000000.tar#key.png"."""
    if isinstance(image, TarImage):
        return image.read()
    if not Path(image).is_file() and ".tar#" in str(image):
        tar, _, member = str(image).rpartition("#")
        return find_member(tar, member).read()
    if not Path(image).is_file():
        raise LuminaError(
            f"{image}: {'is a folder, not a picture' if Path(image).is_dir() else 'no such picture'}"
        )
    return Path(image).read_bytes()


def find_member(tar: str, member: str) -> TarImage:
    """Return the picture called `member` in a tar."""
    path = Path(tar)
    if not path.is_file():
        raise LuminaError(f"{tar}: no such shard")
    span = _members(path, path.stat().st_mtime_ns).get(member)
    if span is None:
        raise LuminaError(f"{tar} holds no picture {member!r}")
    return TarImage(tar, member, *span)


@lru_cache(maxsize=16)
def _members(tar: Path, written: int) -> dict[str, tuple[int, int]]:
    return {member: span for entry in read_index(tar) for member, *span in _pictures(entry).values()}


def describe_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, bytes, smallest and largest picture, whether it has an index."""
    for tar in open_shards(path):
        entries = read_index(tar)
        sizes = sorted((entry["width"], entry["height"]) for entry in entries if entry.get("width"))
        row = {"shard": str(tar), "samples": len(entries), "bytes": tar.stat().st_size}
        row |= (
            {"smallest": "x".join(map(str, sizes[0])), "largest": "x".join(map(str, sizes[-1]))}
            if sizes
            else {}
        )
        yield row | {"index": index_of(tar).is_file()}


def verify_shards(path: str | Path) -> Iterator[dict]:
    """Yield a row per shard: shard, samples, ok, and under "problem" what is wrong with it, or None."""
    for tar in open_shards(path):
        samples, problem = (
            0,
            None if index_of(tar).is_file() else f"{tar} has no index, so nothing to compare with",
        )
        try:
            for entry in [] if problem else read_index(tar):
                row = read_entry(str(tar), entry)
                if hashlib.sha256(row["image"].read()).hexdigest() != entry["sha256"]:
                    raise LuminaError(f"{row['image']}: its bytes are not those that were written")
                samples += 1
        except LuminaError as error:
            problem = str(error)
        yield {"shard": str(tar), "samples": samples, "ok": problem is None, "problem": problem}
