"""Cache of text features: a string that several images share is encoded once."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CAPACITY = 256  # strings; one of 256 tokens takes 1.2 MB with the 2.6B model

Encode = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


class TextCache:
    """The output of `encode` for the CAPACITY most recently used strings.

    Each string is encoded in a batch of its own, so its features are bit-identical regardless of the rest of
    the batch.
    """

    def __init__(self, encode: Encode):
        self._encode = encode
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return features (B, M, T) and a mask (B, M), True where a token is real; real tokens come first."""
        features_of = {text: self._features(text) for text in dict.fromkeys(texts)}
        while len(self.kept) > CAPACITY:  # only now: one call may need more strings than the cache keeps
            self.kept.popitem(last=False)
        features = pad_sequence([features_of[text] for text in texts], batch_first=True)
        lengths = torch.tensor([len(features_of[text]) for text in texts], device=features.device)
        return features, torch.arange(features.shape[1], device=features.device) < lengths[:, None]

    def _features(self, text: str) -> Tensor:
        """Features (M, T) of one string, from the cache if it has them."""
        if text not in self.kept:
            self.kept[text] = self._encode([text])[0][0]
        self.kept.move_to_end(text)
        return self.kept[text]
