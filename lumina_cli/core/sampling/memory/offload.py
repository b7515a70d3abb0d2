"""The parts of a model under a budget of memory: loaded when one is used, dropped for the next."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS, PromptTokenizer
from lumina_cli.core.encoders.vae import Autoencoder, vae_dtype
from lumina_cli.core.errors import UsageError
from lumina_cli.core.kernels.dispatch import choose_kernel
from lumina_cli.core.nextdit.config import config_from_diffusers
from lumina_cli.core.nextdit.lora.merge import LoraStack
from lumina_cli.core.sampling.memory.budget import MemoryPlan, release_memory, trim_allocator
from lumina_cli.core.sampling.memory.streaming import StoredTextEncoder, read_transformer
from lumina_cli.core.weights.json_files import read_json

Size = tuple[int, int]
FIELDS = {"text": "text_streamed", "transformer": "streamed", "vae": "tile"}  # what a plan says of a part


class PartPool:
    """Which parts are in memory: the last that was asked for, if `plan` says "in turn", or all so far."""

    def __init__(self, loaders: dict[str, Callable[[], Any]], plan: MemoryPlan, device: torch.device):
        self.loaders, self.plan, self.device = loaders, plan, device
        self.parts: dict[str, Any] = {}

    def part(self, name: str) -> Any:
        """The part called `name`, loaded if it is not there."""
        if name not in self.parts:
            if self.plan.in_turn and self.parts:
                self.parts.clear()
                release_memory(self.device)
            self.parts[name] = self.loaders[name]()
            release_memory(self.device)  # what reading it took
        return self.parts[name]

    def adopt(self, plan: MemoryPlan) -> None:
        """Follow another plan from now on; parts that are there in another way than it says are dropped."""
        before, self.plan = self.plan, plan
        for name in list(self.parts):
            field = FIELDS[name]
            if plan.in_turn > before.in_turn or getattr(plan, field) != getattr(before, field):
                del self.parts[name]
                release_memory(self.device)


class LazyPart:
    """Stands for a part: what is known of it without loading it is answered at once, all else by the part."""

    def __init__(self, name: str, residence: PartPool, **known: Any):
        self._name, self._residence = name, residence
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copying and pickling ask for these before anything is there
            raise AttributeError(attribute)
        return getattr(self._residence.part(self._name), attribute)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._residence.part(self._name)(*args, **named)


class MemoryManager:
    """Keeps the parts of a model within a budget, whatever sizes and numbers of pictures they are to draw.

    parts      as `load_parts` returns them
    plan_for   from (size in pixels, pictures at once, whether a cache remembers them) to a plan;
               UsageError where nothing fits
    batch      pictures at once; a batch with fewer is planned for as if it had so many, so that how a
               picture is decoded does not depend on how many come with it
    note       told, once each, what plans change
    """

    def __init__(
        self,
        parts: tuple[LazyPart, LazyPart, LazyPart],
        plan_for: Callable[[Size, int, bool], MemoryPlan],
        batch: int,
        note: Callable[[str], None],
    ):
        *_, self.vae = parts
        self.residence, self.plan_for, self.batch = self.vae._residence, cache(plan_for), batch
        self.note = note
        self.told: set[str] = set()
        self.vae.encode = self._encode

    @property
    def in_turn(self) -> bool:
        """Whether only one part is in memory at a time."""
        return self.residence.plan.in_turn

    def expect(self, size: Size, least: Size) -> None:
        """Plan for `size` before anything is loaded; UsageError where not even `least` would fit."""
        try:
            plan = self.plan_for(size, self.batch, False)
        except UsageError as error:  # of what is drawn, all may have smaller sizes of their own
            try:
                plan = self.plan_for(least, self.batch, False)
            except UsageError:
                raise error from None
        self.residence.adopt(plan)

    def make(self, size: Size, count: int, cached: bool = False) -> None:
        """Make room for drawing `count` pictures of `size`; UsageError where the budget is too small."""
        plan = self.plan_for(size, max(count, self.batch), cached).beside(self.residence.plan)
        self.residence.adopt(plan)
        line = plan.words(self.vae.factor)
        if line not in self.told:
            self.note("for {}x{} {}".format(*size, line) if self.told else line)
            self.told.add(line)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in what decoding so many takes: that is more."""
        self.make((pixels.shape[3], pixels.shape[2]), len(pixels))
        return self.residence.part("vae").encode(pixels)


def load_parts(
    folder: str | Path,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    loras: LoraStack | None = None,
    *,
    kernel: str = "auto",
    fused: bool = False,
) -> tuple[LazyPart, LazyPart, LazyPart]:
    """The transformer, the text encoder and the autoencoder of a model folder, loaded as `plan` says.

    They do what NextDiT, TextEncoder and Autoencoder do. Nothing is loaded before it is used. LoRAs are
    merged while weights are read; `kernel` and `fused` are those of NextDiT. A `Room` may change the plan
    later. LuminaError, when a part is first used, where its files are damaged.
    """
    folder, kernel = Path(folder), choose_kernel(kernel, device, dtype)  # asked for in every row
    trim_allocator()
    config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
    text = read_json(folder / "text_encoder" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    longest = min(MAX_TOKENS, config.max_text_tokens)

    def load_text() -> StoredTextEncoder:
        return StoredTextEncoder(folder, device, dtype, longest, residence.plan.text_streamed)

    def load_transformer() -> torch.nn.Module:
        streamed = residence.plan.streamed
        network = read_transformer(folder / "transformer", dtype, device, streamed, loras)
        network.kernel, network.fused = kernel, fused
        return network

    def load_vae() -> Autoencoder:
        return Autoencoder(folder, device, vae_dtype(dtype)).enable_tiling(residence.plan.tile)

    loaders = {"transformer": load_transformer, "text": load_text, "vae": load_vae}
    residence = PartPool(loaders, plan, device)
    tokens = PromptTokenizer(folder, longest)
    return (
        LazyPart("transformer", residence, config=config, dtype=dtype, kernel=kernel),
        LazyPart(
            "text", residence, dim=text["hidden_size"], max_tokens=longest, tokens=tokens,
            tokenizer=tokens.tokenizer, dropped=tokens.dropped,
        ),
        LazyPart(
            "vae", residence, channels=vae["latent_channels"], factor=factor,
            scale=vae["scaling_factor"], shift=vae.get("shift_factor") or 0.0,
        ),
    )  # fmt: skip
