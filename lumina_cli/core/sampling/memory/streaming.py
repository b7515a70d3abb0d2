"""Streaming weights: matrices are read from their file for the block that runs, and dropped for the next."""

import re
from collections.abc import Callable, Collection
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2Model, Gemma2RotaryEmbedding

from lumina_cli.core.encoders.text import TextEncoder, quiet_transformers
from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.nextdit import NextDiT
from lumina_cli.core.nextdit.convert import (
    COMFYUI_PREFIX,
    config_from_diffusers,
    detect_dialect,
    empty_model,
    from_any,
    to_diffusers,
)
from lumina_cli.core.nextdit.lora.merge import LoraStack
from lumina_cli.core.weights.config_check import check_config
from lumina_cli.core.weights.files import check_state_dict, raise_misfit
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights

Read = Callable[[str], Tensor]
BLOCK = re.compile(r"\w+\.\d+\.")


class BlockWindow:
    """The matrices of one block in memory; they are dropped when a matrix of another block is read."""

    def __init__(self, read: Read):
        self.read = read
        self.block = ""
        self.kept: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        """Return the weight `name`, on the device and in the dtype of the model."""
        if (block := block_of(name)) != self.block:
            self.kept.clear()
            self.block = block
        if name not in self.kept:
            self.kept[name] = self.read(name)
        return self.kept[name]


class StreamedLinear(nn.Module):
    """A linear layer whose weight is read through a window on each access."""

    def __init__(self, name: str, window: BlockWindow, bias: nn.Parameter | None):
        super().__init__()
        self.name, self.window, self.bias = name, window, bias

    @property
    def weight(self) -> Tensor:
        """The weight (outputs, inputs)."""
        return self.window.get(self.name)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class StreamedEmbedding(nn.Module):
    """An embedding whose table is memory-mapped: only the pages of the tokens in use are read."""

    def __init__(self, read: Callable[[], Tensor], scale: float, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.read, self.dtype, self.device = read, dtype, device
        self.scale = nn.Buffer(torch.tensor(scale, dtype=dtype, device=device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids.cpu(), self.read()).to(self.device, self.dtype)
        return rows * self.scale


def block_of(name: str) -> str:
    """Return the block of a weight: "layers.3" for "layers.3.attention.qkv.weight"."""
    return ".".join(name.split(".")[:2])


def fill(model: nn.Module, read: Read, streamed: Collection[str]) -> None:
    """Load the weights of a model on the meta device one by one; `streamed` ones stay in the file."""
    window = BlockWindow(read)
    for name in [name for name, _ in model.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if name in streamed:
            model.set_submodule(owner, StreamedLinear(name, window, module.bias))
        else:
            setattr(module, leaf, nn.Parameter(read(name).clone(), requires_grad=False))


def streamable(model: nn.Module) -> dict[str, int]:
    """Return name -> number of elements of the matrices that can be streamed: linear layers within blocks."""
    return {
        f"{name}.weight": module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and BLOCK.match(name)
    }


def read_transformer(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    streamed: Collection[str] = (),
    loras: LoraStack | None = None,
) -> NextDiT:
    """Load the network of a transformer/ folder; at most one matrix is in memory twice at a time.

        streamed   names of matrices that stay in the file
        loras      merged into each matrix as it is read

    Raises:
        LuminaError: if a file is damaged or its weights do not match the config.
    """
    stored = LazyWeights(folder)
    check_config(folder)
    model = empty_model(config_from_diffusers(read_json(folder / "config.json")))
    outlines = from_any(stored.meta_tensors())
    check_state_dict(model, outlines, str(folder))
    dialect = detect_dialect(stored.locations)

    def read(name: str) -> Tensor:
        tensors = [stored.read(one) for one in stored_names(name, outlines[name], dialect)]
        weight = (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).to(device=device, dtype=dtype)
        return loras.merged(name, weight) if loras else weight

    fill(model, read, streamed)
    return model.eval()


def stored_names(name: str, outline: Tensor, dialect: str) -> list[str]:
    """Return the names of tensor `name` in a file of `dialect`; three if it stores q, k and v separately."""
    if dialect == "diffusers":
        return list(to_diffusers({name: outline}))
    return [COMFYUI_PREFIX + name if dialect == "comfyui" else name]


class StoredTextEncoder(TextEncoder):
    """A TextEncoder whose token table stays in the file; with `streamed`, its matrices as well."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, max_tokens: int, streamed: bool
    ):
        self.max_tokens = max_tokens
        self.tokens = PromptTokenizer(folder, max_tokens)
        self.tokenizer = self.tokens.tokenizer
        self.model = _read_gemma(folder / "text_encoder", device, dtype, streamed)


def gemma_outline(folder: Path) -> Gemma2Model:
    """Return the Gemma-2 of a text_encoder/ folder on the meta device, without its last layer and norm.

    `TextEncoder` uses the hidden states before the last layer.
    """
    check_config(folder)
    config = Gemma2Config.from_pretrained(folder, local_files_only=True)
    config.num_hidden_layers -= 1
    config._attn_implementation = "eager"
    with quiet_transformers(), torch.device("meta"):
        model = Gemma2Model(config)
    model.norm = nn.Identity()
    return model


def _read_gemma(folder: Path, device: torch.device, dtype: torch.dtype, streamed: bool) -> Gemma2Model:
    """Load a Gemma-2 with its token table, and with `streamed` its matrices, left in the file."""
    stored = LazyWeights(folder)
    model = gemma_outline(folder)
    start = "model." if "model.embed_tokens.weight" in stored.locations else ""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name.removeprefix(start): place.shape for name, place in stored.locations.items()}
    misshaped = [
        (name, found[name], shape) for name, shape in wanted.items() if found.get(name, shape) != shape
    ]
    raise_misfit(str(folder), [name for name in wanted if name not in found], [], misshaped)
    model.rotary_emb = Gemma2RotaryEmbedding(model.config).to(device)  # computed, so not in the file
    scale = model.embed_tokens.scalar_embed_scale
    model.embed_tokens = StreamedEmbedding(
        lambda: stored.read(start + "embed_tokens.weight"), scale, dtype, device
    )

    def read(name: str) -> Tensor:
        return stored.read(start + name).to(device=device, dtype=dtype)

    fill(model, read, streamable(model) if streamed else ())
    return model.eval()
