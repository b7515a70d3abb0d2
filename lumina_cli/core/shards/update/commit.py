"""Staging and commit of an update: the folder stays as it was until all of its new shards are written.

    update/000003.tar, 000003.index.jsonl   a rewritten or new shard
    update/000003.json                      its note, written after it: what `run_edit` returns
    update/rejects.jsonl                    the new rejects.jsonl, if any
    update/commit.json                      written when all shards are staged: from here on the update is
                                            completed by the next run, for any input

An interrupted run is resumed: a staged shard is used again if it is the result of the same edit. A process
that dies after commit.json is written leaves a folder without shards.json; the next run moves the other
files.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.io import filesystem
from lumina_cli.core.io.jsonl import parse_row
from lumina_cli.core.shards import manifest
from lumina_cli.core.shards.reader import TOTALS, dump_totals
from lumina_cli.core.shards.tar import index_path
from lumina_cli.core.shards.update.rejects import REJECTS, dump_rejects

COMMIT = "commit.json"
AT_ONCE = 16  # files of an object store that are moved at the same time


class Staging:
    """The folder `update` of a folder of shards."""

    def __init__(self, dest: str):
        self.dest, self.folder = dest, filesystem.join(dest, "update")

    def tar(self, number: int) -> str:
        """Return the path of a staged shard."""
        return filesystem.join(self.folder, f"{number:06d}.tar")

    def read(self, number: int, edit: str) -> dict | None:
        """Return the note of a staged shard; None if it is incomplete or the result of another edit."""
        place, tar = filesystem.join(self.folder, f"{number:06d}.json"), self.tar(number)
        try:
            note = parse_row(filesystem.read_file(place).decode(errors="replace").strip(), place)
            sizes = {tar: note["bytes"], index_path(tar): note["index"][1]} if note["samples"] else {}
            whole = all(filesystem.file_size(name) == size for name, size in sizes.items())
            return note if whole and note["edit"] == edit else None
        except (LuminaError, OSError, LookupError, TypeError):
            return None

    def write(self, note: dict) -> None:
        """Write the note of a staged shard."""
        place = filesystem.join(self.folder, f"{note['shard']:06d}.json")
        filesystem.write_file(place, json.dumps(note).encode() + b"\n", durable=False)

    def begin(self) -> None:
        """Remove what a killed process left half written."""
        filesystem.remove_partial(self.dest)
        filesystem.remove_partial(self.folder)

    def remove(self) -> None:
        """Remove the staged files, commit.json last."""
        names = [name for name in filesystem.list_sizes(self.folder) if name != COMMIT]
        filesystem.remove(self.folder, [*names, COMMIT] if filesystem.list_sizes(self.folder) else [])
        filesystem.remove_dir(self.folder)

    def discard(self) -> None:
        """Remove the staged files of an update that is not to be completed."""
        filesystem.remove(self.folder, [COMMIT] if filesystem.is_dir(self.folder) else [])
        self.remove()

    def commit(self, notes: Sequence[dict], totals: dict, rejects: list[dict], scores: list[str]) -> None:
        """Make the staged shards those of the folder.

        notes     of the staged shards; those without samples are removed from the folder
        totals    the new content of shards.json
        rejects   the new lines of rejects.jsonl
        scores    the names of the scores of all samples
        """
        if rejects:
            filesystem.write_file(filesystem.join(self.folder, REJECTS), dump_rejects(rejects))
        moves = [note["shard"] for note in notes if note["samples"]]
        gone = [note["shard"] for note in notes if not note["samples"]]
        plan = {"moves": moves, "gone": gone, "rejects": bool(rejects), "scores": scores, "totals": totals}
        data = json.dumps(plan, ensure_ascii=False).encode() + b"\n"
        filesystem.write_file(filesystem.join(self.folder, COMMIT), data)

    def complete(self, workers: int = 0) -> bool:
        """Complete a committed update; return whether there was one."""
        place = filesystem.join(self.folder, COMMIT)
        if not filesystem.is_file(place):
            return False
        plan = parse_row(filesystem.read_file(place).decode().strip(), place)
        filesystem.remove(self.dest, [TOTALS])  # no reader opens a folder that mixes old and new shards
        tars = [f"{number:06d}.tar" for number in plan["moves"]]
        with ThreadPoolExecutor(AT_ONCE if filesystem.is_url(self.dest) else 1) as pool:
            list(pool.map(self._move_shard, tars))
        gone = [f"{number:06d}.tar" for number in plan["gone"]]
        filesystem.remove(self.dest, [name for tar in gone for name in (tar, index_path(tar))])
        if plan["rejects"]:
            self._move(REJECTS)
        else:
            filesystem.remove(self.dest, [REJECTS])
        totals = plan["totals"]
        if totals["tars"]:
            places = [filesystem.join(self.dest, name) for name, *_ in totals["tars"]]
            manifest.write_manifest(
                filesystem.join(self.dest, manifest.NAME), places, sorted(plan["scores"]), workers
            )
        else:
            filesystem.remove(self.dest, [manifest.NAME])
        filesystem.write_file(filesystem.join(self.dest, TOTALS), dump_totals(totals))
        self.remove()
        filesystem.remove_partial(self.dest)
        return True

    def _move_shard(self, tar: str) -> None:
        self._move(index_path(tar))
        self._move(tar)

    def _move(self, name: str) -> None:
        """Move a staged file to its place, unless an interrupted process did."""
        if filesystem.is_file(filesystem.join(self.folder, name)):
            filesystem.move(filesystem.join(self.folder, name), filesystem.join(self.dest, name))
