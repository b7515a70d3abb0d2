"""Replay: generate an image again from its metadata."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image
from lumina_cli.core.models.locate import find_local
from lumina_cli.core.sampling.editing.img2img import EditHook, image_size
from lumina_cli.core.sampling.editing.replay_record import (
    ReplayRecord,
    lora_state,
    read_replay,
    read_replay_edit,
    unchanged_loras,
)
from lumina_cli.core.sampling.output.filenames import FileNames, slug
from lumina_cli.core.sampling.output.metadata import GenerationRecord
from lumina_cli.core.sampling.pipeline import Pipeline

Note = Callable[[str], None]


def replay_images(
    paths: Iterable[str | Path],
    load: Callable[[str, tuple[str, ...], str | None], Pipeline],
    out: str | Path = "pictures",
    model: str | None = None,
    changes: Mapping[str, Any] | None = None,
    format: str = "png",
    variants: Sequence[Mapping[str, Any]] = ({},),
    note: Note | None = None,
) -> Iterator[dict]:
    """Generate images again from their metadata; yield a row with an "image" for each file.

        load      (name of a model, its LoRAs as "path:scale", kind of quantization) -> pipeline; called if
                  one of them differs from those of the previous image
        model     used for all images; None: the model that each image names
        changes   settings of the plan, and any of CHANGES, that override those of the images
        variants  further changes; each image is generated once with each of them
        note      called with one line for each reason why an image will differ

    A model that only the metadata of an image names is never downloaded.

    LoRAs are applied if their files still exist unchanged. Without changes, a row contains "apart", the
    largest difference between a PNG and its replay in levels of 255: 0 is identical, 1 is what the batch may
    change (see `load_pipeline`); one note at the end counts the images that differ for no other reason.

    All files are read before a model is loaded.

    Raises:
        LuminaError: if an image has no usable metadata, or the image that it was edited from has changed.
    """
    note, changes = note or (lambda line: None), dict(changes or {})
    found = [(path, read_replay(path)) for path in paths]
    edits = [read_replay_edit(path, replay) for path, replay in found]
    if model is None:
        for path, replay in found:
            _check_model(path, replay)
    names = FileNames(out, format, 1)
    loader, apart = _ModelLoader(load, model), [0]
    for index, ((path, replay), edit) in enumerate(zip(found, edits, strict=True)):
        pipeline = None  # the loader may load another model: nothing may keep the previous one in memory
        pipeline = loader.pipeline_for(replay)
        if edit:
            pipeline = pipeline.with_hooks(EditHook(edit, note))
        for variant in variants:
            own = changes | variant
            resolved, job = replay.resolve(pipeline.plan, own), replay.changed_job(own)
            if variant is variants[0]:
                reported = _report_differences(path, replay, pipeline, resolved.plan, note)
            size = _choose_size(path, replay, own, pipeline, note)
            record = GenerationRecord.of(pipeline, resolved, job, size)
            target, _ = names.assign(index, {"key": _name_replay(path, own)}, record)
            (image,) = pipeline.generate_batch([job], resolved, size)
            target = names.save_generated(image, target, record)
            row = {
                "prompt": job.prompt, "from": str(path), "image": str(target), "seed": job.seed,
                "number": job.number, "model": pipeline.name, "size": "{}x{}".format(*size),
                "kernel": pipeline.kernel,
            }  # fmt: skip
            found_apart = {} if own else difference(path, image)
            apart.extend([] if reported else found_apart.values())
            yield row | found_apart
    if differing := sum(map(bool, apart)):
        note(
            f"{differing} of {len(found)} images differ from their files, by at most {max(apart)} of 255: "
            "each was generated alone, and a batch of another size or another device changes rounding"
        )


def _check_model(path: str | Path, replay: ReplayRecord) -> None:
    """Check that the model that an image names is on this machine.

    Raises:
        LuminaError: if it is not.
    """
    try:
        if replay.model is not None:
            find_local(replay.model)
    except LuminaError as error:
        raise LuminaError(f"{path}: its metadata names the model of another machine: {error}") from error


def _choose_size(
    path: str | Path, replay: ReplayRecord, changes: Mapping[str, Any], pipeline: Pipeline, note: Note
) -> tuple[int, int]:
    """Return the size of an image; that of another program's image becomes one that the model supports."""
    if changes.get("size") or replay.ours or replay.size is None:
        return pipeline.size_for(changes.get("size") or replay.size)
    size = image_size(replay.size, pipeline.default_size, pipeline.token_side)
    if size != replay.size:
        note("{}: {}x{} becomes {}x{}, a size of this model".format(path, *replay.size, *size))
    return size


def _name_replay(path: str | Path, changes: Mapping[str, Any]) -> str:
    """Return the start of a file name: that of the image and, if it is new, the prompt."""
    prompt = changes.get("prompt")
    return f"{Path(path).stem}-{slug(prompt) if prompt else 'again'}"


class _ModelLoader:
    """Loads the model of each replayed image, at most one at a time: two may exceed the memory."""

    def __init__(self, load: Callable[[str, tuple[str, ...], str | None], Pipeline], model: str | None):
        self.load, self.model = load, model
        self.loaded: tuple | None = None
        self.pipeline: Pipeline | None = None

    def pipeline_for(self, replay: ReplayRecord) -> Pipeline:
        """Return the pipeline of an image; the previous one if model, LoRAs and quantization are the same."""
        needed = self.model or replay.model or "auto", unchanged_loras(replay.loras), replay.quantize
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
) -> bool:
    """Report why the image will differ, except for requested changes; return whether it will."""
    if not replay.ours:
        used = ", ".join(["prompt", *replay.settings])
        program = replay.program or "another program"
        lost = f"; its {', '.join(replay.unused)} cannot be used here" if replay.unused else ""
        note(f"{path} is from {program}: its {used} are used, but its noise and model differ{lost}")
        return True
    applied = {(scale, digest) for _, scale, digest in pipeline.loras}
    lost = [
        f"with the LoRA {lora[0]} at {lora[1]:g}, which {lora_state(lora)}"
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
    return bool(lost)
