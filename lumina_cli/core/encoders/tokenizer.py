"""The tokenizer of a model folder: loads without the text encoder, and reports what is truncated."""

from collections.abc import Sequence
from pathlib import Path

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.weights.json_files import read_json, summarize_error

MAX_TOKENS = 256


class PromptTokenizer:
    """The Gemma tokenizer of a model folder, with the length at which prompts are truncated.

    max_tokens   tokens of a prompt that the text encoder receives
    tokenizer    the tokenizer of transformers

    Raises:
        LuminaError: if a file of the tokenizer is damaged; the message names it.
    """

    def __init__(self, folder: str | Path, max_tokens: int = MAX_TOKENS):
        # imported here, since it takes a second that the check of a command line should not wait for
        from transformers.models.gemma.tokenization_gemma import GemmaTokenizer

        self.max_tokens = max_tokens
        place = Path(folder) / "tokenizer"
        try:
            self.tokenizer = GemmaTokenizer.from_pretrained(
                place, padding_side="right", add_bos_token=True, local_files_only=True
            )
        except Exception as error:  # transformers and tokenizers raise plain exceptions
            raise _name_damage(place, error) from error

    def count(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each prompt, including those that are truncated."""
        return [len(ids) for ids in self.tokenizer(list(prompts), verbose=False)["input_ids"]]

    def dropped(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each prompt that are truncated."""
        return [max(0, count - self.max_tokens) for count in self.count(prompts)]

    def truncated_text(self, prompt: str) -> str:
        """Return the end of a prompt that is truncated, as text; "" if nothing is."""
        ids = self.tokenizer([prompt], verbose=False)["input_ids"][0]
        return self.tokenizer.decode(ids[self.max_tokens :]).strip()


def _name_damage(folder: Path, error: Exception) -> LuminaError:
    """Return the error of a tokenizer: of its file with invalid JSON, else of its main file."""
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except LuminaError as damage:
            return damage
    main = next(
        (folder / name for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file()), folder
    )
    return LuminaError(f"{main} is not a tokenizer: {summarize_error(error)}")
