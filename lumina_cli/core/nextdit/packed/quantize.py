"""The large linear layers of a Next-DiT in 8 bits, for drawing: less memory, and faster products.

Every output channel of a weight W has its own scale, max|W| / 127. With `int8` every token of the input has
one too, taken when it comes, and the product is one of whole numbers; with `int8-weights` the input stays as
it is. Embedders, modulation and the final layer keep their dtype.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.nextdit.model import NextDiT
from lumina_cli.core.registry import did_you_mean

LEVELS = 127
ZERO = 128  # what 0 is among the unsigned numbers that the processor multiplies
LAYERS = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
TOKENS = 64  # at a time, so that what is made of them stays in the cache
CHANNELS = 512


def to_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a weight (o, i) as int8 and the scale of each (o,) in float32."""
    wide = weight.detach().float()
    scale = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    return (wide / scale[:, None]).round_().to(torch.int8), scale


class Int8Weights(nn.Module):
    """A linear layer without bias whose weight is int8; it is widened block by block as it is used."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        levels, scale = to_levels(layer.weight)
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) -> (..., o)."""
        out = x.new_empty((*x.shape[:-1], len(self.levels)))
        for start in range(0, len(self.levels), CHANNELS):
            block = slice(start, start + CHANNELS)
            out[..., block] = F.linear(x, self.levels[block].to(x.dtype)) * self.scale[block].to(x.dtype)
        return out


class LinearInt8(nn.Module):
    """A linear layer without bias that multiplies int8 weights by inputs rounded to 8 bits, token by token.

    On a CPU the weight is kept in the order that oneDNN reads, so the layer cannot move to another device.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        levels, scale = to_levels(layer.weight)
        self.register_buffer("scale", scale)
        self.on_cpu = levels.device.type == "cpu"
        if self.on_cpu:
            self.packed = torch.ops.onednn.qlinear_prepack(levels, None)
            self.zeros = torch.zeros(len(levels), dtype=torch.int64)
        else:
            self.register_buffer("levels", levels)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., i) -> (..., o)."""
        flat = x.flatten(0, -2)
        numbers, scale = self._round(flat)
        if self.on_cpu:
            y = torch.ops.onednn.qlinear_pointwise(
                numbers, 1.0, ZERO, self.packed, self.scale, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
            )
            y.mul_(scale.to(x.dtype))
        else:
            y = (torch._int_mm(numbers, self.levels.t()) * self.scale * scale).to(x.dtype)
        return y.unflatten(0, x.shape[:-1])

    def _round(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (T, i) as whole numbers, and the scale of each token (T, 1)."""
        scales = x.new_empty((len(x), 1), dtype=torch.float32)
        numbers = x.new_empty(x.shape, dtype=torch.uint8 if self.on_cpu else torch.int8)
        step = TOKENS if self.on_cpu else max(1, len(x))
        for start in range(0, len(x), step):
            part = slice(start, start + step)
            wide = x[part].float()
            top = wide.abs().amax(dim=-1, keepdim=True)
            scale = top.clamp_(min=torch.finfo(torch.float32).tiny * LEVELS).div_(LEVELS)
            levels = (wide / scale).round_().to(torch.int8)
            if self.on_cpu:  # adding 128 flips the highest bit; torch rounds to signed bytes much faster
                torch.bitwise_xor(levels.view(torch.uint8), ZERO, out=numbers[part])
            else:
                numbers[part] = levels
            scales[part] = scale
        return numbers, scales


KINDS = {"int8": LinearInt8, "int8-weights": Int8Weights}


def check_kind(kind: str) -> None:
    """Raise UsageError where `kind` is none of KINDS."""
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS) or f"; choose from {', '.join(KINDS)}"
        raise UsageError(f"unknown quantisation {kind!r}{hint}")


@torch.no_grad()
def quantize(model: NextDiT, kind: str = "int8") -> NextDiT:
    """Replace, in place, the large layers of all blocks by 8-bit ones of `kind`, a key of KINDS.

    The result draws; it neither trains nor can be saved. UsageError for another kind, LuminaError where the
    model is quantised already, MissingPart where this torch has no 8-bit product.
    """
    check_kind(kind)
    if kind == "int8" and model.dtype == torch.float16 and model.x_embedder.weight.device.type == "cpu":
        raise LuminaError("int8 on a CPU needs a model in bfloat16 or float32, not float16")
    if kind == "int8" and not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise MissingDependency(
            f"int8 needs a torch with oneDNN; torch {torch.__version__} has none: int8-weights"
        )
    for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
        for name in LAYERS:
            part, _, last = name.partition(".")
            layer = getattr(getattr(block, part), last)
            if not isinstance(layer, nn.Linear):
                what = "quantised already" if type(layer) in KINDS.values() else "not whole in memory"
                raise LuminaError(f"the model is {what}: its layers cannot be made 8-bit")
            setattr(getattr(block, part), last, KINDS[kind](layer))
    return model
