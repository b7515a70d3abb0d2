"""The recipe of a transformer: each setting of `lumina train`, its default and its meaning."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

STAGES = ("low", "high", "hq")
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # of the nano components: numpy accepts no negative seed
Weights = dict[str, Weight]
Setting = Annotated[int | float | str | None, Field(union_mode="left_to_right")]  # of a sampling plan


def enough_scenes(settings: Any) -> Any:
    """Reject a batch larger than the number of scenes: a batch contains each scene at most once."""
    if settings.batch > settings.scenes:
        raise ValueError(f"a batch of {settings.batch} needs as many scenes, not {settings.scenes}")
    return settings


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class OptimizerSettings(Strict):
    """`muon` trains the matrices of attention and feed-forward with Muon, and the rest with AdamW."""

    name: Literal["muon", "adamw"] = "adamw"
    """The optimizer."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay rates of AdamW's moment estimates."""
    eps: float = 1e-15
    """Added to AdamW's denominator."""
    weight_decay: float = 0.0
    """Decoupled weight decay, of both optimizers."""
    momentum: Fraction = 0.95
    """Momentum of Muon."""
    muon_ratio: float = 1.0
    """Learning rate of Muon divided by that of AdamW."""


class Stage(Strict):
    """One training stage at one image size."""

    size: Annotated[int, Field(ge=64, multiple_of=64)]
    """Image size in pixels: the side of a square; images are cropped to buckets of about its area."""
    steps: Count
    """Optimizer steps."""
    batch: Count
    """Images per step."""
    lr: Rate
    """Peak learning rate."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate rises to `lr`."""
    decay: Fraction = 0.0
    """Last fraction of the steps, over which the learning rate falls to 0."""
    captions: Weights = {}
    """Caption level to sampling weight, such as `{short: 0.5, medium: 0.5}`; empty: all levels equally."""
    langs: Weights = {}
    """Language to sampling weight; empty: all languages equally."""
    system: str = "real"
    """System prompt, by name."""
    shift: Annotated[float, Field(gt=0)] | None = None
    """Time shift of the training times; null: computed from the number of image tokens."""
    auxiliary_loss: Weight = 0.0
    """Weight of the loss on latents average-pooled by 4."""
    keep_best: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Fraction of the images to train on: those with the highest `score`."""


class Validation(Strict):
    """The loss of the averaged weights on images held back from training, at fixed times and noise."""

    samples: Annotated[int, Field(ge=0)] = 256
    """Images held back from training; 0 disables validation."""
    every: Count = 500
    """Steps between validations."""


class Recipe(Strict):
    """The settings of `lumina train` for the part `transformer`."""

    paths: ClassVar[tuple[str, ...]] = ("model", "frozen", "data", "cache")  # see `absolute_paths`

    part: Literal["transformer"] = "transformer"
    """The part that the recipe trains."""
    model: str
    """A named size to train from random weights, or a model folder to start from."""
    frozen: str = "nano"
    """Model name or folder that provides vae, text_encoder, tokenizer and scheduler."""
    data: str
    """Training data: any SOURCE, such as a folder of shards."""
    out: Path | None = None
    """Run folder; null: `runs/` and the name of the recipe."""
    cache: Path | None = None
    """Folder for cached latents and tokens; null: `cache` in the run folder."""
    seed: int = 0
    """Random seed of the weights, the order of the data and the noise."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Compute precision; the weights are always trained in float32."""
    compile: bool = False
    """Compile the network with `torch.compile`."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, about a third more time per step."""
    max_bad_rate: Fraction = 0.05
    """Fraction of the images of `data` that may be unreadable."""
    exact_lengths: bool = False
    """Form batches of one caption length, which need no mask."""
    max_lengths: Count = 24
    """Number of caption lengths that get batches of their own under `exact_lengths`."""
    caption_dropout: Fraction = 0.1
    """Fraction of the samples that are trained with the empty caption."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """Optimizer settings."""
    clip: Annotated[float, Field(gt=0)] = 2.0
    """Maximum gradient norm."""
    ema: Fraction = 0.999
    """Decay of the exponential moving average of the weights."""
    log_every: Count = 10
    """Steps between rows of metrics."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    export: Literal["fp32", "bf16"] = "fp32"
    """Precision of the exported weights in the run's `model` folder."""
    plan: dict[str, Setting] = {}
    """Sampling plan of the exported model (its `plan.json`); empty: that of `frozen`."""
    validation: Validation = Validation()
    """Validation settings."""
    stage: Literal["low", "high", "hq", "all"] = "all"
    """Stage to train, as `--stage`; `--resume` keeps it."""
    stages: dict[str, Stage]
    """Training stages, by name: low, high, hq. They run in this order."""

    @field_validator("stages", mode="before")
    @classmethod
    def known_stages(cls, stages: Any) -> Any:
        """Sort the stages in the order of training.

        Raises:
            ValueError: if a name is not a stage, or if there are none.
        """
        if not isinstance(stages, dict):
            return stages
        for name in stages:
            if name not in STAGES:
                hint = did_you_mean(name, STAGES) or f"; choose from {', '.join(STAGES)}"
                raise ValueError(f"no stage {name!r}{hint}")
        if not stages:
            raise ValueError(f"no stage; give at least one of {', '.join(STAGES)}")
        return {name: stages[name] for name in STAGES if name in stages}

    @field_validator("plan")
    @classmethod
    def possible_plan(cls, plan: dict[str, Setting]) -> dict[str, Setting]:
        """Check the settings of the sampling plan.

        Raises:
            ValueError: if a setting is unknown or invalid.
        """
        from lumina_cli.core.flow.plan import Plan  # imports torch: only for recipes with a plan

        try:
            Plan.from_json(plan)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return plan

    def select_stages(self, stage: str | None = None) -> list[str]:
        """Return the names of the stages that `--stage` selects; None: those of the setting `stage`.

        Raises:
            UsageError: if the recipe does not have the stage.
        """
        stage = stage or self.stage
        if stage == "all":
            return list(self.stages)
        if stage not in self.stages:
            hint = did_you_mean(stage, self.stages) or f"; the recipe has {', '.join(self.stages)}"
            raise UsageError(f"no stage {stage!r}{hint}")
        return [stage]


def absolute_paths(settings: Any, base: Path | None = None) -> Any:
    """Return settings whose relative paths are absolute, so that they also apply in another working folder.

    settings   an instance of a schema; its `paths` are the names of settings that may be paths
    base       folder of the recipe; a path that does not exist in the working folder may exist there

    A new cache belongs to the working folder. Anything else that does not exist, such as a hub id, is kept.
    """
    changes = {}
    for name in getattr(settings, "paths", ()):
        value = getattr(settings, name)
        if value is not None and (found := _absolute(name, str(value), base)):
            changes[name] = type(value)(found)
    return settings.model_copy(update=changes)


def _absolute(name: str, value: str, base: Path | None) -> str | None:
    """Return the absolute path that the value of a setting stands for; None if it is not a relative path."""
    from lumina_cli.core.io.location import is_url
    from lumina_cli.core.nextdit.config import NAMED
    from lumina_cli.core.registry import MODELS
    from lumina_cli.core.shards.overlays.reader import split_source

    names = {"model": NAMED, "frozen": MODELS}.get(name, ())
    if value in names or value == "-" or is_url(value) or os.path.isabs(value):
        return None
    places = [value, *([split_source(value)[0], value.rpartition("?")[0]] if name == "data" else [])]
    for folder in [Path.cwd(), *([base] if base else [])]:
        for place in filter(None, places):  # a source may have settings or overlays after "?"
            if (folder / place).exists():
                return os.path.abspath(folder / place) + value[len(place) :]
    return os.path.abspath(value) if name == "cache" else None
