"""Apply rows to the samples of shards as an overlay: new captions, scores, or any other field.

shards/overlays/match.py finds the sample of each row. The overlay stores only the fields in which a row
differs from its sample. If a row replaces a caption, what was recorded about the old caption (captioner,
scores) is removed. Rows that an earlier command passed on with an error are skipped.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.io.captions import with_captions
from lumina_cli.core.io.jsonl import get_captions
from lumina_cli.core.shards.overlays.joiner import OverlayJoiner
from lumina_cli.core.shards.overlays.lock import lock_overlay
from lumina_cli.core.shards.overlays.match import LEVELS, RowMatcher, validate_row
from lumina_cli.core.shards.overlays.reader import (
    MEASURED,
    Overlay,
    find_overlays,
    list_versions,
    merge,
    newest_version,
    open_version,
)
from lumina_cli.core.shards.overlays.versions import begin_version
from lumina_cli.core.shards.overlays.writer import Part, make_row_part, write_values
from lumina_cli.core.shards.reader import open_shards, read_entry
from lumina_cli.core.shards.selection import resolve_shards
from lumina_cli.core.shards.tar import read_index

OF_CAPTIONS = ("captioned_by", "caption_scores")  # {language: {level: ...}}, one entry per caption
NOT_FIELDS = (
    "image",
    "key",
    "depth",
    "masks",
    "error",
    "code",
)  # location or status, not content
RESERVED = re.compile(r"scores|(latents|text)-.*")  # of `lumina shard score` and `encode`


def apply_rows(
    shards: str,
    rows: Iterable[dict],
    name: str,
    add: bool = False,
    notify: Callable[[str], None] = lambda line: None,
) -> Iterator[dict]:
    """Write rows as a version of the overlay `name`; yield a row per shard and one for the whole version.

    With `add` the new version also keeps what the newest one has and the rows do not replace. Applying the
    same rows again does not create another version. For images that were replaced since, the fields of other
    overlays and of earlier versions are ignored.

    `notify` receives messages about rows with an error or without a sample, unknown caption levels, and
    samples that the newest version has and this one does not.

    Raises:
        UsageError: if the name is reserved for the overlays of other commands.
        LuminaError: before anything is written, if a row is malformed, or no row matches a sample.
    """
    if RESERVED.fullmatch(name):
        raise UsageError(
            f"the name {name} is reserved for `lumina shard score` and `encode`; choose another --name"
        )
    shards = resolve_shards(shards)
    tars = open_shards(shards)
    with tempfile.TemporaryDirectory() as aside:
        matcher = RowMatcher(shards, tars, Path(aside))
        for number, row in enumerate(rows, start=1):
            matcher.add(validate_row(row, f"row {number}"))
        matcher.flush()
        if not matcher.matched:
            raise LuminaError(_explain_no_match(matcher, shards))
        _report(matcher, shards, notify)
        with lock_overlay(shards, name):  # before the newest version is looked up
            yield from _apply(shards, tars, matcher, name, add, notify)


def _explain_no_match(matcher: RowMatcher, shards: str) -> str:
    if matcher.failed == matcher.count and matcher.count:
        return (
            f"each of {matcher.count} rows has an error, so there is nothing to apply: {matcher.first_error}"
        )
    return f"none of {matcher.count} rows matches a sample of {shards}{matcher.match_hint()}"


def _apply(
    shards: str, tars: list[str], matcher: RowMatcher, name: str, add: bool, notify: Callable[[str], None]
) -> Iterator[dict]:
    made_by = {"rows": matcher.digest.hexdigest()[:16]}
    before, newest = _version_to_extend(shards, name, made_by) if add else None, newest_version(shards, name)
    made_by |= {"over": before.version} if before else {}
    if before and before.info["settings"].get("rows") == made_by["rows"]:
        made_by = before.info["settings"]  # the same rows again: resume or keep that version
    others = [each for each in find_overlays(shards) if each.name != name]
    version, hidden = begin_version(shards, name, made_by), 0
    for tar in tars:
        entries, found = read_index(tar), matcher.read_rows(tar)
        if newest and not before and newest.version != version.version:
            hidden += len(newest.open(tar, entries).keys() - found.keys())
        if not version.has(tar, entries):
            parts = _parts(others, tar, entries, found, before)
            yield {"shard": tar} | version.write(tar, entries, parts)
    write_values(version, tars)
    info = version.finish(tars)
    if hidden:
        lost = f"{name}@{newest.version} covers {hidden} samples that these rows do not"
        notify(f"{lost}; they are hidden now; --add keeps them")
    row = {"overlay": name, "version": version.version, "samples": info["samples"], "rows": matcher.count}
    row |= {"matched": matcher.matched, "unmatched": matcher.count - matcher.matched - matcher.failed}
    yield row | {"failed": matcher.failed}


def _version_to_extend(shards: str, name: str, made_by: dict) -> Overlay | None:
    """Return the newest version that does not consist of exactly these rows, which `add` extends."""
    found = (open_version(shards, name, version) for version in reversed(list_versions(shards, name)))
    return next((one for one in found if one and one.info["settings"] != made_by), None)


def _report(matcher: RowMatcher, shards: str, notify: Callable[[str], None]) -> None:
    if matcher.failed:
        failed = f"{matcher.failed} of {matcher.count} rows have an error and were not applied"
        notify(f"{failed}: {matcher.first_error}")
    if missed := matcher.count - matcher.matched - matcher.failed:
        notify(f"{missed} of {matcher.count} rows do not match a sample of {shards}{matcher.match_hint()}")
    if matcher.levels:
        found = ", ".join(f"{level} ({count})" for level, count in matcher.levels.most_common())
        notify(f"unknown caption levels: {found}; known levels are {', '.join(LEVELS)}")


def _parts(
    others: list[Overlay], tar: str, entries: list[dict], rows: dict, before: Overlay | None
) -> Iterator[Part]:
    """Yield the fields in which the rows of a shard differ from its samples without this overlay."""
    measured = [each for each in others if each.name == MEASURED]  # its values are not copied to this overlay
    kinds = (measured, others) if rows else ()
    joins = [OverlayJoiner(each, strict=False).open(tar, entries) for each in kinds]
    old = before.parts(tar, before.open(tar, entries)) if before else lambda key: {}
    for entry in entries:
        row, part = _sample_fields(rows.get(entry["key"], {})), _sample_fields(old(entry["key"]))
        if row:
            sample = read_entry(tar, entry)
            for known in [merge(join(entry, sample), part) for join in joins]:
                part = merge(merge(part, _outdated(known, row), True), diff_row(known, row), True)
        if part:
            yield make_row_part(entry, part)


def _sample_fields(row: dict) -> dict:
    return {name: value for name, value in row.items() if name not in NOT_FIELDS}


def _outdated(row: dict, other: dict) -> dict:
    """Return a part that removes the records in `row` of captions that `other` replaces."""
    found: dict[str, dict] = {}
    known = with_captions(row).get("captions")
    for lang, texts in get_captions(other).items():
        for level, text in texts.items():
            if text == _of_caption({"captions": known}, "captions", lang, level):
                continue
            for name in OF_CAPTIONS:
                renewed = _of_caption(other, name, lang, level) is not None
                if not renewed and _of_caption(row, name, lang, level) is not None:
                    found.setdefault(name, {}).setdefault(lang, {})[level] = None
    return found


def _of_caption(row: dict, name: str, lang: str, level: str) -> Any:
    for part in (name, lang, level):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def diff_row(row: dict, other: dict) -> dict:
    """Return the fields of `other` that differ from `row`; merged with `row` they give both."""
    found = {}
    for name, value in other.items():
        known = row.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := diff_row(known, value):
                found[name] = inner
        elif value is not None and value != known:
            found[name] = value
    return found
