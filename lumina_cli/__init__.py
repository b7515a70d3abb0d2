"""Toolkit for Lumina-Image 2.0: captioning, sharding, training, sampling, evaluation and benchmarks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lumina_cli.core.sampling.pipeline import Pipeline

__version__ = "0.1.0"


def load(
    model: "str | Path | None" = "auto",
    device: str | None = None,
    dtype: Any = None,
    frozen: "str | Path | None" = None,
    *,
    lora: "str | Path | Sequence[str | Path]" = (),
    quantize: str | None = None,
    memory: str | None = None,
    kernel: str = "auto",
    compile: bool = False,
    note: Callable[[str], None] | None = None,
) -> "Pipeline":
    """Load a model and return a pipeline that generates images.

    `load("nano")("a red car left of a blue ball", seed=7)` returns a list of PIL images. Their `save` stores
    the generation settings, so that `lumina sample --from` can repeat them.

        model      nano, lumina-image-2, neta-lumina, netayume-lumina, auto, a model or run folder, a weight
                   file, or a hub id; None: auto
        device     "cpu", "cuda", "cuda:1"...; None: a GPU if there is one
        dtype      of the network: a torch.dtype, "float32", "bfloat16" or "float16"; None: float32 for a
                   small network, else bfloat16 if the device supports it
        frozen     a model that provides the other components if `model` is a transformer alone
        lora       path of a LoRA, or "PATH:SCALE"; or a list of them
        quantize   "int8" (faster matmuls) or "int8-weights" (less memory)
        memory     memory budget such as "8G"; components are offloaded to fit
        kernel     attention implementation: auto, flash, varlen, sdpa or direct
        compile    fuse elementwise operations with torch.compile
        note       called with one line per remark, such as what "auto" chose
        returns    a `Pipeline`; call it with prompts, see `Pipeline.__call__`. Images to start from and masks
                   are arguments of that call

    Raises:
        UsageError: if `model` is not a known name, a folder or a hub id, or a setting is invalid.
        LuminaError: if a component of the model is missing, damaged or does not fit the others.
        MissingDependency: if this machine does not have the device, the kernel or the compiler.
    """
    from importlib import import_module  # by name: image metadata imports the version from this module

    package = "lumina_cli.core.sampling"
    values = import_module(f"{package}.inputs.python_values")
    values.check_load(
        model=model, device=device, frozen=frozen, lora=lora, quantize=quantize, memory=memory, kernel=kernel,
        compile=compile, note=note,
    )  # fmt: skip
    loras = tuple(map(str, lora)) if isinstance(lora, list | tuple) else (str(lora),) if lora else ()
    dtype = values.parse_dtype(dtype)  # before seconds of work
    if memory is not None and (device is not None or dtype is not None):
        raise import_module("lumina_cli.core.errors").UsageError("memory decides device and dtype: omit them")
    options = import_module(f"{package}.model_options").ModelOptions(
        loras=loras, quantize=quantize, memory=memory, kernel=kernel or "auto", compile=compile
    )
    choice = import_module("lumina_cli.core.models.locate").choose_model(model or "auto", frozen)
    open_pipeline = import_module(f"{package}.loading").open_pipeline
    return open_pipeline(options, choice, note or (lambda line: None), device=device, dtype=dtype)
