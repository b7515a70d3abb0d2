"""int8 quantization of the large linear layers of a Next-DiT, for inference.

Every output channel of a weight W has its own scale, max|W| / 127. With `int8`, each input token is quantized
dynamically as well, and the matmul runs on integers; with `int8-weights`, the input keeps its dtype
(weight-only quantization). Embedders, modulation and the final layer keep their dtype.

T tokens, i inputs and o outputs of a layer.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lumina_cli.core.errors import LuminaError, MissingDependency
from lumina_cli.core.nextdit.model import NextDiT
from lumina_cli.core.registry import QUANTIZERS

LEVELS = 127
ZERO = 128  # the zero point of the unsigned integers that oneDNN multiplies
LAYERS = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
TOKENS = 64  # tokens quantized at a time, so that intermediate results stay in the cache
CHANNELS = 512  # output channels dequantized at a time


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight (o, i): int8 levels (o, i), and the float32 scale of each row (o,)."""
    wide = weight.detach().float()
    scale = wide.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    return (wide / scale[:, None]).round_().to(torch.int8), scale


class QuantizedLinear(nn.Module):
    """Base of the layers in QUANTIZERS: built from a linear layer without bias, which it replaces."""

    @classmethod
    def check(cls, dtype: torch.dtype, device: torch.device) -> None:
        """Check that layers of this kind run on inputs of `dtype` on `device`.

        Raises:
            LuminaError: if the dtype is not supported.
            MissingDependency: if this torch lacks an operation.
        """


class Int8Weights(QuantizedLinear):
    """A linear layer with an int8 weight, dequantized block by block in every call."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        levels, scale = quantize_rows(layer.weight)
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        out = x.new_empty((*x.shape[:-1], len(self.levels)))
        for start in range(0, len(self.levels), CHANNELS):
            block = slice(start, start + CHANNELS)
            out[..., block] = F.linear(x, self.levels[block].to(x.dtype)) * self.scale[block].to(x.dtype)
        return out


class LinearInt8(QuantizedLinear):
    """A linear layer that multiplies an int8 weight with inputs quantized to int8 token by token.

    On a CPU the weight is stored in oneDNN's layout, so the layer cannot move to another device.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        levels, scale = quantize_rows(layer.weight)
        self.register_buffer("scale", scale)
        self.on_cpu = levels.device.type == "cpu"
        if self.on_cpu:
            self.packed = torch.ops.onednn.qlinear_prepack(levels, None)
            self.zeros = torch.zeros(len(levels), dtype=torch.int64)
        else:
            self.register_buffer("levels", levels)

    @classmethod
    def check(cls, dtype: torch.dtype, device: torch.device) -> None:
        if dtype == torch.float16 and device.type == "cpu":
            raise LuminaError("int8 on a CPU needs a model in bfloat16 or float32, not float16")
        if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
            raise MissingDependency(
                f"int8 needs a torch with oneDNN; torch {torch.__version__} has none; use int8-weights"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        flat = x.flatten(0, -2)
        levels, scale = self._quantize(flat)
        if self.on_cpu:
            y = torch.ops.onednn.qlinear_pointwise(
                levels, 1.0, ZERO, self.packed, self.scale, self.zeros, None, 1.0, 0, x.dtype, "none", [], ""
            )
            y.mul_(scale.to(x.dtype))
        else:
            y = (torch._int_mm(levels, self.levels.t()) * self.scale * scale).to(x.dtype)
        return y.unflatten(0, x.shape[:-1])

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize x (T, i): levels (T, i), with zero point ZERO on a CPU, and float32 scales (T, 1)."""
        scales = x.new_empty((len(x), 1), dtype=torch.float32)
        out = x.new_empty(x.shape, dtype=torch.uint8 if self.on_cpu else torch.int8)
        step = TOKENS if self.on_cpu else max(1, len(x))
        for start in range(0, len(x), step):
            tokens = slice(start, start + step)
            wide = x[tokens].float()
            largest = wide.abs().amax(dim=-1, keepdim=True)
            scale = largest.clamp_(min=torch.finfo(torch.float32).tiny * LEVELS).div_(LEVELS)
            levels = (wide / scale).round_().to(torch.int8)
            if self.on_cpu:  # adding 128 flips the highest bit; rounding to int8 first is much faster
                torch.bitwise_xor(levels.view(torch.uint8), ZERO, out=out[tokens])
            else:
                out[tokens] = levels
            scales[tokens] = scale
        return out, scales


def check_quantizer(name: str) -> None:
    """Check that `name` is a key of QUANTIZERS.

    Raises:
        UsageError: if it is not.
    """
    QUANTIZERS.load(name)


@torch.no_grad()
def quantize(model: NextDiT, kind: str = "int8") -> NextDiT:
    """Replace the large linear layers of all blocks, in place, by quantized ones; returns the model.

    The model can then be used for inference, but neither trained nor saved.

    Args:
        model: the network, with all weights in memory
        kind: a key of QUANTIZERS

    Raises:
        UsageError: if `kind` is not a key of QUANTIZERS.
        LuminaError: if the model is quantized already or streamed, or its dtype is not supported.
        MissingDependency: if this torch lacks the int8 matmul.
    """
    layer_type = QUANTIZERS.load(kind)
    layer_type.check(model.dtype, model.x_embedder.weight.device)
    for block in (*model.noise_refiner, *model.context_refiner, *model.layers):
        for name in LAYERS:
            parent, _, child = name.partition(".")
            layer = getattr(getattr(block, parent), child)
            if not isinstance(layer, nn.Linear):
                state = "quantized already" if isinstance(layer, QuantizedLinear) else "not fully in memory"
                raise LuminaError(f"the model is {state}; its layers cannot be quantized")
            setattr(getattr(block, parent), child, layer_type(layer))
    return model
