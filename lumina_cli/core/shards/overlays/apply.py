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
from lumina_cli.core.shards.overlays.lock import lock_overlay
from lumina_cli.core.shards.overlays.match import LEVELS, RowMatcher, validate_row
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
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Part, make_row_part, write_values
from lumina_cli.core.shards.reader import open_shards, read_entry, read_index
from lumina_cli.core.shards.selection import resolve_shards

OF_CAPTIONS = ("captioned_by", "caption_scores")  # {language: {level: ...}}, known of one caption each
NOT_OURS = ("image", "key", "depth", "masks", "error", "code")  # where a sample is, or what became of a row
RESERVED = re.compile(r"scores|(latents|text)-.*")  # of `lumina shard score` and `encode`, found by name


def apply_rows(
    shards: str,
    rows: Iterable[dict],
    name: str,
    add: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write rows as a version of the overlay `name`; yield a row per shard and one for all.

    With `add` the version holds, too, what the newest one says where the rows say nothing. The same rows make
    no second version. `notify` hears of rows without a sample and with an error, of levels of captions that
    are not LEVELS, and of samples that the newest version knew and this one does not.
    Of pictures that were replaced since, what other overlays and earlier versions say counts no more.
    UsageError for a name that other verbs find their own overlays by. LuminaError, before anything is
    written, where a row is malformed or none names a sample of the shards.
    """
    if RESERVED.fullmatch(name):
        raise UsageError(
            f"overlays called {name} are what `lumina shard score` and `encode` write; take another --name"
        )
    shards = resolve_shards(shards)
    tars = open_shards(shards)
    with tempfile.TemporaryDirectory() as aside:
        matcher = RowMatcher(shards, tars, Path(aside))
        for number, row in enumerate(rows, start=1):
            matcher.add(validate_row(row, f"row {number}"))
        matcher.flush()
        if not matcher.matched:
            raise LuminaError(_nothing(matcher, shards))
        _report(matcher, shards, notify)
        with lock_overlay(shards, name):  # before the newest version is looked at: it stays the newest
            yield from _apply(shards, tars, matcher, name, add, notify)


def _nothing(matcher: RowMatcher, shards: str) -> str:
    if matcher.failed == matcher.count and matcher.count:
        return f"each of {matcher.count} rows has an error, so there is nothing to lay: {matcher.first_error}"
    return f"none of {matcher.count} rows names a sample of {shards}{matcher.match_hint()}"


def _apply(
    shards: str, tars: list[str], matcher: RowMatcher, name: str, add: bool, notify: Callable[[str], None]
) -> Iterator[dict]:
    made_by = {"rows": matcher.digest.hexdigest()[:16]}
    before, newest = _version_to_extend(shards, name, made_by) if add else None, newest_version(shards, name)
    made_by |= {"over": before.version} if before else {}
    if before and before.info["settings"].get("rows") == made_by["rows"]:
        made_by = before.info["settings"]  # the same rows again
    others = [each for each in find_overlays(shards) if each.name != name]
    version, hidden = begin_version(shards, name, made_by), 0
    for tar in tars:
        entries, found = read_index(tar), matcher.read_rows(tar)
        if newest and not before and newest.version != version.version:
            hidden += len(newest.open(tar, entries, strict=False).keys() - found.keys())
        if not version.has(tar, entries):
            parts = _parts(others, tar, entries, found, before)
            yield {"shard": tar} | version.write(tar, entries, parts)
    write_values(version, tars)
    info = version.finish(tars)
    if hidden:
        told = f"{name}@{newest.version} told of {hidden} samples that these rows do not name"
        notify(f"{told}; that is hidden now, and with --add it stays")
    row = {"overlay": name, "version": version.version, "samples": info["samples"], "rows": matcher.count}
    row |= {"matched": matcher.matched, "unmatched": matcher.count - matcher.matched - matcher.failed}
    yield row | {"failed": matcher.failed}


def _version_to_extend(shards: str, name: str, made_by: dict) -> Overlay | None:
    """Return the newest version that rows are added to: not one that holds these rows alone."""
    found = (open_version(shards, name, version) for version in reversed(list_versions(shards, name)))
    return next((one for one in found if one and one.info["settings"] != made_by), None)


def _report(matcher: RowMatcher, shards: str, notify: Callable[[str], None]) -> None:
    if matcher.failed:
        notify(
            f"{matcher.failed} of {matcher.count} rows have an error and were not laid: {matcher.first_error}"
        )
    if missed := matcher.count - matcher.matched - matcher.failed:
        notify(f"{missed} of {matcher.count} rows name no sample of {shards}{matcher.match_hint()}")
    if matcher.levels:
        found = ", ".join(f"{level} ({count})" for level, count in matcher.levels.most_common())
        notify(f"levels of captions that nothing else knows: {found}; the known ones are {', '.join(LEVELS)}")


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
                part = merge(merge(part, _outdated(known, row), True), diff_row(known, row), True)
        if part:
            yield make_row_part(entry, part)


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


def diff_row(row: dict, other: dict) -> dict:
    """Return what `other` says that `row` does not say so: merged with `row` it gives both."""
    found = {}
    for name, value in other.items():
        known = row.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := diff_row(known, value):
                found[name] = inner
        elif value is not None and value != known:
            found[name] = value
    return found
