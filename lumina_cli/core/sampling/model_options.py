"""Options of a model: LoRAs, quantization, memory budget, image editing. Validated without loading it."""

from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.errors import UsageError


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model and which hooks to add to its pipeline.

    loras                  paths, or "PATH:SCALE", merged into the weights in this order
    quantize               "int8" or "int8-weights"; None leaves the weights as they are
    init, mask, strength   image to start from and inpainting mask; see `read_edit`
    attention              words whose attention maps are saved; see `AttentionHook`
    memory                 budget such as "8G"; components are offloaded, then streamed, to fit; see
                           `plan_memory`
    kernel                 attention implementation; see `choose_kernel`
    compile                fuse elementwise operations with torch.compile

    Raises:
        UsageError: if options exclude each other or a value is invalid.
        MissingDependency: if the kernel or the compiler is not available.
    """

    loras: tuple[str, ...] = ()
    quantize: str | None = None
    init: Path | None = None
    mask: Path | None = None
    strength: float | None = None
    attention: tuple[str, ...] = ()
    memory: str | None = None
    kernel: str = "auto"
    compile: bool = False

    def __post_init__(self):
        if self.init is None and (self.mask is not None or self.strength is not None):
            raise UsageError("--mask and --strength need --init, the image to start from")
        if self.attention and self.quantize:
            raise UsageError("--attention needs the unquantized network: omit --quantize")
        if self.memory is not None:
            from lumina_cli.core.sampling.memory.plan import parse_memory

            if self.quantize or self.attention:
                raise UsageError("--memory unloads weights between uses: omit --quantize and --attention")
            parse_memory(self.memory)
        if self.quantize is not None:
            from lumina_cli.core.nextdit.packed.quantize import check_quantizer

            check_quantizer(self.quantize)
        if self.kernel != "auto" or self.compile:
            from lumina_cli.core.kernels.dispatch import check_choice
            from lumina_cli.core.nextdit.packed.fused import check_compiler

            check_choice(self.kernel)
            if self.compile:
                check_compiler()

    @property
    def plain(self) -> bool:
        """Whether all options have their defaults."""
        return self == ModelOptions()
