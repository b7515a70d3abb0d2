"""Text features: what Gemma-2 knows of a prompt just before its last layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model
from transformers.utils import logging

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS, Tokens
from lumina_cli.core.weights.files import raise_misfit


class TextEncoder:
    """A Gemma-2 and its tokenizer, from the text_encoder/ and tokenizer/ of a model folder.

    The features are `hidden_states[-2]`, the input of the last layer, before the final norm: neither is kept.
    Attention runs in transformers' eager form, the one that applies Gemma's soft cap. LuminaError names the
    tensors that are missing, unexpected or misshaped, if any.
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
        self.tokens = Tokens(folder, max_tokens)
        self.tokenizer = self.tokens.tokenizer
        model = read_gemma(folder / "text_encoder", dtype)
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
        return self.tokens.dropped(prompts)


def read_gemma(folder: Path, dtype: torch.dtype) -> Gemma2Model:
    """The Gemma-2 in `folder`; LuminaError where its weights are not those of its config.

    What `without_last_layer` cuts off may be missing, and the output layer of a whole language model present.
    """
    with quiet_transformers():
        model, found = Gemma2Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # so that they are told here, together with what is missing
            output_loading_info=True,
        )
    cut = (f"layers.{len(model.layers) - 1}.", "norm.")
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(cut))
    unexpected = sorted(set(found["unexpected_keys"]) - {"lm_head.weight"})
    raise_misfit(str(folder), missing, unexpected, sorted(found["mismatched_keys"]))
    return model


def without_last_layer(model: Gemma2Model) -> Gemma2Model:
    """Cut the last layer and the final norm off a Gemma-2, in place."""
    model.config.num_hidden_layers -= 1
    model.layers = model.layers[:-1]
    model.norm = nn.Identity()
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from drawing bars and reports of tensors on stderr inside the block."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
