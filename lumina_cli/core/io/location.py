"""Locations as text: a path on this machine, or a URL of another file system (s3://, gs://, memory://...).

A location is a string without a trailing slash. The functions work on the text alone and open nothing;
only `describe_missing` checks whether a local path is a folder.
"""

import os
import re
from pathlib import Path

from lumina_cli.core.errors import UsageError

Location = str | Path
# the first scheme, also of a chain such as simplecache::s3://
_URL = re.compile(r"([a-z][a-z0-9+.-]+)(?:::[a-z0-9+.:-]+)?://", re.IGNORECASE)
_PATH_OF_URL = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)", re.IGNORECASE)  # pathlib collapses "//" of a URL


def to_text(place: Location) -> str:
    """Return a location as text without a trailing slash; file:// URLs become paths.

    Raises:
        UsageError: if the location chains file systems (a::b), which are not supported.
    """
    if isinstance(place, Path):  # restore the slash that pathlib removed
        place = _PATH_OF_URL.sub(r"\1://", str(place))
    if _URL.match(place) and "::" in place:
        raise UsageError(f"{place}: chained file systems ('::') are not supported; use a single file system")
    if place.startswith("file://"):
        place = place.removeprefix("file://") or "/"
    bare = place.rstrip("/")
    return place if bare.endswith(":") or not bare else bare


def is_url(place: Location) -> bool:
    """Whether a location is on another file system than this machine's."""
    return get_scheme(place) not in ("", "file")


def get_scheme(place: Location) -> str:
    """Return the scheme of a URL in lower case, or "" for a path."""
    found = (_PATH_OF_URL if isinstance(place, Path) else _URL).match(str(place))
    return found[1].lower() if found else ""


def is_process_local(place: Location) -> bool:
    """Whether a location exists only in the memory of this process, out of reach for worker processes."""
    return get_scheme(place) == "memory"


def join(folder: Location, name: str) -> str:
    """Return the location of a file in a folder."""
    folder = to_text(folder)
    return folder + name if folder.endswith("/") else f"{folder}/{name}"


def basename(place: Location) -> str:
    """Return the last component of a location."""
    return to_text(place).rpartition("/")[2]


def parent(place: Location) -> str:
    """Return the folder that contains a location; "." for a bare name."""
    folder, slash, _ = to_text(place).rpartition("/")
    return folder or ("/" if slash else ".")


def describe_missing(path: str | Path) -> str:
    """Return why there is not a file at a local path: it is a URL, a folder, or missing."""
    if re.match(r"[a-z][\w.+-]+:/", str(path)):
        return "a URL, which is not read here; download it and give the file"
    return "is a folder, not an image" if os.path.isdir(path) else "no such image"
