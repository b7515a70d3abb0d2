"""Merge LoRAs into the weights of a Next-DiT, and remove them again.

A layer's weight W becomes V = W + scale * alpha / rank * up @ down (arXiv 2106.09685), with DoRA m * V / |V|
with |V| the norm of each row (arXiv 2402.09353); the scale applies inside V, as in peft, and scale 0 omits
the LoRA. With several LoRAs, each change is computed from the original weights and the changes are added, so
their order does not matter. Sums are computed in float32 and cast once: in bfloat16, a change below 1/512 of
a weight is rounded away.

o outputs and i inputs of a layer.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.nextdit.config import NextDiTConfig
from lumina_cli.core.nextdit.convert import empty_model
from lumina_cli.core.nextdit.lora.factors import QKV_PARTS, LoraFactors, Pairs
from lumina_cli.core.nextdit.lora.formats import WRITERS, detect_dialect, read_pairs, scalar_tensor
from lumina_cli.core.nextdit.lora.names import TEXT_ENCODER, count_layers
from lumina_cli.core.weights.files import format_names
from lumina_cli.core.weights.lora_files import AdapterFile, read_adapter, write_adapter
from lumina_cli.core.weights.relatives import find_lora_base

# model -> its original weights that LoRAs changed, on the CPU
_originals: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Applied:
    """A LoRA that is merged into a model.

    path      its file
    scale     its weight
    dialect   a key of WRITERS, or "peft"
    rank      the largest rank of its layers
    modules   number of layers that it changes
    dora      whether a layer is a DoRA
    unused    names of tensors in the file that are not used
    """

    path: str
    scale: float
    dialect: str
    rank: int
    modules: int
    dora: bool = False
    unused: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """A message about the unused tensors in the file, or None."""
        return unused_note(self.path, self.unused, self.modules)

    def to_json(self) -> dict:
        """Return the fields for a row, with the number of unused tensors."""
        return {**asdict(self), "unused": len(self.unused)}


@dataclass(frozen=True)
class _Change:
    """The change of some rows of a weight."""

    pair: LoraFactors
    rows: slice
    scale: float


class LoraStack:
    """Several LoRAs for a network, as a function from its weights to the changed weights.

    config   shapes of the network
    specs    paths, each optionally with a scale: "style.safetensors:0.8"

    Raises:
        LuminaError: if a file is damaged or made for another model.
        UsageError: if a scale is not finite.
    """

    def __init__(self, config: NextDiTConfig, specs: Sequence[str | Path]):
        self.shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
        keys = config.num_kv_heads * config.head_dim
        ends = (0, config.dim, config.dim + keys, config.dim + 2 * keys)
        self.rows = {part: slice(*ends[i : i + 2]) for i, part in enumerate(QKV_PARTS)}
        self.changes: dict[str, list[_Change]] = {}
        self.applied = [self._add(*parse_spec(spec)) for spec in specs]

    def _add(self, path: Path, scale: float) -> Applied:
        file = read_adapter(path)
        pairs, unused = read_pairs(file)
        self._check(file, pairs)
        for (name, part), pair in pairs.items() if scale else ():
            rows = self.rows[part] if part else slice(None)
            self.changes.setdefault(f"{name}.weight", []).append(_Change(pair, rows, scale))
        return Applied(
            path=str(file.path),
            scale=scale,
            dialect=detect_dialect(file.tensors),
            rank=max(pair.rank for pair in pairs.values()),
            modules=len(pairs),
            dora=any(pair.magnitude is not None for pair in pairs.values()),
            unused=tuple(unused),
        )

    def _check(self, file: AdapterFile, pairs: Pairs) -> None:
        """Raise LuminaError if layers do not exist in the network, or have another shape."""
        faults = []
        for (name, part), pair in pairs.items():
            wanted = self.shapes.get(f"{name}.weight")
            if wanted is None:
                faults.append(f"{name}, which does not exist in this model")
                continue
            if part:
                wanted = (self.rows[part].stop - self.rows[part].start, wanted[1])
            if (len(pair.up), pair.down.shape[1]) != wanted:
                found = (
                    f"{pair.down.shape[1]} to {len(pair.up)}, but this model has {wanted[1]} to {wanted[0]}"
                )
                faults.append(f"{f'{name} ({part})' if part else name} from {found}")
        if faults:
            more = f", and {len(faults) - 1} more that do not fit" if len(faults) > 1 else ""
            widths = [pair.down.shape[1] for (name, _), pair in pairs.items() if "attention." in name]
            base, fit = find_lora_base(file.tensors, max(widths, default=None)), len(pairs) - len(faults)
            found = f"is a LoRA for {base or 'another model'}: it"
            if fit and not base:
                found = f"fits in part: {fit} of {len(pairs)} layers fit this model; it also"
            raise LuminaError(f"{file.path} {found} targets {faults[0]}{more}")

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """Return the changed weight of `name`, on the device and in the dtype of `weight`."""
        changes = self.changes.get(name)
        if not changes:
            return weight
        before = weight.detach().float()
        after = before.clone()
        for change in changes:
            after[change.rows] += _difference(before[change.rows], change.pair, change.scale)
        return after.to(weight.dtype)


def _difference(weight: Tensor, pair: LoraFactors, scale: float) -> Tensor:
    """Return the change of a weight (o, i), float32."""
    up, down = (matrix.to(weight.device, torch.float32) for matrix in (pair.up, pair.down))
    delta = (up @ down).mul_(scale * pair.scale)
    if pair.magnitude is None:
        return delta
    magnitude = pair.magnitude.to(weight)
    changed = weight + delta
    axis = 1 if magnitude.shape[1] == 1 else 0
    size = torch.linalg.vector_norm(changed, dim=axis, keepdim=True).clamp_min(
        torch.finfo(torch.float32).tiny
    )
    return changed.mul_(magnitude / size).sub_(weight)


def apply_loras(model: nn.Module, specs: Sequence[str | Path], keep: bool = True) -> list[Applied]:
    """Merge LoRAs into the weights of a NextDiT; they replace LoRAs applied before.

    Args:
        model: the network
        specs: see `LoraStack`
        keep: keep the original weights on the CPU, for `remove_loras`; otherwise the merge is permanent and
            takes no memory

    Raises:
        LuminaError: if a LoRA does not fit, or weights are quantized already; the model is then unchanged.
        UsageError: if a scale is not finite.
    """
    stack = LoraStack(model.config, specs)
    remove_loras(model)
    parameters = {name: dict(model.named_parameters())[name] for name in stack.changes}
    for name, parameter in parameters.items():
        if type(parameter.data) is not Tensor or not parameter.is_floating_point():
            raise LuminaError(f"{name} is quantized; LoRAs must be merged before quantization")
    before = {}
    for name, parameter in parameters.items():
        if keep:
            before[name] = parameter.data.to("cpu")
        parameter.data = stack.merged(name, parameter.data)
    if before:
        _originals[model] = before
    return stack.applied


def remove_loras(model: nn.Module) -> None:
    """Restore the exact weights from before `apply_loras`; without LoRAs, do nothing."""
    parameters = dict(model.named_parameters())
    for name, weight in _originals.pop(model, {}).items():
        parameters[name].data = weight.to(parameters[name].data)


def parse_spec(spec: str | Path) -> tuple[Path, float]:
    """Parse "path:scale"; the scale is 1 if omitted.

    Raises:
        UsageError: if the scale of an existing file is not a number, or not finite.
    """
    head, colon, tail = str(spec).rpartition(":")
    if not colon or Path(spec).exists():
        return Path(spec), 1.0
    try:
        scale = float(tail)
    except ValueError:
        if Path(head).is_file():
            raise UsageError(f"the scale of {head} must be a number such as 0.8, not {tail!r}") from None
        return Path(spec), 1.0
    if not math.isfinite(scale):
        raise UsageError(f"the scale of {head} must be a finite number such as 0.8, not {tail}")
    return Path(head), scale


def unused_note(path: str | Path, unused: Sequence[str], used: int) -> str | None:
    """Return a message about unused tensors, with those of a text encoder counted apart, or None.

    used   number of layers whose tensors are used
    """
    encoder = [name for name in unused if TEXT_ENCODER.match(name)]
    others = [name for name in unused if not TEXT_ENCODER.match(name)]
    kinds = (encoder, "of a text encoder"), (others, "unknown")
    words = [f"{format_names(names)} {kind}" for names, kind in kinds if names]
    if not words:
        return None
    layers = f"{used} of {used + count_layers(unused)} layers are used"
    return f"{path}: {layers}; not used: {'; '.join(words)}"


def convert_lora(
    source: str | Path, dest: Path, to: str, dtype: torch.dtype | None = None
) -> tuple[dict, str | None]:
    """Write a LoRA in another dialect; the metadata of the header is kept.

    Args:
        source: a LoRA file
        dest: the file to write
        to: a key of WRITERS
        dtype: of the written tensors; None: that of the file

    Returns:
        A row, and a message about omitted tensors, such as those of a text encoder, or None.

    Raises:
        UsageError: if `to` is not a dialect of LoRAs.
        LuminaError: if the file is damaged, or the dialect does not support this LoRA.
    """
    if to not in WRITERS:
        raise UsageError(f"{source} is a LoRA: it can become {', '.join(WRITERS)}, not {to}")
    file = read_adapter(source)
    pairs, unused = read_pairs(file)
    tensors, config = WRITERS[to](pairs)
    if dtype is not None:
        tensors = {
            name: x.to(dtype) if x.ndim else scalar_tensor(float(x), dtype) for name, x in tensors.items()
        }
    write_adapter(replace(file, path=dest, tensors=tensors, config=config))
    row = {
        "source": str(source),
        "from": detect_dialect(file.tensors),
        "dest": str(dest),
        "to": to,
        "lora_rank": max(pair.rank for pair in pairs.values()),
        "modules": len(pairs),
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})),
        "unused": len(unused),
    }
    return row, unused_note(source, unused, len(pairs))
