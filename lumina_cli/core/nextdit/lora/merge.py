"""LoRAs on a Next-DiT: read, checked against its shapes, merged into its weights, and taken off again.

A layer's weight W becomes W + scale * alpha / rank * up @ down. A DoRA makes it m * V / |V| with V that sum
and |V| the size of each row; its scale works inside V, as in peft (scale 0 leaves it out). Of several LoRAs
each starts from the weights of before and the changes are added, so their order does not matter. Sums run in
float32 and are cast once: in bfloat16 a change below 1/512 of a weight is rounded away.
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
from lumina_cli.core.nextdit.lora.factors import PARTS, LoraFactors, Pairs
from lumina_cli.core.nextdit.lora.formats import TEXT_ENCODER, WRITERS, detect_dialect, number, read_pairs
from lumina_cli.core.weights.files import format_names
from lumina_cli.core.weights.lora_files import AdapterFile, read_adapter, write_adapter

# the weights as they were before any LoRA, of the models that have some now
_originals: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Applied:
    """A LoRA that is in use: its file, how strongly, of which rank (the largest), on how many layers."""

    path: str
    scale: float
    dialect: str
    rank: int
    modules: int
    dora: bool = False
    unused: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """One line about the tensors in the file that change nothing here, or None."""
        return unused_note(self.path, self.unused)

    def to_json(self) -> dict:
        """What a row says of it."""
        return {**asdict(self), "unused": len(self.unused)}


@dataclass(frozen=True)
class _Change:
    """A pair on some rows of a weight."""

    pair: LoraFactors
    rows: slice
    scale: float


class LoraStack:
    """Several LoRAs for one shape of network, as a function from its weights to the changed ones.

    `specs` are paths, each with a scale behind a colon if it is not 1: "style.safetensors:0.8". LuminaError
    where a file is broken or made for another model; UsageError where a scale is no number.
    """

    def __init__(self, config: NextDiTConfig, specs: Sequence[str | Path]):
        self.shapes = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
        keys = config.num_kv_heads * config.head_dim
        ends = (0, config.dim, config.dim + keys, config.dim + 2 * keys)
        self.rows = {part: slice(*ends[i : i + 2]) for i, part in enumerate(PARTS)}
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
        """LuminaError that names the layers which the network has not, or has in another shape."""
        faults = []
        for (name, part), pair in pairs.items():
            wanted = self.shapes.get(f"{name}.weight")
            if wanted is None:
                faults.append(f"{name}, which this model has not")
                continue
            if part:
                wanted = (self.rows[part].stop - self.rows[part].start, wanted[1])
            if (len(pair.up), pair.down.shape[1]) != wanted:
                found = f"{pair.down.shape[1]} to {len(pair.up)}, here {wanted[1]} to {wanted[0]}"
                faults.append(f"{f'{name} ({part})' if part else name} from {found}")
        if faults:
            more = f", and {len(faults) - 1} more that do not fit" if len(faults) > 1 else ""
            raise LuminaError(f"{file.path} is a LoRA for another model: it changes {faults[0]}{more}")

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """The weight called `name`, of any device and dtype, with all changes; itself without any."""
        changes = self.changes.get(name)
        if not changes:
            return weight
        before = weight.detach().float()
        after = before.clone()
        for change in changes:
            after[change.rows] += _difference(before[change.rows], change.pair, change.scale)
        return after.to(weight.dtype)


def _difference(weight: Tensor, pair: LoraFactors, scale: float) -> Tensor:
    """What a pair adds to a weight (o, i) in float32."""
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
    """Merge LoRAs into the weights of a NextDiT, in place of those that it has; see LoraStack for `specs`.

    With `keep` the weights of before stay on the CPU, for `remove_loras`; without it these LoRAs stay merged
    for good and take no memory. LuminaError where one does not fit, and then nothing is changed, or where the
    weights are quantised already.
    """
    stack = LoraStack(model.config, specs)
    remove_loras(model)
    parameters = {name: dict(model.named_parameters())[name] for name in stack.changes}
    for name, parameter in parameters.items():
        if type(parameter.data) is not Tensor or not parameter.is_floating_point():
            raise LuminaError(f"{name} is quantised: LoRAs go onto the weights before that")
    before = {}
    for name, parameter in parameters.items():
        if keep:
            before[name] = parameter.data.to("cpu")
        parameter.data = stack.merged(name, parameter.data)
    if before:
        _originals[model] = before
    return stack.applied


def remove_loras(model: nn.Module) -> None:
    """Give a model back the weights that it had before `apply_loras`, bit by bit; without any, nothing."""
    parameters = dict(model.named_parameters())
    for name, weight in _originals.pop(model, {}).items():
        parameters[name].data = weight.to(parameters[name].data)


def parse_spec(spec: str | Path) -> tuple[Path, float]:
    """The path and the scale in "path:scale"; the scale is 1 where none is said."""
    head, colon, tail = str(spec).rpartition(":")
    if not colon or Path(spec).exists():
        return Path(spec), 1.0
    try:
        scale = float(tail)
    except ValueError:
        return Path(spec), 1.0
    if not math.isfinite(scale):
        raise UsageError(f"the scale of {head} is {tail}; a finite number such as 0.8 is needed")
    return Path(head), scale


def unused_note(path: str | Path, unused: Sequence[str]) -> str | None:
    """One line about tensors that change nothing, apart those of a text encoder; None if there are none."""
    encoder = [name for name in unused if TEXT_ENCODER.match(name)]
    others = [name for name in unused if not TEXT_ENCODER.match(name)]
    kinds = (encoder, "of a text encoder"), (others, "unknown")
    words = [f"{format_names(names)} {kind}" for names, kind in kinds if names]
    return f"{path}: not used: {'; '.join(words)}" if words else None


def convert_lora(
    source: str | Path, dest: Path, to: str, dtype: torch.dtype | None = None
) -> tuple[dict, str | None]:
    """Write a LoRA in another dialect, a key of WRITERS; returns a row, and a line on what is left out.

    What a trainer wrote into the header stays; tensors of a text encoder are left out. `dtype` None keeps
    that of the file. LuminaError where the dialect cannot say what the LoRA is.
    """
    if to not in WRITERS:
        raise UsageError(f"{source} is a LoRA: it can become {', '.join(WRITERS)}, not {to}")
    file = read_adapter(source)
    pairs, unused = read_pairs(file)
    tensors, config = WRITERS[to](pairs)
    if dtype is not None:
        tensors = {name: x.to(dtype) if x.ndim else number(float(x), dtype) for name, x in tensors.items()}
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
    return row, unused_note(source, unused)
