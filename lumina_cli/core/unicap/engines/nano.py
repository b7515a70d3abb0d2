"""Engine of the bundled captioner, which supports nano's synthetic scenes and the plain instructions only.

It computes in float32 on blocks of a fixed shape, eight prompts of one length, so captions do not depend on
the batch, not even through rounding.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.nn.functional import pad

from lumina_cli.core.registry import ASSETS
from lumina_cli.core.unicap.checks.languages import LANGS
from lumina_cli.core.unicap.engines import transformers
from lumina_cli.core.unicap.protocol import Answer, Question

FOLDER = ASSETS / "nano" / "captioner"
BLOCK = 8  # prompts
STEP = 16  # tokens; prompts without an image are padded to a multiple of it


class Captioner(transformers.Captioner):
    """The bundled captioner, or another one of its kind in the folder `model`."""

    structured = None
    heeds_hints = False
    domain = "synthetic"
    languages = tuple(LANGS)
    own_check = "nano"
    takes_instructions = False

    def __init__(self, model: str | None = None, device: str | None = None):
        super().__init__(str(model or FOLDER), device)
        self.found = None
        self.model.float()

    def _groups(self, questions: Sequence[Question]) -> list[list[int]]:
        """Group the questions of a call: those of equal length and token limit."""
        groups: dict[tuple, list[int]] = {}
        for number, question in enumerate(questions):
            size = len(self.tokenizer(question.text, add_special_tokens=False).input_ids)
            length = size if question.image else -(-(size + 2) // STEP)  # with start and answer tokens
            groups.setdefault((question.image is None, question.max_tokens, length), []).append(number)
        return [group[i : i + BLOCK] for group in groups.values() for i in range(0, len(group), BLOCK)]

    def _generate(self, questions: Sequence[Question]) -> list[Answer]:
        filled = [*questions, *[replace(questions[0], max_tokens=1)] * (BLOCK - len(questions))]
        return super()._generate(filled)[: len(questions)]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """Return model inputs; those without images are padded on the left to a multiple of STEP."""
        inputs = super()._inputs(questions)
        if questions[0].image is None:
            missing = -inputs["input_ids"].shape[1] % STEP
            inputs["input_ids"] = pad(inputs["input_ids"], (missing, 0), value=self.tokenizer.pad_token_id)
            inputs["attention_mask"] = pad(inputs["attention_mask"], (missing, 0))
        return inputs
