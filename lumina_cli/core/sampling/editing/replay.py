"""Replay: generate an image again from its metadata."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import apply
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.sampling.editing.img2img import Edit, EditHook, pixel_hash, read_edit
from lumina_cli.core.sampling.output.filenames import FileNames
from lumina_cli.core.sampling.output.metadata import GenerationRecord, Lora, from_metadata
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.weights.fingerprint import digest_adapter

Note = Callable[[str], None]
CHANGES = ("seed", "size", "system", "negative", "negative_system")  # in addition to settings of the plan
KINDS = {"prompt": str, "negative": str, "system": str, "model": str, "seed": int, "number": int}


@dataclass(frozen=True)
class ReplayRecord:
    """What the metadata of an image contains.

    settings   of its plan: all of them, or those that another program stored
    model      name of the model as it was requested; None for images of other programs
    weights    see `GenerationRecord`; None if unknown
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
    edit: Mapping[str, Any] | None = None
    loras: tuple[Lora, ...] = ()
    quantize: str | None = None

    @property
    def ours(self) -> bool:
        """Whether this package generated the image; only then can a replay be identical."""
        return self.model is not None

    def resolve(self, plan: Plan, changes: Mapping[str, Any]) -> ResolvedRequest:
        """Return the settings to use: `plan`, overridden by the image's settings, then by `changes`."""
        settings = {name: value for name, value in changes.items() if name not in CHANGES}
        plan = apply(apply(plan, dict(self.settings)), settings)
        with_system = changes.get("negative_system", self.negative_system)
        return ResolvedRequest(plan, changes.get("system") or self.system, with_system)

    def changed_job(self, changes: Mapping[str, Any]) -> Job:
        """Return its job, with the "seed" and the "negative" prompt of `changes` if they are given."""
        own = {name: changes[name] for name in ("seed", "negative") if changes.get(name) is not None}
        return replace(self.job, **own)


def read_replay(path: str | Path) -> ReplayRecord:
    """Read the metadata of an image file, of this package or in A1111's "parameters" format.

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
        raise LuminaError(f"{path} does not contain generation settings: no metadata of lumina or A1111")
    try:
        record = from_metadata(metadata)
    except LuminaError as error:
        raise LuminaError(f"{path}: {error}") from error
    for name, kind in KINDS.items():
        if type(getattr(record, name)) is not kind:
            raise LuminaError(f"{path}: invalid metadata: {name} is {getattr(record, name)!r}")
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
    """The record of an image of another program."""
    size = metadata.get("size")
    job = Job(metadata["prompt"], metadata.get("seed", 0), 0, metadata.get("negative", ""))
    return ReplayRecord(job, metadata.get("plan", {}), tuple(size) if size else None)


def replay_images(
    paths: Iterable[str | Path],
    load: Callable[[str, tuple[str, ...], str | None], Pipeline],
    out: str | Path = "pictures",
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
    format: str = "png",
    note: Note | None = None,
) -> Iterator[dict]:
    """Generate images again from their metadata; yield a row with an "image" for each file.

        load      (name of a model, its LoRAs as "path:scale", kind of quantization) -> pipeline; called if
                  one of them differs from those of the previous image
        model     used for all images; None: the model that each image names
        changes   settings of the plan, and any of CHANGES, that override those of the images
        note      called with one line for each reason why an image will differ

    LoRAs are applied if their files still exist unchanged. Without changes, a row contains "apart", the
    largest difference between a PNG and its replay in levels of 255: 0 is identical, 1 is what the batch may
    change (see `load_pipeline`).

    All files are read before a model is loaded.

    Raises:
        LuminaError: if an image has no usable metadata, or the image that it was edited from has changed.
    """
    note, changes = note or (lambda line: None), dict(changes or {})
    found = [(path, read_replay(path)) for path in paths]
    edits = [_read_edit(path, replay) for path, replay in found]
    names = FileNames(out, format, 1)
    loader = _ModelLoader(load, model)
    for index, ((path, replay), edit) in enumerate(zip(found, edits, strict=True)):
        pipeline = None  # the loader may load another model: nothing may keep the previous one in memory
        pipeline = loader.pipeline_for(replay)
        resolved, job = replay.resolve(pipeline.plan, changes), replay.changed_job(changes)
        _report_differences(path, replay, pipeline, resolved.plan, note)
        if edit:
            pipeline = pipeline.with_hooks(EditHook(edit, note))
        size = pipeline.size_for(changes.get("size") or replay.size)
        record = GenerationRecord.of(pipeline, resolved, job, size)
        target, _ = names.assign(index, {"key": f"{Path(path).stem}-again"}, record)
        (image,) = pipeline.generate_batch([job], resolved, size)
        target = names.save_generated(image, target, record)
        row = {
            "prompt": job.prompt, "from": str(path), "image": str(target), "seed": job.seed,
            "number": job.number, "model": pipeline.name, "size": "{}x{}".format(*size),
            "kernel": pipeline.kernel,
        }  # fmt: skip
        yield row | ({} if changes else difference(path, image))


class _ModelLoader:
    """Loads the model of each replayed image, at most one at a time: two may exceed the memory."""

    def __init__(self, load: Callable[[str, tuple[str, ...], str | None], Pipeline], model: str | None):
        self.load, self.model = load, model
        self.loaded: tuple | None = None
        self.pipeline: Pipeline | None = None

    def pipeline_for(self, replay: ReplayRecord) -> Pipeline:
        """Return the pipeline of an image; the previous one if model, LoRAs and quantization are the same."""
        needed = self.model or replay.model or "auto", _unchanged_loras(replay.loras), replay.quantize
        if needed != self.loaded:
            self.pipeline = None
            self.pipeline, self.loaded = self.load(*needed), needed
        return self.pipeline


def difference(path: str | Path, image: Image.Image) -> dict:
    """Return {"apart": largest difference in levels of 255} of a PNG file and an image of its size.

    Otherwise {}: other formats are lossy, and other sizes cannot be compared.
    """
    before = open_image(path)
    if Path(path).suffix.lower() != ".png" or before.size != image.size:
        return {}
    return {"apart": max(high for _, high in ImageChops.difference(before, image).getextrema())}


def _report_differences(
    path: str | Path, replay: ReplayRecord, pipeline: Pipeline, plan: Plan, note: Note
) -> None:
    """Report why the image will differ, except for requested changes."""
    if not replay.ours:
        used = ", ".join(["prompt", *replay.settings])
        note(f"{path} is from another program: its {used} are used, but its noise and model differ")
        return
    applied = {(scale, digest) for _, scale, digest in pipeline.loras}
    lost = [
        f"with the LoRA {lora[0]} at {lora[1]:g}, which {_state(lora)}"
        for lora in replay.loras
        if lora[1:] not in applied
    ]
    if replay.quantize and replay.quantize != pipeline.quantize:
        lost.append(f"in {replay.quantize}, which is not used here")
    if replay.weights:
        (then, fit_then), (now, fit_now) = (
            weights.partition("+fit:")[::2]
            for weights in (pipeline.recognize(replay.weights, plan), pipeline.weights_for(plan))
        )
        base = then.partition("+")[0]
        if base != pipeline.base_weights or (then != now and not lost):
            lost.insert(0, f"with other weights than those of {pipeline.name}")
        if fit_then and fit_now and fit_then != fit_now:
            lost.append("with another fit of its cache")
    for what in lost:
        note(f"{path} was generated {what}; the result will differ")


def _unchanged_loras(loras: Iterable[Lora]) -> tuple[str, ...]:
    """LoRAs whose files are unchanged, as "path:scale"; `repr` keeps every digit of a scale."""
    return tuple(f"{lora[0]}:{lora[1]!r}" for lora in loras if not _state(lora, ""))


def _state(lora: Lora, unchanged: str = "is not used here") -> str:
    """What happened to the file of a LoRA; `unchanged` if nothing did."""
    path, _, digest = lora
    try:
        same = Path(path).is_file() and digest_adapter(Path(path)) == digest
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if same:
        return unchanged
    return "has changed since" if Path(path).is_file() else "no longer exists"


def _read_edit(path: str | Path, replay: ReplayRecord) -> Edit | None:
    """Return the edit that an image is the result of, if any.

    Raises:
        LuminaError: if its metadata is incomplete, or the edited image or mask has changed or is missing.
    """
    if replay.edit is None:
        return None
    try:
        edit = read_edit(replay.edit["init"], replay.edit.get("mask"), replay.edit["strength"])
        known = {name: replay.edit.get(name) for name in ("pixels", "mask_pixels")}
    except (KeyError, AttributeError, TypeError) as error:
        raise LuminaError(f"{path}: cannot replay the edit: metadata field {error} is missing") from error
    except LuminaError as error:
        raise LuminaError(f"{path} was edited from another image: {error}") from error
    for name, image in (("init", edit.image), ("mask", edit.mask)):
        if image and pixel_hash(image) != known["pixels" if name == "init" else "mask_pixels"]:
            raise LuminaError(f"{path} was edited from {replay.edit[name]}, which has changed since")
    return edit
