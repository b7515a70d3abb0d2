"""What is done to a model before it draws, checked without loading one."""

from dataclasses import dataclass
from pathlib import Path

from lumina_cli.core.errors import UsageError


@dataclass(frozen=True)
class ModelOptions:
    """What is done to a model before it draws.

    loras                  files, or "FILE:0.8", merged into its weights in this order
    memory                 budget such as "8G": parts in turn, then read piece by piece; see `plan_memory`
    quantize               "int8" or "int8-weights"; None leaves the weights as they are
    init, mask, strength   the picture to start from; see `read_edit`
    attention              words whose maps are kept; see `AttentivePipeline`
    kernel                 the attention to call; see `choose_kernel`
    compile                whether to compile what lies between matrix products

    Raises UsageError for what does not go together, and for files of `init` and `mask` that do not fit.
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
            raise UsageError("--mask and --strength need --init, the picture to start from")
        if self.attention and self.quantize:
            raise UsageError("attention is read from the plain network: leave --quantize out")
        if self.memory is not None:
            from lumina_cli.core.sampling.memory.budget import parse_memory

            if self.quantize or self.attention:
                raise UsageError("--memory drops weights between uses: leave --quantize and --attention out")
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
        """Whether nothing is asked for."""
        return self == ModelOptions()
