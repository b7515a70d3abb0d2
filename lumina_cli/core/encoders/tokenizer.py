"""The tokenizer of a model folder: cheap to load, and enough to say what the text encoder will read."""

from collections.abc import Sequence
from pathlib import Path

MAX_TOKENS = 256


class Tokens:
    """The tokenizer in the tokenizer/ of a model folder; `longest` tokens of a prompt are read."""

    def __init__(self, folder: str | Path, longest: int = MAX_TOKENS):
        # here, not above: its package takes a second that a wrong word on the command line need not wait for
        from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

        self.longest = longest
        self.tokenizer = GemmaTokenizer.from_pretrained(
            Path(folder) / "tokenizer", padding_side="right", add_bos_token=True, local_files_only=True
        )

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has, with those that are not read."""
        return [len(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]

    def dropped(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens at the end of each prompt are not read."""
        return [max(0, count - self.longest) for count in self.count(prompts)]

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that is not read, as text; "" where all of it is."""
        ids = self.tokenizer([prompt], verbose=False)["input_ids"][0]
        return self.tokenizer.decode(ids[self.longest :]).strip()
