"""Updating a finished folder: plan, write the edited shards aside, and commit them together."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lumina_cli.core.errors import UsageError
from lumina_cli.core.io import filesystem
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.sample import ShardSettings
from lumina_cli.core.shards.update.commit import Staging
from lumina_cli.core.shards.update.edit import run_edit
from lumina_cli.core.shards.update.plan import UpdatePlan
from lumina_cli.core.shards.update.rejects import digest_rejects, upstream_rejects
from lumina_cli.core.shards.update.summary import UpdateSummary

Notify = Callable[[str], None]
Run = Callable[[Callable, Iterator], Iterator]  # (function, its work items) -> the results, in order


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of an update.

    making     settings of the shards
    settings   what shards.json holds under "settings"
    left_out   rows that an earlier command rejected
    removed    see `UpdatePlan`
    run        runs the work items of the shards
    workers    processes that read the indexes for the manifest
    """

    making: ShardSettings
    settings: dict
    left_out: list[dict] = field(default_factory=list)
    removed: str | None = None
    run: Run = map
    workers: int = 0


def preview_update(
    rows: Iterable[dict], dest: str, totals: dict, making: ShardSettings, removed: str | None, notify: Notify
) -> Iterator[dict]:
    """Yield a row per shard with what an update would do, without writing anything."""
    plan = UpdatePlan(dest, totals, making, removed)
    summary = UpdateSummary(plan)
    for _ in summary.watch(plan.edits(rows)):
        pass
    if summary.counts or plan.gone.count:
        for line in summary.messages():
            notify(f"dry run: {line}")
    yield from summary.planned_rows()


def update_folder(
    rows: Iterable[dict], dest: str, totals: dict, update: UpdateSettings, notify: Notify
) -> Iterator[dict]:
    """Make a finished folder hold `rows`; yield a row per shard, and return the content of shards.json.

    Raises:
        UsageError: if samples of the folder are not in the input, or cannot be replaced; nothing changes.
    """
    staging = Staging(dest)
    staging.begin()
    plan = UpdatePlan(dest, totals, update.making, update.removed)
    summary = UpdateSummary(plan)
    try:
        notes = list(update.run(run_edit, summary.watch(plan.edits(rows))))
        _check_lost(dest, notes, update.removed)
    except UsageError:
        staging.remove()
        raise
    rejects = sorted(
        [*plan.rejects.current, *(reject for note in notes for reject in note["rejects"])],
        key=lambda reject: reject["row"],
    )
    if notes or plan.gone.count:
        for line in summary.messages():
            notify(line)
    if (
        not notes
        and rejects == plan.rejects.before
        and totals.get("upstream", [0]) == digest_rejects(update.left_out)
    ):
        staging.remove()
        for name, samples, size, *_ in totals["tars"]:
            yield {"shard": filesystem.join(dest, name), "samples": samples, "bytes": size, "kept": True}
        return totals
    scores = set(manifest.read_score_names(dest)) if totals["tars"] else set()
    scores |= {name for note in notes for name in note["scores"]}
    new = _new_totals(plan, notes, rejects, update, totals)
    before = upstream_rejects(update.left_out, new["rows"] - len(update.left_out))
    staging.commit(notes, new, [*rejects, *before], sorted(scores))
    staging.complete(update.workers)
    tars = {int(tar[0][:-4]): tar for tar in new["tars"]}
    found = {note["shard"]: len(note["rejects"]) for note in notes}
    for number in sorted(tars.keys() | plan.bases.keys() & found.keys()):
        row = summary.row_of(number, tars.get(number))
        yield row | ({"rejects": found[number]} if number in found else {})
    return new


def _check_lost(dest: str, notes: list[dict], removed: str | None) -> None:
    """Check that no sample is lost because its new image or caption cannot be used.

    Raises:
        UsageError: if one is, and `removed` is None.
    """
    lost = [reason for note in notes for reason in note["lost"]]
    if lost and removed is None:
        raise UsageError(
            f"{dest} holds {len(lost)} samples whose files or rows cannot be used any more ({lost[0]}); "
            "repair them, or use --removed keep to keep the packed samples, or --removed drop to remove them"
        )


def _new_totals(
    plan: UpdatePlan, notes: list[dict], rejects: list[dict], update: UpdateSettings, totals: dict
) -> dict:
    """Return the new content of shards.json."""
    tars = {int(name[:-4]): [name, *rest] for name, *rest in totals["tars"]}
    for note in notes:
        number = note["shard"]
        tars.pop(number, None)
        if note["samples"]:
            tars[number] = [f"{number:06d}.tar", note["samples"], note["bytes"], *note["index"]]
    found = [tars[number] for number in sorted(tars)]
    samples, left = sum(tar[1] for tar in found), update.left_out
    rows = samples + len(rejects)
    new = {"samples": samples, "shards": len(found), "rejects": len(rejects) + len(left)}
    new |= {"bytes": sum(tar[2] for tar in found), "rows": rows + len(left), "input": plan.input}
    new |= {"settings": update.settings, "tars": found}
    new |= {"upstream": digest_rejects(left)} if left else {}
    new |= {"slots": plan.slots} if plan.slots != rows else {}
    edits = totals.get("edits", 0) + bool(plan.changed.count or plan.new_images.count or plan.gone.count)
    return new | ({"edits": edits} if edits else {})
