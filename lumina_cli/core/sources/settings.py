"""Settings of a SOURCE after "?": nano:N?seed=7, photos?lines=first, rows.csv?text=title."""

import os
from typing import Any
from urllib.parse import parse_qsl

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.captions import LINES
from lumina_cli.core.limits import shorten
from lumina_cli.core.registry import did_you_mean
from lumina_cli.core.shards.overlays.reader import split_source

NANO = {"seed": 0, "size": 128, "held_out": 0, "truth": 0}
HUB = {"split": "train", "config": "", "image": "image", "text": "text", "limit": 0}
LOCAL = {"lines": "one", "text": "", "image": ""}


def split_place(source: str, lines: str | None = None) -> tuple[str, dict[str, Any]]:
    """Return (folder or file, settings in LOCAL) of a SOURCE; a name that exists is never split.

    `lines` replaces the default of the setting.

    Raises:
        UsageError: if a setting is unknown or invalid.
    """
    word = filesystem.to_text(source)
    place, overlays = split_source(word)
    bare, mark, words = word.rpartition("?")
    settings: dict[str, Any] = LOCAL | ({"lines": lines} if lines else {})
    if overlays is None and mark and bare and not exists(word) and exists(bare):
        place, settings = bare, parse_settings(words, settings, word)
    if settings["lines"] not in LINES:
        raise UsageError(f"{word}: lines={settings['lines']}: choose from {', '.join(LINES)}")
    return place, settings


def exists(place: str) -> bool:
    """Whether a file or folder of this name exists."""
    if filesystem.is_url(place):
        return filesystem.is_dir(place) or filesystem.is_file(place)
    return os.path.lexists(place)


def parse_settings(words: str, known: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the settings after "?", converted to the types of the defaults in `known`.

    Raises:
        UsageError: if a setting is unknown or not a whole number.
    """
    found = dict(known)
    for name, value in parse_qsl(words, keep_blank_values=True):
        if name not in known:
            hint = did_you_mean(name, known) or f"; choose from {', '.join(known)}"
            raise UsageError(f"{source}: no setting {name!r}{hint}")
        found[name] = to_whole(value, f"{source}: {name}") if isinstance(known[name], int) else value
    return found


def to_whole(text: str, where: str) -> int:
    """Return a whole number.

    Raises:
        UsageError: if the text is not one; the message begins with `where`.
    """
    try:
        return int(text)
    except ValueError:  # also raised for more than 4300 digits
        raise UsageError(f"{where}: {shorten(text, 60)!r} is not a whole number") from None
