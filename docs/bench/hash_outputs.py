"""Hash everything that a fixed list of `lumina` commands writes, to prove that a change moves no number.

    python docs/bench/hash_outputs.py --tree OLD --out old.txt
    python docs/bench/hash_outputs.py --tree NEW --out new.txt
    python docs/bench/hash_outputs.py --compare old.txt new.txt

The commands of `hashes/commands.txt` run one after another in a fresh temporary folder, each in a process of
its own, with the package of `--tree` (default: the repository of this script). Each line of the output is an
artefact: a hash, the id of a command, and a file that the command wrote with the aspect that was hashed:

    <sha256>  sample-default  images/default/00000-a-red-car-s7.png#pixels

`stdout` is what the command printed, `exit-code` its exit code (zero-padded, instead of a hash), `#removed` a
file that it deleted. Messages on stderr are not hashed. `hashes/artefacts.py` documents which fields of rows
are left out because they differ between runs or contain prose. `--compare` exits with 1 and names every
artefact that differs. It ignores the photographs if only one of the two runs had them (`hashes/inputs.py`).

Compare only runs of one machine and one Python environment, because float arithmetic differs between
processors and between versions of torch. `--keep DIR` runs in DIR and leaves it there: DIR/.hashed has the
text behind each hash, so that `diff -r` of two such folders shows what changed. DIR/.log has the messages.

A run takes about eight minutes on one core.
"""

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from hashes.artefacts import Neutral, artefacts_of, stdout_of
from hashes.commands import Command, read_commands
from hashes.inputs import write_inputs

ROOT = Path(__file__).resolve().parents[2]
STEPS = Path(__file__).resolve().parent / "hashes" / "steps.py"
LIMIT = 600  # seconds for one command
DATED = re.compile(r"/[0-9a-f]{16}-(?=\d+/)")  # a folder whose name depends on the times of files
OPTIONAL = "photographs-"  # commands that run only if a package with sample photographs is installed
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "COLUMNS": "100",
    "NO_COLOR": "1",
    "HF_HUB_OFFLINE": "1",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
    "CUDA_VISIBLE_DEVICES": "",
}


def fixed_environment(tree: Path, home: Path) -> dict[str, str]:
    """Return the environment of every command: fixed values, a home folder of its own, and PYTHONPATH."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return kept | FIXED | {"HOME": str(home), "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def check_tree(tree: Path, environment: dict[str, str]) -> None:
    """Exit unless `import lumina_cli` finds the package of `tree`."""
    command = [sys.executable, "-c", "import lumina_cli; print(lumina_cli.__file__)"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/").stdout.strip()
    if not Path(found or "/").is_relative_to(tree):
        sys.exit(f"{tree} does not contain lumina_cli; import finds {found or 'nothing'}")


def find_state(work: Path) -> dict[Path, tuple[int, int, int]]:
    """Return what identifies the present content of each file in `work`, except hidden ones at the top."""
    state = {}
    for path in sorted(work.rglob("*")):
        if path.is_file() and not path.relative_to(work).parts[0].startswith("."):
            status = path.stat()
            state[path.relative_to(work)] = status.st_ino, status.st_size, status.st_mtime_ns
    return state


class Runner:
    """Runs commands in one folder and hashes what each of them writes."""

    def __init__(self, tree: Path, work: Path, keep: bool):
        self.work, self.keep = work, keep
        self.log, self.hashed = work / ".log", work / ".hashed"
        (work / ".home").mkdir()
        self.log.mkdir()
        self.environment = fixed_environment(tree, work / ".home")
        self.neutral = Neutral({str(work): "WORK", str(tree): "TREE"})

    def run(self, command: Command) -> Iterator[str]:
        """Run one command; yield a line per artefact."""
        before = find_state(self.work)
        words = [str(STEPS)] if command.program == "python" else ["-m", "lumina_cli"]
        source = (self.work / command.stdin).read_bytes() if command.stdin else b""
        done = subprocess.run(
            [sys.executable, *words, *command.words],
            cwd=self.work, env=self.environment, input=source, capture_output=True, timeout=LIMIT,
        )  # fmt: skip
        (self.log / f"{command.id}.txt").write_bytes(done.stderr)
        yield f"{done.returncode:064d}  {command.id}  exit-code"
        if command.only_code:
            return
        if command.stdout:
            (self.work / command.stdout).write_bytes(done.stdout)
        elif done.stdout:
            yield self._line(command, "stdout", stdout_of(done.stdout, self._neutral(command)))
        yield from self._files(command, before)

    def _files(self, command: Command, before: dict) -> Iterator[str]:
        after = find_state(self.work)
        for path in sorted(before.keys() - after.keys()):
            yield f"{0:064d}  {command.id}  {path}#removed"
        for path in sorted(path for path, state in after.items() if before.get(path) != state):
            for aspect, text in artefacts_of(self.work / path, self._neutral(command)):
                yield self._line(command, DATED.sub("/*-", f"{path}#{aspect}"), text)

    def _neutral(self, command: Command) -> Neutral:
        return self.neutral.of_bench() if command.id.startswith("bench-") else self.neutral

    def _line(self, command: Command, name: str, text: str) -> str:
        if self.keep:
            path = self.hashed / command.id / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return f"{hashlib.sha256(text.encode()).hexdigest()}  {command.id}  {name}"


def hash_all(tree: Path, work: Path, keep: bool, only: list[str] | None) -> Iterator[str]:
    """Write the inputs, run the commands, and yield a line per artefact; report progress on stderr."""
    photographs = write_inputs(work)
    runner = Runner(tree, work, keep)
    check_tree(tree, runner.environment)
    commands = [one for one in read_commands() if photographs or not one.id.startswith(OPTIONAL)]
    commands = [one for one in commands if only is None or one.id in only]
    for number, command in enumerate(commands, start=1):
        start = time.perf_counter()
        lines = list(runner.run(command))
        code, seconds = int(lines[0][:64]), time.perf_counter() - start
        print(f"{number}/{len(commands)} {command.id}: exit {code}, {seconds:.1f} s", file=sys.stderr)
        yield from lines


def read_hashes(path: Path) -> dict[tuple[str, str], str]:
    """Return {(command, artefact): hash} of a file that `--out` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    parts = [line.split("  ", 2) for line in lines if line and not line.startswith("#")]
    return {(command, name): digest for digest, command, name in parts}


def compare(old: Path, new: Path) -> int:
    """Print every artefact that differs; return 1 if there is one, else 0."""
    first, second = read_hashes(old), read_hashes(new)
    differing = 0
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) == second.get(key):
            continue
        if key[0].startswith(OPTIONAL) and (key[0], "exit-code") not in first.keys() & second.keys():
            continue
        differing += 1
        kind = "differs" if key in first and key in second else f"only in {old if key in first else new}"
        codes = f" ({int(first[key])}, then {int(second[key])})" if _has_codes(key, first, second) else ""
        print(f"{key[0]}  {key[1]}: {kind}{codes}")
    print(f"{differing} of {len(first.keys() | second.keys())} artefacts differ", file=sys.stderr)
    return int(differing > 0)


def _has_codes(key: tuple[str, str], first: dict, second: dict) -> bool:
    return key[1] == "exit-code" and key in first and key in second


def main() -> None:
    """Run the commands and print their hashes, or compare two files of hashes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write the lines to (default: stdout)")
    parser.add_argument("--tree", type=Path, default=ROOT, help="repository whose package to run")
    parser.add_argument("--keep", type=Path, help="new folder to run in and to leave for inspection")
    parser.add_argument("--only", nargs="+", help="ids of commands to run, with those that they build upon")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="compare two files")
    options = parser.parse_args()
    if options.compare:
        sys.exit(compare(*options.compare))
    with tempfile.TemporaryDirectory(prefix="lumina-hashes-") as folder:
        work = options.keep or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            parser.error(f"{work} is not empty")
        lines = list(hash_all(options.tree.resolve(), work.resolve(), options.keep is not None, options.only))
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
