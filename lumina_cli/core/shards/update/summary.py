"""What an update changes, as rows and as messages."""

from collections.abc import Iterable, Iterator
from itertools import groupby

from lumina_cli.core.io import filesystem
from lumina_cli.core.shards.overlays.coverage import computing_command
from lumina_cli.core.shards.overlays.reader import (
    MEASURED,
    find_overlays,
    list_overlays,
    newest_version,
    read_shard_index,
)
from lumina_cli.core.shards.update.edit import ShardEdit
from lumina_cli.core.shards.update.plan import UpdatePlan

RANGES = 5  # ranges of shard numbers that a message names


class UpdateSummary:
    """Counts of the edits of an update; rows and samples are not kept, except the keys of changed ones."""

    def __init__(self, plan: UpdatePlan):
        self.plan, self.dest = plan, plan.dest
        self.counts: dict[int, dict[str, int]] = {}
        self.changed: dict[int, list[str]] = {}
        self.overlays_reset = False

    def watch(self, edits: Iterable[ShardEdit]) -> Iterator[ShardEdit]:
        """Pass edits on and count them."""
        for edit in edits:
            counts = {"added": len(edit.added), "changed": len(edit.changed), "removed": len(edit.removed)}
            self.counts[edit.number] = {name: count for name, count in counts.items() if count}
            self.overlays_reset = self.overlays_reset or edit.resets_overlays
            if edit.changed:
                self.changed[edit.number] = [each.key for each in edit.changed]
            yield edit

    def row_of(self, number: int, tar: list | None) -> dict:
        """Return the row of a shard; `tar` is its item of shards.json, None if the shard is removed."""
        row: dict = {"shard": filesystem.join(self.dest, f"{number:06d}.tar")}
        row |= {"samples": tar[1], "bytes": tar[2]} if tar else {"samples": 0, "bytes": 0}
        return row | (self.counts.get(number, {"kept": True}))

    def planned_rows(self) -> Iterator[dict]:
        """Yield a row per shard for --dry-run: shard, action (keep, rewrite or write), and counts."""
        for number in sorted(self.plan.bases.keys() | self.counts.keys()):
            action = "rewrite" if number in self.plan.bases else "write"
            action = action if number in self.counts else "keep"
            shard = filesystem.join(self.dest, f"{number:06d}.tar")
            yield {"shard": shard, "action": action} | self.counts.get(number, {})

    def messages(self) -> Iterator[str]:
        """Yield what changes, and what overlays need."""
        plan = self.plan
        gone = "removed" if plan.removed == "drop" else "kept although the input does not have them"
        kinds = [
            (plan.added, "added"),
            (plan.changed, "changed"),
            (plan.new_images, "with another image"),
            (plan.gone, gone),
        ]
        rows = [f"rows {what}: {found.count} ({found})" for found, what in kinds if found.count]
        old = [number for number in self.counts if number in plan.bases]
        new = [number for number in self.counts if number not in plan.bases]
        shards = [f"shards kept: {len(plan.bases) - len(old)}"]
        shards += [f"rewritten: {name_shards(old)}"] if old else []
        shards += [f"new: {name_shards(new)}"] if new else []
        yield f"{self.dest}: {'; '.join([*rows, ', '.join(shards)])}"
        found = [newest_version(self.dest, name) for name in list_overlays(self.dest)]
        overlays = [each for each in found if each]
        if overlays and (self.overlays_reset or new):
            kept = (
                f"the overlays of {self.dest} ({', '.join(each.name for each in overlays)}) keep the values"
            )
            if plan.added.count or plan.new_images.count:
                commands = ", ".join(dict.fromkeys(map(computing_command, overlays)))
                yield f"{kept} of unchanged images; compute those of the other images with {commands}"
            else:
                yield f"{kept} of the remaining images"
        yield from self._hidden_captions()

    def _hidden_captions(self) -> Iterator[str]:
        """Yield a message for each overlay whose captions replace those of changed rows."""
        for overlay in find_overlays(self.dest) if self.changed else ():
            if overlay.name == MEASURED:
                continue
            count = 0
            for number, keys in self.changed.items():
                lines = read_shard_index(overlay.folder, f"{number:06d}.tar") or [{}]
                covered = {line["key"] for line in lines[1:] if "captions" in line.get("fields", ())}
                count += len(covered.intersection(keys))
            if count:
                yield (
                    f"the overlay {overlay.name}@{overlay.version} has captions for {count} of the changed "
                    f"rows and still replaces theirs; `lumina shard overlay {self.dest} --remove "
                    f"{overlay.name}` deletes it"
                )


def name_shards(numbers: Iterable[int]) -> str:
    """Return shard numbers as text, such as "000000, 000003 to 000006"."""
    runs = groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0])
    ranges = [[number for _, number in run] for _, run in runs]
    words = [f"{each[0]:06d}" + (f" to {each[-1]:06d}" if len(each) > 1 else "") for each in ranges[:RANGES]]
    return ", ".join([*words, *(["..."] if len(ranges) > RANGES else [])])
