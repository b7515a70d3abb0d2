"""Reads the fixed list of commands, commands.txt."""

import shlex
from dataclasses import dataclass
from pathlib import Path

ONLY_CODE = "bad-"  # prefix of commands whose exit code alone is compared


@dataclass(frozen=True)
class Command:
    """One command: its words after the program, and the files for its stdin and stdout."""

    id: str
    program: str  # "lumina", or "python" for a step of steps.py
    words: tuple[str, ...]
    stdin: str | None = None
    stdout: str | None = None

    @property
    def only_code(self) -> bool:
        """Whether only the exit code counts."""
        return self.id.startswith(ONLY_CODE)


def read_commands() -> list[Command]:
    """Return the commands in their order."""
    text = Path(__file__).with_name("commands.txt").read_text(encoding="utf-8")
    return [read_command(line) for line in text.splitlines() if line and not line.startswith("#")]


def read_command(line: str) -> Command:
    """Return the command of one line."""
    name, *words = shlex.split(line)
    files: dict[str, str | None] = {"<": None, ">": None}
    if len(words) > 1 and words[-2] in files:
        *words, mark, path = words
        files[mark] = path
    program = "python" if words[0] == "python" else "lumina"
    return Command(name, program, tuple(words[program == "python" :]), files["<"], files[">"])
