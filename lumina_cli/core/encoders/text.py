"""Text features: what Gemma-2 knows of a prompt just before its last layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.gemma.tokenization_gemma import GemmaTokenizer
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model
from transformers.utils import logging

MAX_TOKENS = 256


class TextEncoder:
    """A Gemma-2 and its tokenizer, from the text_encoder/ and tokenizer/ of a model folder.

    The features are `hidden_states[-2]`, the input of the last layer, before the final norm: neither is kept.
    Attention runs in transformers' eager form, the one that applies Gemma's soft cap.
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int = MAX_TOKENS,
    ):
        folder = Path(folder)
        self.max_tokens = max_tokens
        self.tokenizer = GemmaTokenizer.from_pretrained(
            folder / "tokenizer", padding_side="right", add_bos_token=True, local_files_only=True
        )
        with without_progress_bar():
            model = Gemma2Model.from_pretrained(
                folder / "text_encoder",
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
            )
        self.model = without_last_layer(model).to(device).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features (B, M, T) and a mask (B, M), True where a token is real; real ones come first.

        M is the longest prompt's number of tokens. Only the first `max_tokens` of a prompt are read (see
        `dropped`); the empty prompt is one token, the beginning of a sequence.
        """
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        features = self.model(**tokens, use_cache=False).last_hidden_state
        return features, tokens["attention_mask"].bool()

    def dropped(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens at the end of each prompt `encode` does not read."""
        ids = self.tokenizer(list(prompts), verbose=False)["input_ids"]
        return [max(0, len(tokens) - self.max_tokens) for tokens in ids]


def without_last_layer(model: Gemma2Model) -> Gemma2Model:
    """Cut the last layer and the final norm off a Gemma-2, in place."""
    model.config.num_hidden_layers -= 1
    model.layers = model.layers[:-1]
    model.norm = nn.Identity()
    return model


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing its own bars on stderr inside the block."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
