"""What a model folder says of itself without its weights: sizes, plan, name."""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lumina_cli.core.encoders.tokenizer import MAX_TOKENS
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.flow.path import shift_from_scheduler
from lumina_cli.core.flow.presets import apply, find_preset
from lumina_cli.core.images.sizes import Size, fit_ratio, parse_ratio, parse_size
from lumina_cli.core.models.locate import ModelChoice
from lumina_cli.core.nextdit.config import config_from_diffusers
from lumina_cli.core.weights.fingerprint import fingerprint
from lumina_cli.core.weights.json_files import read_json

PlanLike = Plan | Mapping | None


class ModelFolder:
    """A model folder, its weights unread.

    name, folder, reason   as `choose_model` found them
    weights                their fingerprint: a run folder keeps its name while training changes them
    config                 the shapes of the network
    factor                 how many pixels wide and high one latent is
    plan                   how this model draws if nobody says otherwise
    """

    def __init__(self, choice: ModelChoice):
        self.name, self.folder, self.reason = choice.name, Path(choice.folder), choice.reason
        self.weights = fingerprint(self.folder)
        with reading_errors(self.folder / "transformer"):
            self.config = config_from_diffusers(read_json(self.folder / "transformer" / "config.json"))
        with reading_errors(self.folder / "vae"):
            blocks = read_json(self.folder / "vae" / "config.json")["block_out_channels"]
        self.factor = 2 ** (len(blocks) - 1)
        self.plan = default_plan(self.folder)

    @property
    def longest_text(self) -> int:
        """How many tokens of a prompt are read."""
        return min(MAX_TOKENS, self.config.max_text_tokens)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height that the model was made for."""
        return (self.config.sample_size * self.factor,) * 2

    @property
    def token_side(self) -> int:
        """How many pixels wide and high one image token is."""
        return self.factor * self.config.patch_size

    def size_for(self, size: Size) -> tuple[int, int]:
        """Return width and height in pixels; UsageError where the model cannot draw that size.

        A ratio, or the word for one, becomes the nearest size of training.
        """
        if size is None:
            return self.default_size
        ratio, step = parse_ratio(size), self.token_side
        if ratio:
            size = fit_ratio(ratio, self.default_size[0])
        return parse_size(size, step, step * self.config.axes_len[2], step * self.config.axes_len[1])

    def plan_for(self, plan: PlanLike, preset: str | Path | None = None) -> Plan:
        """Return `plan`, or the preset's or else the model's own plan with the settings in it changed.

        The settings may hold "calls", a budget of network calls, in place of "steps".
        """
        if isinstance(plan, Plan):
            return plan
        if preset is not None:
            return find_preset(preset).resolve(self.plan.shift, dict(plan or {}))
        return apply(self.plan, dict(plan or {}))


def default_plan(folder: Path) -> Plan:
    """Return the plan in a model folder's plan.json, or else the default one with its scheduler's shift."""
    for name in ("plan.json", "scheduler/scheduler_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        with reading_errors(path):
            settings = json.loads(path.read_text(encoding="utf-8"))
            plan = name == "plan.json"
            return Plan.from_json(settings) if plan else replace(Plan(), shift=shift_from_scheduler(settings))
    return Plan()


@contextmanager
def reading_errors(path: Path):
    """Turn whatever goes wrong while a part is read into one line that names it."""
    try:
        yield
    except LuminaError as error:
        raise LuminaError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except Exception as error:  # safetensors, JSON, torch and transformers each raise their own kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LuminaError(f"{path} cannot be read: {reason}") from error
