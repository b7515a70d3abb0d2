"""Offloading: the components of a model are loaded on first use and dropped when another one is needed."""

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
from lumina_cli.core.sampling.memory.allocator import release_memory, trim_allocator
from lumina_cli.core.sampling.memory.plan import MemoryPlan
from lumina_cli.core.sampling.memory.streaming import StoredTextEncoder, read_transformer
from lumina_cli.core.weights.json_files import read_json

Size = tuple[int, int]
# the field of a plan that decides how each component is loaded
FIELDS = {"text": "stream_text", "transformer": "streamed", "vae": "tile"}


class ComponentPool:
    """The components in memory: only the last one used if `plan` offloads, otherwise all used so far."""

    def __init__(self, loaders: dict[str, Callable[[], Any]], plan: MemoryPlan, device: torch.device):
        self.loaders, self.plan, self.device = loaders, plan, device
        self.components: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """Return the component `name`; load it if necessary."""
        if name not in self.components:
            if self.plan.offload and self.components:
                self.components.clear()
                release_memory(self.device)
            self.components[name] = self.loaders[name]()
            release_memory(self.device)  # buffers used for reading
        return self.components[name]

    def adopt(self, plan: MemoryPlan) -> None:
        """Follow another plan from now on; drop components that it loads differently."""
        before, self.plan = self.plan, plan
        for name in list(self.components):
            field = FIELDS[name]
            if plan.offload > before.offload or getattr(plan, field) != getattr(before, field):
                del self.components[name]
                release_memory(self.device)


class LazyComponent:
    """Stands in for a component: answers the attributes in `known` itself, and loads it for all others."""

    def __init__(self, name: str, pool: ComponentPool, **known: Any):
        self._name, self._pool = name, pool
        self.__dict__.update(known)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):  # copy and pickle probe for these before __init__ has run
            raise AttributeError(attribute)
        return getattr(self._pool.get(self._name), attribute)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._pool.get(self._name)(*args, **named)


class MemoryManager:
    """Keeps the components of a model within a budget while sizes and batches of images change.

    components   as `load_components` returns them
    plan_for     (size in pixels, images per batch, whether a layer cache is used) -> plan; raises UsageError
                 if nothing fits
    batch        images per batch; a smaller batch gets the plan of a full one, so that the decoding of an
                 image does not depend on the number of images in its batch
    note         called with one line per plan that changes something
    """

    def __init__(
        self,
        components: tuple[LazyComponent, LazyComponent, LazyComponent],
        plan_for: Callable[[Size, int, bool], MemoryPlan],
        batch: int,
        note: Callable[[str], None],
    ):
        *_, self.vae = components
        self.pool, self.plan_for, self.batch = self.vae._pool, cache(plan_for), batch
        self.note = note
        self.noted: set[str] = set()
        self.vae.encode = self._encode

    @property
    def offloads(self) -> bool:
        """Whether only one component is in memory at a time."""
        return self.pool.plan.offload

    def plan_ahead(self, size: Size, smallest: Size) -> None:
        """Plan for `size` before anything is loaded.

        If it does not fit, plan for the `smallest` size instead: each row may have a smaller size of its own.

        Raises:
            UsageError: if not even the smallest size fits.
        """
        try:
            plan = self.plan_for(size, self.batch, False)
        except UsageError as error:
            try:
                plan = self.plan_for(smallest, self.batch, False)
            except UsageError:
                raise error from None
        self.pool.adopt(plan)

    def prepare(self, size: Size, count: int, cached: bool = False) -> None:
        """Adopt a plan that allows a batch of `count` images of `size`.

        Raises:
            UsageError: if the budget is too small.
        """
        plan = self.plan_for(size, max(count, self.batch), cached).merged(self.pool.plan)
        self.pool.adopt(plan)
        line = plan.summary(self.vae.factor)
        if line not in self.noted:
            self.note("for {}x{} {}".format(*size, line) if self.noted else line)
            self.noted.add(line)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) within the plan for decoding as many images, which takes more memory."""
        self.prepare((pixels.shape[3], pixels.shape[2]), len(pixels))
        return self.pool.get("vae").encode(pixels)


def load_components(
    folder: str | Path,
    plan: MemoryPlan,
    device: torch.device,
    dtype: torch.dtype,
    loras: LoraStack | None = None,
    *,
    kernel: str = "auto",
    fused: bool = False,
) -> tuple[LazyComponent, LazyComponent, LazyComponent]:
    """Return stand-ins for the transformer, the text encoder and the autoencoder of a model folder.

        plan            how to load them; a `MemoryManager` may change it later
        dtype           of transformer and text encoder
        loras           merged while the transformer's weights are read
        kernel, fused   attributes of the transformer, see `NextDiT`

    They behave like NextDiT, TextEncoder and Autoencoder. Each is loaded on first use, and only then raises
    LuminaError if its files are damaged.
    """
    folder, kernel = Path(folder), choose_kernel(kernel, device, dtype)  # every row contains its name
    trim_allocator()
    config = config_from_diffusers(read_json(folder / "transformer" / "config.json"))
    text = read_json(folder / "text_encoder" / "config.json")
    vae = read_json(folder / "vae" / "config.json")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    longest = min(MAX_TOKENS, config.max_text_tokens)

    def load_text() -> StoredTextEncoder:
        return StoredTextEncoder(folder, device, dtype, longest, pool.plan.stream_text)

    def load_transformer() -> torch.nn.Module:
        streamed = pool.plan.streamed
        network = read_transformer(folder / "transformer", dtype, device, streamed, loras)
        network.kernel, network.fused = kernel, fused
        return network

    def load_vae() -> Autoencoder:
        return Autoencoder(folder, device, vae_dtype(dtype)).enable_tiling(pool.plan.tile)

    loaders = {"transformer": load_transformer, "text": load_text, "vae": load_vae}
    pool = ComponentPool(loaders, plan, device)
    tokens = PromptTokenizer(folder, longest)
    return (
        LazyComponent("transformer", pool, config=config, dtype=dtype, kernel=kernel),
        LazyComponent(
            "text", pool, dim=text["hidden_size"], max_tokens=longest, tokens=tokens,
            tokenizer=tokens.tokenizer, dropped=tokens.dropped,
        ),
        LazyComponent(
            "vae", pool, channels=vae["latent_channels"], factor=factor,
            scale=vae["scaling_factor"], shift=vae.get("shift_factor") or 0.0,
        ),
    )  # fmt: skip
