"""Rows that were made elsewhere, laid over the samples of shards: new captions, scores, anything of a row.

Which sample a row is for, rowsorter.py finds out. What a row says otherwise than the sample does so far is
kept, nothing else; and that what was known of a caption which the row replaces (by whom, with which score)
holds no more. A row that an earlier verb passed on with an error says nothing of its sample.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.jsonl import get_captions, with_captions
from lumina_cli.core.shards.overlays.match import LEVELS, RowMatcher, checked
from lumina_cli.core.shards.overlays.reader import (
    MEASURED,
    Overlay,
    OverlayJoiner,
    find_overlays,
    list_versions,
    merge,
    newest_version,
    open_version,
)
from lumina_cli.core.shards.overlays.writer import Part, begin_version, lock_overlay, row_part, write_values
from lumina_cli.core.shards.reader import open_shards, read_entry, read_index
from lumina_cli.core.shards.selection import base_of

OF_CAPTIONS = ("captioned_by", "caption_scores")  # {language: {level: ...}}, known of one caption each
NOT_OURS = ("image", "key", "depth", "masks", "error", "code")  # where a sample is, or what became of a row
RESERVED = re.compile(r"scores|(latents|text)-.*")  # of `lumina shard score` and `encode`, found by name


def apply_rows(
    shards: str,
    rows: Iterable[dict],
    name: str,
    add: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write rows as a version of the overlay `name`; yield a row per shard and one for all.

    With `add` the version holds, too, what the newest one says where the rows say nothing. The same rows make
    no second version. `tell` hears of rows without a sample and with an error, of levels of captions that
    are not LEVELS, and of samples that the newest version knew and this one does not.
    Of pictures that were replaced since, what other overlays and earlier versions say counts no more.
    UsageError for a name that other verbs find their own overlays by. LuminaError, before anything is
    written, where a row is malformed or none names a sample of the shards.
    """
    if RESERVED.fullmatch(name):
        raise UsageError(
            f"overlays called {name} are what `lumina shard score` and `encode` write; take another --name"
        )
    shards = base_of(shards)
    tars = open_shards(shards)
    with tempfile.TemporaryDirectory() as aside:
        sorter = RowMatcher(shards, tars, Path(aside))
        for number, row in enumerate(rows, start=1):
            sorter.take(checked(row, f"row {number}"))
        sorter.flush()
        if not sorter.matched:
            raise LuminaError(_nothing(sorter, shards))
        _report(sorter, shards, tell)
        with lock_overlay(shards, name):  # before the newest version is looked at: it stays the newest
            yield from _apply(shards, tars, sorter, name, add, tell)


def _nothing(sorter: RowMatcher, shards: str) -> str:
    if sorter.failed == sorter.count and sorter.count:
        return f"each of {sorter.count} rows has an error, so there is nothing to lay: {sorter.first_error}"
    return f"none of {sorter.count} rows names a sample of {shards}{sorter.unmatched()}"


def _apply(
    shards: str, tars: list[str], sorter: RowMatcher, name: str, add: bool, tell: Callable[[str], None]
) -> Iterator[dict]:
    made_by = {"rows": sorter.digest.hexdigest()[:16]}
    before, newest = _base(shards, name, made_by) if add else None, newest_version(shards, name)
    made_by |= {"over": before.version} if before else {}
    if before and before.info["settings"].get("rows") == made_by["rows"]:
        made_by = before.info["settings"]  # the same rows again
    others = [each for each in find_overlays(shards) if each.name != name]
    version, hidden = begin_version(shards, name, made_by), 0
    for tar in tars:
        entries, found = read_index(tar), sorter.rows(tar)
        if newest and not before and newest.version != version.version:
            hidden += len(newest.open(tar, entries, strict=False).keys() - found.keys())
        if not version.has(tar, entries):
            parts = _parts(others, tar, entries, found, before)
            yield {"shard": tar} | version.write(tar, entries, parts)
    write_values(version, tars)
    info = version.finish(tars)
    if hidden:
        told = f"{name}@{newest.version} told of {hidden} samples that these rows do not name"
        tell(f"{told}; that is hidden now, and with --add it stays")
    row = {"overlay": name, "version": version.version, "samples": info["samples"], "rows": sorter.count}
    row |= {"matched": sorter.matched, "unmatched": sorter.count - sorter.matched - sorter.failed}
    yield row | {"failed": sorter.failed}


def _base(shards: str, name: str, made_by: dict) -> Overlay | None:
    """Return the newest version that rows are added to: not one that holds these rows alone."""
    found = (open_version(shards, name, version) for version in reversed(list_versions(shards, name)))
    return next((one for one in found if one and one.info["settings"] != made_by), None)


def _report(sorter: RowMatcher, shards: str, tell: Callable[[str], None]) -> None:
    if sorter.failed:
        tell(f"{sorter.failed} of {sorter.count} rows have an error and were not laid: {sorter.first_error}")
    if missed := sorter.count - sorter.matched - sorter.failed:
        tell(f"{missed} of {sorter.count} rows name no sample of {shards}{sorter.unmatched()}")
    if sorter.levels:
        found = ", ".join(f"{level} ({count})" for level, count in sorter.levels.most_common())
        tell(f"levels of captions that nothing else knows: {found}; the known ones are {', '.join(LEVELS)}")


def _parts(
    others: list[Overlay], tar: str, entries: list[dict], rows: dict, before: Overlay | None
) -> Iterator[Part]:
    """Yield what the rows of a shard say otherwise than its samples do without this overlay."""
    measured = [each for each in others if each.name == MEASURED]  # its values stay where they are
    kinds = (measured, others) if rows else ()
    joins = [OverlayJoiner(each).open(tar, entries, strict=False) for each in kinds]
    old = before.parts(tar, before.open(tar, entries, strict=False)) if before else lambda key: {}
    for entry in entries:
        row, part = _ours(rows.get(entry["key"], {})), _ours(old(entry["key"]))
        if row:
            sample = read_entry(tar, entry)
            for known in [merge(join(entry, sample), part) for join in joins]:
                part = merge(merge(part, _outdated(known, row), True), difference(known, row), True)
        if part:
            yield row_part(entry, part)


def _ours(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in NOT_OURS}


def _outdated(row: dict, other: dict) -> dict:
    """Return a part without what `row` knows of captions that `other` replaces, and says nothing of."""
    found: dict[str, dict] = {}
    known = with_captions(row).get("captions")
    for lang, texts in get_captions(other).items():
        for level, text in texts.items():
            if text == _of_caption({"captions": known}, "captions", lang, level):
                continue
            for name in OF_CAPTIONS:
                said = _of_caption(other, name, lang, level) is not None
                if not said and _of_caption(row, name, lang, level) is not None:
                    found.setdefault(name, {}).setdefault(lang, {})[level] = None
    return found


def _of_caption(row: dict, name: str, lang: str, level: str) -> Any:
    for part in (name, lang, level):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def difference(row: dict, other: dict) -> dict:
    """Return what `other` says that `row` does not say so: merged with `row` it gives both."""
    found = {}
    for name, value in other.items():
        known = row.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := difference(known, value):
                found[name] = inner
        elif value is not None and value != known:
            found[name] = value
    return found
