"""A model folder's settings, read without loading weights: shapes, default plan, default size."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.path import shift_from_scheduler
from lumina_cli.core.flow.presets import apply, find_preset
from lumina_cli.core.images.sizes import Size, fit_ratio, parse_ratio, parse_size
from lumina_cli.core.limits import read_json_file
from lumina_cli.core.models.hub import SYSTEMS
from lumina_cli.core.models.layout import WEIGHT_COMPONENTS, first_line
from lumina_cli.core.models.locate import ModelChoice
from lumina_cli.core.nextdit.config import config_from_diffusers
from lumina_cli.core.weights.config_check import check_config
from lumina_cli.core.weights.fingerprint import identify_model
from lumina_cli.core.weights.json_files import read_json

PlanLike = Plan | Mapping | None


class ModelFolder:
    """The settings of a model folder.

    name, folder, reason   as in `ModelChoice`
    weights                fingerprint of what generates, since that of a run folder changes while it trains
    identity               `weights`, and what earlier versions called the same model
    config                 shapes of the network
    factor                 pixels per latent, in width and height
    plan                   default plan of the model

    Raises:
        LuminaError: if a config is missing, damaged or of another kind of model.
    """

    def __init__(self, choice: ModelChoice):
        self.name, self.folder, self.reason = choice.name, Path(choice.folder), choice.reason
        self.identity = identify_model(self.folder)
        self.weights = self.identity.current
        for component in WEIGHT_COMPONENTS:
            with component_errors(self.folder / component):
                check_config(self.folder / component)
        with component_errors(self.folder / "transformer"):
            self.config = config_from_diffusers(read_json(self.folder / "transformer" / "config.json"))
        with component_errors(self.folder / "vae"):
            blocks = read_json(self.folder / "vae" / "config.json")["block_out_channels"]
        self.factor = 2 ** (len(blocks) - 1)
        self.plan = default_plan(self.folder)

    @property
    def default_system(self) -> str:
        """The system prompt that the model was trained with, by name."""
        return SYSTEMS.get(self.name, "real")

    @property
    def longest_text(self) -> int:
        """Number of tokens after which prompts are truncated."""
        return min(MAX_TOKENS, self.config.max_text_tokens)

    @property
    def default_size(self) -> tuple[int, int]:
        """Default width and height in pixels."""
        return (self.config.sample_size * self.factor,) * 2

    @property
    def token_side(self) -> int:
        """Pixels per image token, in width and height."""
        return self.factor * self.config.patch_size

    def size_for(self, size: Size) -> tuple[int, int]:
        """Return width and height in pixels; a ratio, or a word for one, becomes the nearest size.

        Raises:
            UsageError: if the model does not support the size.
        """
        if size is None:
            return self.default_size
        ratio, step = parse_ratio(size), self.token_side
        if ratio:
            size = fit_ratio(ratio, self.default_size[0], step)
        return parse_size(size, step, step * self.config.axes_len[2], step * self.config.axes_len[1])

    def plan_for(self, plan: PlanLike, preset: str | Path | None = None) -> Plan:
        """Return the plan to use.

        plan     a Plan, used unchanged; or settings that override the preset's or the model's, which may
                 contain "calls", a budget of network calls, instead of "steps"
        preset   name or YAML file of a preset; None: the model's own plan

        Raises:
            UsageError: if the preset does not exist or a setting is invalid.
        """
        if isinstance(plan, Plan):
            return plan
        if preset is not None:
            return find_preset(preset).resolve(self.plan.shift, dict(plan or {}))
        return apply(self.plan, dict(plan or {}))


def default_plan(folder: Path) -> Plan:
    """Return the plan in a model folder's plan.json, else the default plan with the shift of its scheduler.

    Raises:
        LuminaError: if one of these files is damaged.
    """
    for name in ("plan.json", "scheduler/scheduler_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        with component_errors(path):
            settings = read_json_file(path)
            if name == "plan.json":
                return Plan.from_json(settings)
            return replace(Plan(), shift=shift_from_scheduler(settings))
    return Plan()


@contextmanager
def component_errors(path: Path) -> Iterator[None]:
    """Convert any error while a component is loaded to a one-line LuminaError that names its path."""
    try:
        yield
    except LuminaError as error:
        named = str(path) in str(error) or f"{path.parent}/" in str(error)  # such as a file of the tokenizer
        raise LuminaError(str(error) if named else f"{path}: {error}") from error
    except Exception as error:  # safetensors, JSON, torch and transformers raise different types
        raise LuminaError(f"{path} cannot be read: {first_line(error)}") from error
