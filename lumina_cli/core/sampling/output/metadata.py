"""The generation record: image metadata that suffices to generate the image again."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Protocol

from lumina_cli import __version__
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.limits import shorten
from lumina_cli.core.sampling.request import Job, ResolvedRequest

Lora = tuple[str, float, str]  # path as it was given, scale, digest of the file
OPTIONAL = ("loras", "quantize", "edit")  # left out of the metadata if empty


class ImageSource(Protocol):
    """What a record contains of a pipeline, which imports this module."""

    name: str
    loras: tuple[Lora, ...]
    quantize: str | None
    edit_settings: dict | None

    def weights_for(self, plan: Plan) -> str:
        """Return the fingerprint of the weights and of a cache fit."""

    def recognize(self, weights: str, plan: Plan) -> str:
        """Return what `weights_for` returns now for the weights of an image of an earlier version."""


@dataclass(frozen=True, kw_only=True)
class GenerationRecord:
    """How one image was generated. The order of the fields is that of the metadata.

    negative          the negative prompt
    negative_system   whether the negative prompt got the system prompt
    number            the noise is the `number`-th of `seed`
    weights           what determines the image besides the settings, joined by "+": fingerprint of the model
                      folder, "digest:scale" of each LoRA, the kind of quantization, "fit:digest" of a cache
                      fit; None if unknown, as in images of old versions
    size              (width, height) in pixels
    loras, quantize   changes made to the weights; not compared, because `weights` covers them
    edit              the image and the mask that were edited, see `Edit.settings`
    recognize         translates `weights` of images of earlier versions; not in the metadata
    """

    prompt: str
    negative: str = ""
    negative_system: bool = False
    seed: int
    number: int
    model: str
    weights: str | None = None
    size: tuple[int, int]
    system: str
    plan: Plan
    loras: tuple[Lora, ...] = field(default=(), compare=False)
    quantize: str | None = field(default=None, compare=False)
    edit: dict | None = None
    recognize: Callable[[str], str] = field(default=str, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        pipeline: ImageSource,
        resolved: ResolvedRequest,
        job: Job,
        size: tuple[int, int],
        weights: str | None = None,
    ) -> "GenerationRecord":
        """Return the record of an image that `pipeline` generates.

        `weights` is `pipeline.weights_for(resolved.plan)`; pass it if that was computed before.
        """
        return cls(
            prompt=job.prompt,
            negative=job.negative,
            negative_system=bool(job.negative) and resolved.negative_system,
            seed=job.seed,
            number=job.number,
            model=pipeline.name,
            weights=weights or pipeline.weights_for(resolved.plan),
            size=size,
            system=resolved.system,
            plan=resolved.plan,
            loras=pipeline.loras,
            quantize=pipeline.quantize,
            edit=pipeline.edit_settings,
            recognize=partial(pipeline.recognize, plan=resolved.plan),
        )

    def describes(self, other: "GenerationRecord | None") -> bool:
        """Whether `other`, read from an image, is this record, with the weights by any name they had."""
        if other is None or other.weights is None or other.weights == self.weights:
            return self == other
        return self == replace(other, weights=self.recognize(other.weights))


def to_metadata(record: GenerationRecord) -> dict:
    """Return a record as a dict that JSON can store, with the version of this package."""
    metadata = {one.name: getattr(record, one.name) for one in fields(record) if one.name != "recognize"}
    metadata |= {"size": list(record.size), "plan": record.plan.to_json()}
    metadata["loras"] = [list(lora) for lora in record.loras]
    metadata = {name: value for name, value in metadata.items() if value or name not in OPTIONAL}
    return metadata | {"version": __version__}


def from_metadata(metadata: dict) -> GenerationRecord:
    """Return the record that `to_metadata` wrote.

    Raises:
        LuminaError: if a required value is missing or has the wrong type.
    """
    try:
        return GenerationRecord(
            prompt=metadata["prompt"],
            negative=metadata.get("negative", ""),
            negative_system=metadata.get("negative_system", False),
            seed=metadata["seed"],
            number=metadata["number"],
            model=metadata["model"],
            weights=metadata.get("weights"),
            size=_read_size(metadata["size"]),
            system=metadata["system"],
            plan=Plan.from_json(metadata["plan"]),
            loras=_read_loras(metadata.get("loras", ())),
            quantize=str(metadata["quantize"]) if metadata.get("quantize") else None,
            edit=metadata.get("edit"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LuminaError(
            f"the image does not contain its generation settings: its metadata lacks {error}"
        ) from error


def _read_size(size: object) -> tuple[int, int]:
    if not isinstance(size, list | tuple) or len(size) != 2:
        raise LuminaError(f"invalid metadata: size is {_show(size)}, but must be [width, height] in pixels")
    return size[0], size[1]


def _read_loras(loras: object) -> tuple[Lora, ...]:
    if not isinstance(loras, list | tuple) or not all(map(_is_lora, loras)):
        raise LuminaError(
            f"invalid metadata: loras is {_show(loras)}, but must be a list of [file, scale, digest]"
        )
    return tuple((lora[0], float(lora[1]), lora[2]) for lora in loras)


def _is_lora(lora: object) -> bool:
    if not isinstance(lora, list | tuple) or len(lora) != 3:
        return False
    path, scale, digest = lora
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool) and abs(scale) < 1e6
    return isinstance(path, str) and is_number and isinstance(digest, str)


def _show(value: object) -> str:
    return shorten(repr(value), 80)
