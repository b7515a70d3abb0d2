"""What a picture file says of itself: everything that is needed to draw it again."""

from dataclasses import dataclass, field

from lumina_cli import __version__
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan

Lora = tuple[str, float, str]  # its file, as it was given; its scale; a digest of the file


@dataclass(frozen=True)
class GenerationRecord:
    """How one picture was drawn; its noise is the `number`-th of `seed`.

    weights    what decides a picture beside its settings, joined by "+": the fingerprint of the model's
               folder, "digest:scale" of each LoRA, the kind of 8 bits, "fit:digest" of a fitted cache
    loras      the files of the LoRAs; where two origins differ in no more than these, they are one
    """

    prompt: str
    seed: int
    number: int
    model: str
    size: tuple[int, int]  # width, height in pixels
    system: str
    plan: Plan
    weights: str | None = None  # None in pictures that do not tell it
    negative: str = ""  # what guidance moved away from
    negative_system: bool = False  # whether the system prompt stood before it, too
    edit: dict | None = None  # the picture and the mask that it was drawn from
    loras: tuple[Lora, ...] = field(default=(), compare=False)
    quantize: str | None = field(default=None, compare=False)


def to_metadata(origin: GenerationRecord) -> dict:
    """Return an origin as a dict that JSON can hold, with this package's version."""
    more = {"loras": [list(lora) for lora in origin.loras], "quantize": origin.quantize, "edit": origin.edit}
    return {
        "prompt": origin.prompt,
        "negative": origin.negative,
        "negative_system": origin.negative_system,
        "seed": origin.seed,
        "number": origin.number,
        "model": origin.model,
        "weights": origin.weights,
        "size": list(origin.size),
        "system": origin.system,
        "plan": origin.plan.to_json(),
        **{name: value for name, value in more.items() if value},
        "version": __version__,
    }


def from_metadata(metadata: dict) -> GenerationRecord:
    """Return the origin that `to_metadata` wrote; LuminaError where something is missing."""
    try:
        width, height = metadata["size"]
        return GenerationRecord(
            prompt=metadata["prompt"],
            seed=metadata["seed"],
            number=metadata["number"],
            model=metadata["model"],
            size=(width, height),
            system=metadata["system"],
            plan=Plan.from_json(metadata["plan"]),
            weights=metadata.get("weights"),
            negative=metadata.get("negative", ""),
            negative_system=metadata.get("negative_system", False),
            edit=metadata.get("edit"),
            loras=tuple(_lora(*lora) for lora in metadata.get("loras", ())),
            quantize=str(metadata["quantize"]) if metadata.get("quantize") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LuminaError(f"the picture does not say how it was drawn: its metadata lacks {error}") from error


def _lora(path: str, scale: float, digest: str) -> Lora:
    return str(path), float(scale), str(digest)
