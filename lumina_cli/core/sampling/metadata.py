"""What a picture file says of itself: everything that is needed to draw it again."""

from dataclasses import dataclass

from lumina_cli import __version__
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan


@dataclass(frozen=True)
class Origin:
    """How one picture was drawn; its noise is the `number`-th of `seed`."""

    prompt: str
    seed: int
    number: int
    model: str
    size: tuple[int, int]  # width, height in pixels
    system: str
    plan: Plan
    weights: str | None = None  # fingerprint of the model's; None in pictures that do not tell it
    negative: str = ""  # what guidance moved away from
    negative_system: bool = False  # whether the system prompt stood before it, too
    edit: dict | None = None  # the picture and the mask that it was drawn from


def to_metadata(origin: Origin) -> dict:
    """Return an origin as a dict that JSON can hold, with this package's version."""
    edit = {"edit": origin.edit} if origin.edit else {}
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
        **edit,
        "version": __version__,
    }


def from_metadata(metadata: dict) -> Origin:
    """Return the origin that `to_metadata` wrote; LuminaError where something is missing."""
    try:
        width, height = metadata["size"]
        return Origin(
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
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LuminaError(f"the picture does not say how it was drawn: its metadata lacks {error}") from error
