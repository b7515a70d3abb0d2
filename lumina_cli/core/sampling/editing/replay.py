"""A picture draws itself again: its metadata, read as what is to be drawn."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.presets import apply
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.sampling.editing.img2img import Edit, EditingPipeline, pixel_hash, read_edit
from lumina_cli.core.sampling.output.filenames import FileNames
from lumina_cli.core.sampling.output.metadata import GenerationRecord, Lora, from_metadata
from lumina_cli.core.sampling.pipeline import Pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.weights.fingerprint import digest_adapter

Note = Callable[[str], None]
CHANGES = ("seed", "size", "system", "negative", "negative_system")  # beside the settings of the plan
KINDS = {"prompt": str, "negative": str, "system": str, "model": str, "seed": int, "number": int}


@dataclass(frozen=True)
class ReplayRecord:
    """What a picture says of how it was drawn.

    settings   of its plan: all of them, or those that another program's text tells
    model      its name, as it was asked for then; None in another program's picture
    weights    what decided the picture beside its settings, where it tells that; see `Origin`
    loras      the files of its LoRAs
    quantize   the kind of 8 bits that the weights were in
    edit       what it was drawn over, if it was, as `Edit.settings` tells it
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
        """Whether this package drew it, so that the same picture can come out again."""
        return self.model is not None

    def setup(self, plan: Plan, changes: Mapping[str, Any]) -> ResolvedRequest:
        """Return how to draw it: `changes` over its own settings, and those over the model's `plan`."""
        settings = {name: value for name, value in changes.items() if name not in CHANGES}
        plan = apply(apply(plan, dict(self.settings)), settings)
        with_system = changes.get("negative_system", self.negative_system)
        return ResolvedRequest(plan, changes.get("system") or self.system, with_system)

    def changed(self, changes: Mapping[str, Any]) -> Job:
        """Return its job with another "seed" or "negative" prompt, if `changes` has one."""
        own = {name: changes[name] for name in ("seed", "negative") if changes.get(name) is not None}
        return replace(self.job, **own)


def read_replay(path: str | Path) -> ReplayRecord:
    """Return what a picture file says of how it was drawn.

    LuminaError in one line where it says nothing; another program's text of parameters is taken as far as it
    goes.
    """
    metadata = read_metadata(path)
    if "grid" in metadata:
        raise LuminaError(f"{path} is the sheet of a grid; draw one of its pictures again")
    if "parameters" in metadata:
        return _of_another(metadata)
    if not metadata:
        raise LuminaError(f"{path} does not say how it was drawn: no metadata of lumina's or A1111's kind")
    try:
        origin = from_metadata(metadata)
    except LuminaError as error:
        raise LuminaError(f"{path}: {error}") from error
    job = Job(origin.prompt, origin.seed, origin.number, origin.negative)
    for name, kind in KINDS.items():
        if type(getattr(origin, name)) is not kind:
            raise LuminaError(f"{path}: its metadata has {getattr(origin, name)!r} as {name}")
    return ReplayRecord(
        job, origin.plan.to_json(), origin.size, origin.system, origin.negative_system, origin.model,
        origin.weights, origin.edit, origin.loras, origin.quantize,
    )  # fmt: skip


def _of_another(metadata: dict) -> ReplayRecord:
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
    """Yield a row with an "image" for every picture file that is drawn again.

        load      from a model's name, and the LoRAs ("path:scale") and kind of 8 bits to put on it, to its
                  pipeline; called where one of them differs from those of the picture before
        model     draws them; without it, the model that each picture names
        changes   settings of the plan, or any of CHANGES, to draw it with instead
        note      told, a line each, why a picture will not come out the same

    The LoRAs to put on are those of the picture whose files are where they were, and as they were. Where
    nothing is changed, a row says under "apart" by how many levels of 255 a PNG and its new drawing differ
    at most: 0 is the same, 1 is what a batch may change (see `load_pipeline`).

    All files are read before a model is loaded. LuminaError where one does not say how it was drawn, or was
    drawn over a picture that is gone or another one now.
    """
    note, changes = note or (lambda line: None), dict(changes or {})
    found = [(path, read_replay(path)) for path in paths]
    edits = [_edit_of(path, again) for path, again in found]
    names = FileNames(Path(out), format, 1)
    pipeline = drawer = loaded = None
    for index, ((path, again), edit) in enumerate(zip(found, edits, strict=True)):
        wanted = model or again.model or "auto", _specs(again.loras), again.quantize
        if wanted != loaded:
            pipeline = drawer = None  # two models at once may be more than there is room for
            pipeline, loaded = load(*wanted), wanted
        drawer = EditingPipeline(pipeline, edit, note) if edit else pipeline
        setup, job = again.setup(pipeline.plan, changes), again.changed(changes)
        _report(path, again, pipeline, setup.plan, note)
        size = drawer.size_for(changes.get("size") or again.size)
        origin = GenerationRecord(
            job.prompt, job.seed, job.number, pipeline.name, size, setup.system, setup.plan,
            pipeline.weights_for(setup.plan), job.negative, bool(job.negative) and setup.negative_system,
            edit and edit.settings(), pipeline.loras, pipeline.quantize,
        )  # fmt: skip
        target, _ = names.of(index, {"key": f"{Path(path).stem}-again"}, origin)
        (picture,) = drawer.draw_setup([job], setup, size)
        target = names.save_drawn(picture, target, origin)
        row = {
            "prompt": job.prompt, "from": str(path), "image": str(target), "seed": job.seed,
            "number": job.number, "model": pipeline.name, "size": "{}x{}".format(*size),
            "kernel": pipeline.kernel,
        }  # fmt: skip
        yield row | ({} if changes else apart(path, picture))


def apart(path: str | Path, picture: Image.Image) -> dict:
    """Return {"apart": largest difference in levels} of a PNG and a picture; {} where that means nothing."""
    before = open_image(path)
    if Path(path).suffix.lower() != ".png" or before.size != picture.size:  # others do not keep every pixel
        return {}
    return {"apart": max(high for _, high in ImageChops.difference(before, picture).getextrema())}


def _report(path: str | Path, again: ReplayRecord, pipeline: Pipeline, plan: Plan, note: Note) -> None:
    """Say why a picture will not come out the same, as far as that is not what was asked to change."""
    if not again.ours:
        told = ", ".join(["prompt", *again.settings])
        note(f"{path} is another program's: its {told} are taken, but its noise and model are not ours")
        return
    here = {(scale, digest) for _, scale, digest in pipeline.loras}
    lost = [
        f"with the LoRA {lora[0]} at {lora[1]:g}, which {_state(lora)}"
        for lora in again.loras
        if lora[1:] not in here
    ]
    if again.quantize and again.quantize != pipeline.quantize:
        lost.append(f"in {again.quantize}, which is left out here")
    if again.weights:
        (then, fit_then), (now, fit_now) = (
            weights.partition("+fit:")[::2] for weights in (again.weights, pipeline.weights_for(plan))
        )
        base = then.partition("+")[0]
        if base != pipeline.base_weights or (then != now and not lost):
            lost.insert(0, f"by other weights than those of {pipeline.name}")
        if fit_then and fit_now and fit_then != fit_now:
            lost.append("by another fit of its cache")
    for what in lost:
        note(f"{path} was drawn {what}; it will look different")


def _specs(loras: Iterable[Lora]) -> tuple[str, ...]:
    """LoRAs whose files are as they were, as one writes them; `repr` keeps every digit of a scale."""
    return tuple(f"{lora[0]}:{lora[1]!r}" for lora in loras if not _state(lora, ""))


def _state(lora: Lora, whole: str = "is left out here") -> str:
    """What became of the file of a LoRA; `whole` where nothing did."""
    path, _, digest = lora
    try:
        same = Path(path).is_file() and digest_adapter(Path(path)) == digest
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if same:
        return whole
    return "has changed since" if Path(path).is_file() else "is gone"


def _edit_of(path: str | Path, again: ReplayRecord) -> Edit | None:
    """Return the edit that a picture came from, if it did; LuminaError where that is not as it was."""
    if again.edit is None:
        return None
    try:
        edit = read_edit(again.edit["init"], again.edit.get("mask"), again.edit["strength"])
        known = {name: again.edit.get(name) for name in ("pixels", "mask_pixels")}
    except (KeyError, AttributeError, TypeError) as error:
        raise LuminaError(f"{path} does not say what it was drawn over: {error} is missing") from error
    except LuminaError as error:
        raise LuminaError(f"{path} was drawn over another picture: {error}") from error
    for name, image in (("init", edit.picture), ("mask", edit.mask)):
        if image and pixel_hash(image) != known["pixels" if name == "init" else "mask_pixels"]:
            raise LuminaError(f"{path} was drawn over {again.edit[name]}, which has changed since")
    return edit
