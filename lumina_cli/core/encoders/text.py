"""Text features: the hidden states of Gemma-2 before its last layer.

B prompts, M tokens, T width of the features.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model
from transformers.utils import logging

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS, PromptTokenizer
from lumina_cli.core.weights.config_check import check_config
from lumina_cli.core.weights.files import raise_misfit


class TextEncoder:
    """A Gemma-2 and its tokenizer, from the text_encoder/ and tokenizer/ of a model folder.

    The features are `hidden_states[-2]`, the input of the last layer; that layer and the final norm are
    removed. Attention uses transformers' eager implementation, which applies Gemma's logit soft cap.

    max_tokens   tokens after which prompts are truncated

    Raises:
        LuminaError: if tensors are missing, unexpected or misshaped; the message names them.
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
        self.tokens = PromptTokenizer(folder, max_tokens)
        self.tokenizer = self.tokens.tokenizer
        model = load_gemma(folder / "text_encoder", dtype)
        self.model = without_last_layer(model).to(device).eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """T, the width of the features."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the features of full prompts, (B, M, T), and a mask (B, M), True for real tokens.

        Real tokens come first; M is the length of the longest prompt after truncation to `max_tokens`. The
        empty prompt is one token, BOS.
        """
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        features = self.model(**tokens, use_cache=False).last_hidden_state
        return features, tokens["attention_mask"].bool()

    def dropped(self, prompts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each prompt that `encode` truncates."""
        return self.tokens.dropped(prompts)


def load_gemma(folder: Path, dtype: torch.dtype) -> Gemma2Model:
    """Return the Gemma-2 in `folder`.

    What `without_last_layer` removes may be missing, and the output layer of a language model present.

    Raises:
        LuminaError: if the weights do not fit the config.
    """
    check_config(folder)
    with quiet_transformers():
        model, found = Gemma2Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # raise_misfit reports them together with missing tensors
            output_loading_info=True,
        )
    cut = (f"layers.{len(model.layers) - 1}.", "norm.")
    missing = sorted(name for name in found["missing_keys"] if not name.startswith(cut))
    unexpected = sorted(set(found["unexpected_keys"]) - {"lm_head.weight"})
    raise_misfit(str(folder), missing, unexpected, sorted(found["mismatched_keys"]))
    return model


def without_last_layer(model: Gemma2Model) -> Gemma2Model:
    """Remove the last layer and the final norm of a Gemma-2, in place; returns it."""
    model.config.num_hidden_layers -= 1
    model.layers = model.layers[:-1]
    model.norm = nn.Identity()
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Disable the progress bars and load reports of transformers inside the block."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
