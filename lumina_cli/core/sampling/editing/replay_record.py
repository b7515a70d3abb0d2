"""What the metadata of an image contains, for a replay. It is untrusted: anyone may have written it.

Files that it names are opened only if they are ordinary files of the expected kind, and a model only if it
is on this machine.
"""

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import apply, find_preset
from lumina_cli.core.images.io import decode_image, open_image, read_metadata
from lumina_cli.core.images.metadata.stored import find_metadata_fault
from lumina_cli.core.images.sizes import parse_size
from lumina_cli.core.images.suffixes import SUFFIXES
from lumina_cli.core.io.allowed import is_system_file
from lumina_cli.core.sampling.editing.img2img import Edit, pixel_hash, read_edit, threshold_mask
from lumina_cli.core.sampling.output.metadata import Lora, from_metadata
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.weights.fingerprint import digest_adapter

# in addition to settings of the plan
CHANGES = ("prompt", "seed", "size", "system", "negative", "negative_system", "preset")
KINDS = {"prompt": str, "negative": str, "system": str, "model": str, "seed": int, "number": int}
_LORA_FILES = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")


@dataclass(frozen=True)
class ReplayRecord:
    """What the metadata of an image contains.

    settings   of its plan: all of them, or those that another program stored
    model      name of the model as it was requested; None for images of other programs
    weights    see `GenerationRecord`; None if unknown
    program    that generated the image; None if it is unknown, or this package
    unused     settings of another program that cannot be used
    edit       the image that it was edited from, as `Edit.settings` describes it
    loras      files of its LoRAs
    quantize   kind of quantization of the weights
    """

    job: Job
    settings: Mapping[str, Any]
    size: tuple[int, int] | None
    system: str = "real"
    negative_system: bool = True
    model: str | None = None
    weights: str | None = None
    program: str | None = None
    unused: tuple[str, ...] = ()
    edit: Mapping[str, Any] | None = None
    loras: tuple[Lora, ...] = ()
    quantize: str | None = None

    @property
    def ours(self) -> bool:
        """Whether this package generated the image; only then can a replay be identical."""
        return self.model is not None

    def resolve(self, plan: Plan, changes: Mapping[str, Any]) -> ResolvedRequest:
        """Return the settings to use: `plan`, overridden by the image's settings, then by `changes`.

        A "preset" in `changes` replaces the image's settings.
        """
        settings = {name: value for name, value in changes.items() if name not in CHANGES}
        with_system = changes.get("negative_system")
        if preset := changes.get("preset"):
            found = find_preset(preset)
            plan = found.resolve(plan.shift, settings)
            with_system = found.negative_system if with_system is None else with_system
        else:
            plan = apply(apply(plan, dict(self.settings)), settings)
        with_system = self.negative_system if with_system is None else with_system
        return ResolvedRequest(plan, changes.get("system") or self.system, with_system)

    def changed_job(self, changes: Mapping[str, Any]) -> Job:
        """Return its job, with the "prompt", "seed" and "negative" prompt of `changes` if they are given."""
        names = ("prompt", "seed", "negative")
        own = {name: changes[name] for name in names if changes.get(name) is not None}
        return replace(self.job, **own)


def read_replay(path: str | Path) -> ReplayRecord:
    """Read the metadata of an image file, of this package or of another program.

    Raises:
        LuminaError: if the file cannot be read, its metadata is missing or invalid, or it is a grid's
            sheet.
    """
    metadata = read_metadata(path)
    if "grid" in metadata:
        raise LuminaError(f"{path} is the sheet of a grid; use one of its images")
    if "parameters" in metadata:
        return _read_foreign(metadata)
    if not metadata:
        if fault := decode_image(path, None, find_metadata_fault):
            raise LuminaError(f"{path}: invalid metadata: {fault}")
        raise LuminaError(
            f"{path} does not contain generation settings: no metadata of lumina, A1111, ComfyUI or similar"
        )
    try:
        record = from_metadata(metadata)
    except LuminaError as error:
        raise LuminaError(f"{path}: {error}") from error
    for name, kind in KINDS.items():
        if type(getattr(record, name)) is not kind:
            raise LuminaError(f"{path}: invalid metadata: {name} is {getattr(record, name)!r}")
    try:
        parse_size(record.size, step=1)
    except UsageError as error:
        raise LuminaError(f"{path}: invalid metadata: {error}") from error
    return ReplayRecord(
        job=Job(record.prompt, record.seed, record.number, record.negative),
        settings=record.plan.to_json(),
        size=record.size,
        system=record.system,
        negative_system=record.negative_system,
        model=record.model,
        weights=record.weights,
        edit=record.edit,
        loras=record.loras,
        quantize=record.quantize,
    )


def _read_foreign(metadata: dict) -> ReplayRecord:
    """The record of an image of another program; a setting that no plan can have is left out."""
    size, plan = metadata.get("size"), {}
    unused = list(metadata.get("unused", ()))
    for name, value in metadata.get("plan", {}).items():
        try:
            Plan.from_json({name: value})
            plan[name] = value
        except UsageError:
            unused.append(name)
    job = Job(metadata["prompt"], metadata.get("seed", 0), 0, metadata.get("negative", ""))
    return ReplayRecord(
        job, plan, tuple(size) if size else None, program=metadata.get("program"), unused=tuple(unused)
    )


def unchanged_loras(loras: Iterable[Lora]) -> tuple[str, ...]:
    """LoRAs whose files are unchanged, as "path:scale"; `repr` keeps every digit of a scale."""
    return tuple(f"{lora[0]}:{lora[1]!r}" for lora in loras if not lora_state(lora, ""))


def lora_state(lora: Lora, unchanged: str = "is not used here") -> str:
    """What happened to the file of a LoRA; `unchanged` if nothing did."""
    path, _, digest = lora
    if Path(path).exists() and not is_data_file(path, _LORA_FILES):
        return "is not a LoRA file and is not opened"
    try:
        same = Path(path).is_file() and digest_adapter(Path(path)) == digest
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if same:
        return unchanged
    return "has changed since" if Path(path).is_file() else "no longer exists"


def read_replay_edit(path: str | Path, replay: ReplayRecord) -> Edit | None:
    """Return the edit that an image is the result of, if any.

    Raises:
        LuminaError: if its metadata is incomplete, or the edited image or mask has changed or is missing.
    """
    if replay.edit is None:
        return None
    try:
        names = [replay.edit["init"], *([replay.edit["mask"]] if replay.edit.get("mask") else [])]
        strength = replay.edit["strength"]
        known = {name: replay.edit.get(name) for name in ("pixels", "mask_pixels")}
    except (KeyError, AttributeError, TypeError) as error:
        raise LuminaError(f"{path}: cannot replay the edit: metadata field {error} is missing") from error
    for name in names:
        if not isinstance(name, str) or (os.path.lexists(name) and not is_data_file(name, SUFFIXES)):
            raise LuminaError(
                f"{path}: its metadata names {name!r} as an image that it was edited from; this is not an "
                "image file and is not opened"
            )
    try:
        edit = read_edit(*names, strength=strength, recorded=True)
        if edit.mask is not None and pixel_hash(edit.mask) != known["mask_pixels"]:
            # earlier versions read transparent pixels of a mask as white
            edit = replace(edit, mask=threshold_mask(open_image(names[1]).convert("L")))
    except LuminaError as error:
        raise LuminaError(f"{path} was edited from another image: {error}") from error
    for name, image in (("init", edit.image), ("mask", edit.mask)):
        if image and pixel_hash(image) != known["pixels" if name == "init" else "mask_pixels"]:
            raise LuminaError(f"{path} was edited from {replay.edit[name]}, which has changed since")
    return edit


def is_data_file(path: str | Path, suffixes: Iterable[str]) -> bool:
    """Whether a path that metadata names is an ordinary file of one of these kinds, not empty."""
    try:
        real = Path(os.path.realpath(path))
        facts = real.stat()
    except (OSError, ValueError):
        return False
    kind = real.suffix.lower() in suffixes and Path(path).suffix.lower() in suffixes
    return stat.S_ISREG(facts.st_mode) and facts.st_size > 0 and kind and not is_system_file(real)
