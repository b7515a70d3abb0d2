"""The parts of a model under a budget of memory: loaded when one is used, dropped for the next."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lumina_cli.core.encoders.tokens import MAX_TOKENS, Tokens
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.formats.weights import read_json
from lumina_cli.core.nextdit.config import config_from_diffusers
from lumina_cli.core.nextdit.lora import LoraStack
from lumina_cli.core.sampling.memory import MemoryPlan, be_tight, give_back
from lumina_cli.core.sampling.streamed import StoredTextEncoder, read_transformer


class Residence:
    """Which parts are in memory: with `in_turn` the one that was asked for last, else all that ever were."""

    def __init__(self, loaders: dict[str, Callable[[], Any]], in_turn: bool, device: torch.device):
        self.loaders, self.in_turn, self.device = loaders, in_turn, device
        self.parts: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        """The part called `name`, loaded if it is not there."""
        if name not in self.parts:
            if self.in_turn and self.parts:
                self.parts.clear()
                give_back(self.device)
            self.parts[name] = self.loaders[name]()
            give_back(self.device)  # what reading it took
        return self.parts[name]


class Visitor:
    """Stands for a part: what is known of it without loading it is answered at once, all else by the part."""

    def __init__(self, name: str, residence: Residence, **known: Any):
        self._name, self._residence = name, residence
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copying and pickling ask for these before anything is there
            raise AttributeError(attribute)
        return getattr(self._residence.part(self._name), attribute)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._residence.part(self._name)(*args, **named)


def load_parts(
    folder: str | Path,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    loras: LoraStack | None = None,
    *,
    kernel: str = "auto",
    fused: bool = False,
) -> tuple[Visitor, Visitor, Visitor]:
    """The transformer, the text encoder and the autoencoder of a model folder, loaded as `plan` says.

    They do what NextDiT, TextEncoder and Autoencoder do. Nothing is loaded before it is used. LoRAs are
    merged while weights are read; `kernel` and `fused` are those of NextDiT. LuminaError, when a part is
    first used, where its files are damaged.
    """
    folder = Path(folder)
    be_tight()
    config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
    text = read_json(folder / "text_encoder" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    longest = min(MAX_TOKENS, config.max_text_tokens)

    def load_text() -> StoredTextEncoder:
        return StoredTextEncoder(folder, device, dtype, longest, plan.text_streamed)

    def load_transformer() -> torch.nn.Module:
        network = read_transformer(folder / "transformer", dtype, device, plan.streamed, loras)
        network.kernel, network.fused = kernel, fused
        return network

    def load_vae() -> Autoencoder:
        return Autoencoder(folder, device).frugal(plan.tile)

    loaders = {"transformer": load_transformer, "text": load_text, "vae": load_vae}
    residence = Residence(loaders, plan.in_turn, device)
    tokens = Tokens(folder, longest)
    return (
        Visitor("transformer", residence, config=config, dtype=dtype, kernel=kernel),
        Visitor(
            "text", residence, dim=text["hidden_size"], max_tokens=longest, tokens=tokens,
            tokenizer=tokens.tokenizer, dropped=tokens.dropped,
        ),
        Visitor(
            "vae", residence, channels=vae["latent_channels"], factor=factor,
            scale=vae["scaling_factor"], shift=vae.get("shift_factor") or 0.0,
        ),
    )  # fmt: skip
