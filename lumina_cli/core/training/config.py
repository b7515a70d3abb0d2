"""The recipe of a transformer: every setting of `lumina train`, its default, and what it means."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lumina_cli.core.errors import UsageError
from lumina_cli.core.registry import did_you_mean

STAGES = ("low", "high", "hq")
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # of the small parts: numpy takes none below 0
Weights = dict[str, Weight]
Setting = Annotated[int | float | str | None, Field(union_mode="left_to_right")]  # of a plan


def enough_scenes(settings: Any) -> Any:
    """Refuse a batch that its scenes cannot fill: every picture of a batch is another one."""
    if settings.batch > settings.scenes:
        raise ValueError(f"a batch of {settings.batch} needs as many scenes, not {settings.scenes}")
    return settings


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSettings(Strict):
    """`muon` trains the matrices of attention and feed-forward with Muon, and the rest with AdamW."""

    name: Literal["muon", "adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: float = 1e-15
    weight_decay: float = 0.0
    momentum: Share = 0.95  # of Muon
    muon_ratio: float = 1.0  # Muon's rate / AdamW's rate


class Stage(Strict):
    """One stretch of training at one size."""

    size: Annotated[
        int, Field(ge=64, multiple_of=64)
    ]  # pixels; the side of a square of the area that pictures are cropped to
    steps: Count
    batch: Count
    lr: Rate
    warmup: Annotated[int, Field(ge=0)] = 0  # steps
    decay: Share = 0.0  # last share of the steps, over which the rate falls to 0
    captions: Weights = {}  # level -> weight; empty: every level, equally
    langs: Weights = {}  # language -> weight; empty: every language, equally
    system: str = "real"  # system prompt, by name
    shift: Annotated[float, Field(gt=0)] | None = None  # None: from the number of image tokens
    auxiliary_loss: Weight = 0.0  # weight of the loss on latents pooled by 4
    keep_best: Annotated[float, Field(gt=0, le=1)] = 1.0  # share of the pictures with the highest "score"


class Validation(Strict):
    """The loss of the averaged weights on pictures held back from training, at fixed times and noise."""

    samples: Annotated[int, Field(ge=0)] = 256  # 0: none
    every: Count = 500  # steps


class Recipe(Strict):
    """What `lumina train` does for the part `transformer`."""

    part: Literal["transformer"] = "transformer"
    model: str  # a named size, to train from random weights; or a model folder to start from
    frozen: str = "nano"  # where vae, text_encoder, tokenizer and scheduler come from: a model name or folder
    data: str  # SOURCE
    out: Path | None = None  # None: runs/<name of the recipe>
    cache: Path | None = None  # latents and tokens; None: <out>/cache
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool = False
    checkpointing: bool = False  # compute each layer again on the way back: less memory, a third more time
    max_bad_rate: Share = 0.05  # share of the pictures of `data` that may be unreadable
    exact_lengths: bool = False  # batches of one caption length, which need no mask
    max_lengths: Count = 24  # how many lengths get batches of their own
    caption_dropout: Share = 0.1  # share trained with the empty caption
    optimizer: OptimizerSettings = OptimizerSettings()
    clip: Annotated[float, Field(gt=0)] = 2.0  # largest norm of the gradient
    ema: Share = 0.999
    log_every: Count = 10
    checkpoint_every: Count = 1000
    keep: Count = 2  # checkpoints
    export: Literal["fp32", "bf16"] = "fp32"  # precision of the weights in <out>/model
    plan: dict[str, Setting] = {}  # of <out>/model/plan.json, with which it is drawn; {}: that of `frozen`
    validation: Validation = Validation()
    stages: dict[str, Stage]

    @field_validator("stages", mode="before")
    @classmethod
    def known_stages(cls, stages: Any) -> Any:
        """Put the stages in their order; a name that is not a stage is an error."""
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
        """Refuse settings that no plan has."""
        from lumina_cli.core.flow.plan import Plan  # imports torch, which a recipe alone does not need

        try:
            Plan.from_json(plan)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return plan

    def chosen(self, stage: str) -> list[str]:
        """Return the names of the stages that `--stage` asks for; raises UsageError for an unknown one."""
        if stage == "all":
            return list(self.stages)
        if stage not in self.stages:
            hint = did_you_mean(stage, self.stages) or f"; the recipe has {', '.join(self.stages)}"
            raise UsageError(f"no stage {stage!r}{hint}")
        return [stage]
