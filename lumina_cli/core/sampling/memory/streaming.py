"""Networks whose matrices stay in the file: read for the block that runs, dropped for the next."""

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
from lumina_cli.core.weights.files import check_state_dict, raise_misfit
from lumina_cli.core.weights.json_files import read_json
from lumina_cli.core.weights.lazy import LazyWeights

Read = Callable[[str], Tensor]
BLOCK = re.compile(r"\w+\.\d+\.")


class BlockWindow:
    """The matrices of one block: when another block asks for one of its own, they are dropped."""

    def __init__(self, read: Read):
        self.read = read
        self.block = ""
        self.kept: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        """The weight `name`, on its device and in its dtype."""
        if (block := block_of(name)) != self.block:
            self.kept.clear()
            self.block = block
        if name not in self.kept:
            self.kept[name] = self.read(name)
        return self.kept[name]


class StreamedLinear(nn.Module):
    """A linear layer whose weight comes through a window whenever somebody looks at it."""

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
    """An embedding whose table stays in the file: of its pages only those of the tokens are read."""

    def __init__(self, read: Callable[[], Tensor], scale: float, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.read, self.dtype, self.device = read, dtype, device
        self.scale = nn.Buffer(torch.tensor(scale, dtype=dtype, device=device), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids.cpu(), self.read()).to(self.device, self.dtype)
        return rows * self.scale


def block_of(name: str) -> str:
    """ "layers.3" of "layers.3.attention.qkv.weight"."""
    return ".".join(name.split(".")[:2])


def fill(model: nn.Module, read: Read, streamed: Collection[str]) -> None:
    """Give a model without memory its weights one by one; those called in `streamed` stay in the file."""
    window = BlockWindow(read)
    for name in [name for name, _ in model.named_parameters()]:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if name in streamed:
            model.set_submodule(owner, StreamedLinear(name, window, module.bias))
        else:
            setattr(module, leaf, nn.Parameter(read(name).clone(), requires_grad=False))


def streamable(model: nn.Module) -> dict[str, int]:
    """The numbers in each matrix that can stay in the file: those of the linear layers within blocks."""
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
    """The network of a transformer/ folder; in memory twice while it is read is one matrix at most."""
    stored = LazyWeights(folder)
    model = empty_model(config_from_diffusers(read_json(folder / "config.json")))
    outlines = from_any(stored.meta_tensors())
    check_state_dict(model, outlines, str(folder))
    dialect = detect_dialect(stored.locations)

    def read(name: str) -> Tensor:
        parts = [stored.read(piece) for piece in pieces(name, outlines[name], dialect)]
        weight = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(device=device, dtype=dtype)
        return loras.merged(name, weight) if loras else weight

    fill(model, read, streamed)
    return model.eval()


def pieces(name: str, outline: Tensor, dialect: str) -> list[str]:
    """What a file in `dialect` calls our tensor `name`; three names for queries, keys and values apart."""
    if dialect == "diffusers":
        return list(to_diffusers({name: outline}))
    return [COMFYUI_PREFIX + name if dialect == "comfyui" else name]


class StoredTextEncoder(TextEncoder):
    """A TextEncoder whose table of tokens stays in the file; with `streamed` its matrices too."""

    def __init__(
        self, folder: Path, device: torch.device, dtype: torch.dtype, max_tokens: int, streamed: bool
    ):
        self.max_tokens = max_tokens
        self.tokens = PromptTokenizer(folder, max_tokens)
        self.tokenizer = self.tokens.tokenizer
        self.model = _read_gemma(folder / "text_encoder", device, dtype, streamed)


def gemma_outline(folder: Path) -> Gemma2Model:
    """The Gemma-2 of a text_encoder/ without memory and without what TextEncoder does not use."""
    config = Gemma2Config.from_pretrained(folder, local_files_only=True)
    config.num_hidden_layers -= 1
    config._attn_implementation = "eager"
    with quiet_transformers(), torch.device("meta"):
        model = Gemma2Model(config)
    model.norm = nn.Identity()
    return model


def _read_gemma(folder: Path, device: torch.device, dtype: torch.dtype, streamed: bool) -> Gemma2Model:
    stored = LazyWeights(folder)
    model = gemma_outline(folder)
    start = "model." if "model.embed_tokens.weight" in stored.locations else ""
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name.removeprefix(start): place.shape for name, place in stored.locations.items()}
    misshaped = [
        (name, found[name], shape) for name, shape in wanted.items() if found.get(name, shape) != shape
    ]
    raise_misfit(str(folder), [name for name in wanted if name not in found], [], misshaped)
    model.rotary_emb = Gemma2RotaryEmbedding(model.config).to(device)  # computed, so in no file
    scale = model.embed_tokens.scalar_embed_scale
    model.embed_tokens = StreamedEmbedding(
        lambda: stored.read(start + "embed_tokens.weight"), scale, dtype, device
    )

    def read(name: str) -> Tensor:
        return stored.read(start + name).to(device=device, dtype=dtype)

    fill(model, read, streamable(model) if streamed else ())
    return model.eval()
