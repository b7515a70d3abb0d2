"""Settings of the captioner's training."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lumina_cli.core.training.config import Count, Rate, Seed, enough_scenes
from lumina_cli.core.training.nano.caption_batches import PAIRS

SEED = 700_001  # scenes that no other component is trained on


class Settings(BaseModel):
    """Settings of `lumina train nano-captioner`."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    paths: ClassVar[tuple[str, ...]] = ("tokenizer",)  # see `absolute_paths`

    part: str = "captioner"
    """The part that the recipe trains."""
    scenes: Count = 24_000
    """Number of rendered scenes to train on."""
    seed: Seed = 0
    """Random seed of the weights and the batches."""
    tokenizer: Path | None = None
    """Tokenizer folder; null: that of the bundled model."""
    vision_layers: Count = 4
    """Layers of the vision encoder."""
    text_layers: Count = 4
    """Layers of the language model."""
    looking: Annotated[int, Field(ge=0)] = 1_600
    """First steps, in which only the vision encoder trains."""
    steps: Count = 3_600
    """Optimizer steps in total, those of `looking` included."""
    batch: Count = 32
    """Images per step."""
    captions: Annotated[int, Field(ge=1, le=len(PAIRS))] = 4
    """Captions per image."""
    rewrite_every: Annotated[int, Field(ge=2)] = 3
    """Every N-th step trains on rewriting captions, without images."""
    lr: Rate = 2e-3
    """Peak learning rate; it falls to 0 along a cosine."""
    workers: Count = 2
    """Threads; each computes the gradients of a sub-batch."""
    save_every: Count = 100
    """Steps between checkpoints."""

    _enough = model_validator(mode="after")(enough_scenes)

    @model_validator(mode="after")
    def _divisible(self) -> "Settings":
        if self.workers > self.batch:
            raise ValueError(f"a batch of {self.batch} cannot be split over {self.workers} workers")
        return self
