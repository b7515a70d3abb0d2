"""Notes on prompts: syntax of other programs, words that nano never saw, prompts that are too long."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lumina_cli.core.encoders.prompt_syntax import find_foreign_syntax, remove_foreign_syntax
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.registry import ASSETS

Note = Callable[[str], None]
MAX_EXAMPLES = 12  # words or parts of prompts in one note


@dataclass
class _Finding:
    """What a note lists: examples, and the number of prompts that contain some."""

    examples: dict[str, None] = field(default_factory=dict)
    prompts: int = 0

    def add(self, found: Iterable[str]) -> None:
        if found:
            self.examples |= dict.fromkeys(found)
            self.prompts += 1

    def describe(self) -> str:
        shown = list(self.examples)[:MAX_EXAMPLES]
        more = f" and {len(self.examples) - len(shown)} more" if len(self.examples) > len(shown) else ""
        return f"{', '.join(shown)}{more} (in {self.prompts} prompt{'s' * (self.prompts != 1)})"


class PromptNotes:
    """Collects what is remarkable in the prompts of a run and reports each kind in one note.

    `report` is called when the first rows are read and at the end of the run, so that a short run has its
    notes before it starts to generate, and a long one has at most two notes of a kind.
    """

    def __init__(self, model: ModelFolder, note: Note):
        self.note = note
        self.is_nano = model.folder == ASSETS / "nano"  # a run folder may have learned other words
        self.truncated: dict[str, set[int]] = {}  # "prompt" or "negative prompt" -> indexes of rows
        self._clear()

    def watch(self, rows: Iterable[dict]) -> Iterator[dict]:
        """Yield the rows unchanged and examine their prompts."""
        for row in rows:
            self.add(row["prompt"])
            yield row

    def add(self, prompt: str) -> None:
        """Examine a prompt."""
        self.syntax.add(find_foreign_syntax(prompt))
        self.prefixed += "<Prompt Start>" in prompt
        if self.is_nano:
            from lumina_cli.core.nano.vocabulary import find_unseen_words

            self.unseen.add(find_unseen_words(remove_foreign_syntax(prompt)))

    def add_truncated(self, index: int, kind: str, lost: int) -> None:
        """Note that the text of row `index` lost its last tokens: the first time by row, then by number."""
        rows = self.truncated.setdefault(kind, set())
        if not rows:
            self.note(f"row {index + 1}: the {kind} is too long; its last {lost} tokens were truncated")
        rows.add(index)

    def finish(self) -> None:
        """Pass on the notes since the last report, and the number of further rows that were truncated."""
        self.report()
        for kind, rows in self.truncated.items():
            if len(rows) > 1:
                self.note(f"the {kind}s of {len(rows)} rows were too long; the rows contain the lost tokens")

    def report(self) -> None:
        """Pass on a note for each kind of finding since the last report."""
        if self.syntax.prompts:
            self.note(f"syntax of other programs is taken as plain words: {self.syntax.describe()}")
        if self.unseen.prompts:
            self.note(f"words that nano never saw in training: {self.unseen.describe()}")
        if self.prefixed:
            count = "1 prompt contains" if self.prefixed == 1 else f"{self.prefixed} prompts contain"
            self.note(f"{count} <Prompt Start>, which follows the system prompt already; add --system empty")
        self._clear()

    def _clear(self) -> None:
        self.syntax, self.unseen, self.prefixed = _Finding(), _Finding(), 0
