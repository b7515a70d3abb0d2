"""Fingerprint of a source and of a model component, which names the folder of a latent cache."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.selection import is_selection, selected_shards
from lumina_cli.core.sources.settings import split_place

_ENCODED = re.compile(r"/overlays/(latents|text)-[^/]*/\d+/[^/]*$")  # written by `lumina shard encode`


def fingerprint(name: str, component: Path, source: str | None = None) -> str:
    """Return 16 hex digits that change if a source or the files of a model component (`component`) change.

    `name` is that of the source in the digest; `source` names its files if `name` does not.

    Files of sources are compared by name, size and time, including the overlays of shards and the shards of a
    selection; the files of the component by content.
    """
    digest = hashlib.sha256(name.encode())
    place = split_place(name if source is None else source)[0]
    folders = [place, selected_shards(place)] if is_selection(place) else [place]
    for folder in folders:
        for file_name, version in sorted(_files(folder)):
            if _ENCODED.search(file_name):
                continue  # computed from the other files, so not a change of the data
            digest.update(f"{filesystem.basename(file_name)} {version}".encode(errors="surrogateescape"))
    for file in sorted(p for p in component.rglob("*") if p.is_file()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _files(place: str) -> Iterator[tuple[str, str]]:
    """Yield (name, version) of a file, or of all files below a folder; remote files have sizes and ETags."""
    if not filesystem.is_url(place):
        path = Path(place)
        files = [path] if path.is_file() else path.rglob("*") if path.is_dir() else []
        for file in files:
            if file.is_file():
                yield str(file), filesystem.file_version(str(file))
    elif filesystem.is_file(place):
        yield place, filesystem.file_version(place)
    else:
        system, path = filesystem.open_filesystem(place)
        with filesystem.remote_errors(place, "read"):
            for name, info in system.find(path, detail=True).items():
                yield name, " ".join(str(info.get(key)) for key in ("size", "ETag", "mtime", "created"))
