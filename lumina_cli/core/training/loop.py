"""Training a transformer: stages one after another, metrics, checkpoints, and the model at the end."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.flow.path import scheduler_config
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.nextdit.convert import save_transformer
from lumina_cli.core.registry import ASSETS, MODELS, did_you_mean
from lumina_cli.core.training.config import Recipe
from lumina_cli.core.training.optim import learning_rate
from lumina_cli.core.training.tensorboard import event_file
from lumina_cli.core.training.trainer import PIXELS_A_TOKEN, Trainer, find_transformer, stage_shift
from lumina_cli.core.weights.run_folder import RunFolder

SCHEMA = Recipe
EVERY = 1024  # pictures between two rows while latents are cached
MODEL_INDEX = {
    "_class_name": "Lumina2Pipeline",
    "_diffusers_version": "0.33.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Gemma2Model"],
    "tokenizer": ["transformers", "GemmaTokenizer"],
    "transformer": ["diffusers", "Lumina2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def train_transformer(
    recipe: Recipe, out: Path, resume: bool = False, stage: str = "all", open_data: Callable | None = None
) -> Iterator[dict]:
    """Train the stages that `stage` names ("all": every one), yield rows of metrics, and leave `out/model`.

    `open_data(recipe, cache folder, frozen folder)` gives the data: `data.loader.TrainingData` or the like. A
    run that was killed at any moment goes on with `resume`, as if nothing had happened. An interrupt (Ctrl-C)
    ends the step, writes a checkpoint and raises KeyboardInterrupt; closing the generator writes one too.
    """
    run = RunFolder(out, recipe.keep)
    state, todo = resume_point(run, recipe, resume, stage)
    frozen = find_frozen(recipe.frozen)
    run.write_recipe(recipe.model_dump(mode="json"))
    device = pick_device()
    encoder = TextEncoder(frozen, device)
    trainer = Trainer(recipe, encoder, device)
    if state:
        trainer.load(*run.load(state["step"]), state["step"], str(run.path))
    run.rewind_metrics(trainer.step)
    if todo:
        data = open_data(recipe, recipe.cache or out / "cache", frozen)
        yield from _cache_latents(data, frozen, device)
    for name, first in todo:
        batches = data.stage(name, _tokenize(encoder))
        if batches.lacking:  # what the stage asks for and the data does not have
            yield {"phase": "captions", "stage": name, "lacking": batches.lacking}
        yield from _train_stage(trainer, run, batches, name, first)
        export(trainer, run, frozen)
    if not todo:
        export(trainer, run, frozen)
    yield {"step": trainer.step, "model": str(run.path / "model")}


def describe_run(recipe: Recipe, stage: str = "all") -> Iterator[dict]:
    """Yield a row per stage that would be trained: sizes and settings, without training or reading data."""
    parameters = None
    if recipe.model in NAMED:
        with torch.device("meta"):
            model = NextDiT(NextDiTConfig.named(recipe.model))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    for name in recipe.chosen(stage):
        settings = recipe.stages[name]
        tokens = (settings.size // PIXELS_A_TOKEN) ** 2
        row = {"stage": name, "model": recipe.model, "parameters": parameters, "data": recipe.data}
        row |= {"image_tokens": tokens, "pictures": settings.steps * settings.batch}
        yield row | settings.model_dump(mode="json") | {"shift": round(stage_shift(settings), 4)}


def pending_stages(recipe: Recipe, out: Path, resume: bool, stage: str) -> list[dict]:
    """Return the rows of `describe` for the stages that are left; raises what the training would raise."""
    _, todo = resume_point(RunFolder(out, recipe.keep), recipe, resume, stage)
    if recipe.frozen not in MODELS:  # finding a named one may be a download
        find_frozen(recipe.frozen)
    if recipe.model not in NAMED:
        find_transformer(recipe.model)
    return [row for row in describe_run(recipe, stage) if row["stage"] in dict(todo)]


def resume_point(
    run: RunFolder, recipe: Recipe, resume: bool, stage: str
) -> tuple[dict | None, list[tuple[str, int]]]:
    """Return the state to go on from and each (stage, first step) to train; LuminaError if there is none."""
    names, order, state = recipe.chosen(stage), list(recipe.stages), run.state()
    if state is None:
        if resume and not (run.path / "recipe.yaml").exists():
            raise LuminaError(f"{run.path} has no run to resume; start one without --resume")
        return None, [(name, 0) for name in names]
    if state["stage"] not in order:
        raise LuminaError(f"{run.path} stopped in stage {state['stage']}, which the recipe does not have")
    finished = state["stage_step"] >= recipe.stages[state["stage"]].steps
    left = order[order.index(state["stage"]) + finished :]
    todo = [(name, state["stage_step"] if name == state["stage"] else 0) for name in left if name in names]
    if not resume and not (finished and stage != "all" and todo):
        raise LuminaError(
            f"{run.path} holds checkpoints up to step {state['step']}; --resume goes on, or give another out="
        )
    if todo and todo[0][0] != left[0]:
        raise LuminaError(f"{run.path} has not finished stage {left[0]}; `--stage {left[0]} --resume` does")
    return state, todo


def find_frozen(name: str) -> Path:
    """Return the folder with the frozen parts: a name of MODELS first, else a model folder or a run folder.

    An embedded model serves before it has a transformer, which is how its transformer is trained.
    """
    if name in MODELS:
        embedded = ASSETS / name
        return _with_parts(embedded) if embedded.is_dir() else MODELS.load(name)()
    if not Path(name).is_dir():
        hint = (
            did_you_mean(name, MODELS.names())
            or f"; it is no model folder and none of {', '.join(MODELS.names())}"
        )
        raise UsageError(f"frozen: unknown model {name!r}{hint}")
    inner = Path(name) / "model"
    return _with_parts(inner if inner.is_dir() else Path(name))


def _with_parts(folder: Path) -> Path:
    missing = [part for part in ("vae", "text_encoder", "tokenizer") if not (folder / part).is_dir()]
    if missing:
        raise LuminaError(f"{folder} has no {', '.join(missing)}; frozen= names a model folder")
    return folder


def _tokenize(encoder: TextEncoder) -> Callable[[list[str]], list[list[int]]]:
    def tokenize(texts: list[str]) -> list[list[int]]:
        return encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"]

    return tokenize


def _cache_latents(data, frozen: Path, device: torch.device) -> Iterator[dict]:
    vae = Autoencoder(frozen, device)
    done = 0
    for done in data.prepare(vae.encode):
        if done % EVERY == 0:
            yield {"phase": "cache latents", "pictures": done}
    rejects, why = data.rejects()
    if done and rejects:
        yield {"phase": "cache latents", "pictures": done, "rejects": rejects, "why": str(why)}
    if done and (ready := data.ready()):
        found = {str(size): count for size, count in ready.items()}
        yield {"phase": "cache latents", "pictures": done, "from_shards": found}


def _train_stage(trainer: Trainer, run: RunFolder, data, name: str, first: int) -> Iterator[dict]:
    """Train one stage from step `first` of it to its end."""
    recipe, stage = trainer.recipe, trainer.recipe.stages[name]
    held_back = list(data.held_back()) if recipe.validation.samples else []
    window = MetricsWindow(run.state() if first else None)
    with stop_requested() as stopped, log_to(run, trainer.step) as log:
        for step in range(first, stage.steps):
            lr = learning_rate(stage, step)
            window.add(trainer.update(data.batch(step), stage, lr), stage.batch)
            where = {"step": trainer.step, "stage": name, "stage_step": step + 1}
            last = step + 1 == stage.steps
            try:
                if trainer.step % recipe.log_every == 0 or last:
                    yield log(where | window.close() | {"lr": lr})
                if held_back and (trainer.step % recipe.validation.every == 0 or last):
                    yield log(where | {"val_loss": trainer.validate(held_back, stage)})
                    window.restart_clock()
            except GeneratorExit:  # whoever read the rows is gone, as `| head` is: keep what was trained
                _save(trainer, run, where | window.to_json())
                raise
            if trainer.step % recipe.checkpoint_every == 0 or last or stopped.is_set():
                _save(trainer, run, where | window.to_json())
                window.restart_clock()
            if stopped.is_set():
                raise KeyboardInterrupt


def _save(trainer: Trainer, run: RunFolder, state: dict) -> None:
    weights, ema = trainer.model.state_dict(), trainer.ema.state_dict()
    run.save(weights, ema, trainer.optimizer.state_dict(), state)


def export(trainer: Trainer, run: RunFolder, frozen: Path) -> Path:
    """Write the averaged weights with the frozen parts as `model/`, which every verb can use."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[trainer.recipe.export]
    with run.model_aside(
        frozen, ("vae", "text_encoder", "tokenizer", "scheduler", "plan.json", "model_index.json")
    ) as folder:
        save_transformer(trainer.ema, folder / "transformer", dtype)
        plan = trainer.recipe.plan
        if plan or not (folder / "scheduler").is_dir():
            (folder / "scheduler").mkdir(exist_ok=True)
            shift = Plan.from_json(plan or {}).shift
            text = json.dumps(scheduler_config(shift), indent=2)
            (folder / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
        if plan:
            (folder / "plan.json").write_text(json.dumps(Plan.from_json(plan).to_json()), encoding="utf-8")
        if not (folder / "model_index.json").is_file():
            (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2), encoding="utf-8")
    return run.path / "model"


class MetricsWindow:
    """Means over the steps since the last row; part of a checkpoint, so that a resumed row is the same."""

    def __init__(self, state: dict | None = None):
        saved = (state or {}).get("window") or {"sums": {}, "steps": 0}
        self.sums, self.steps = dict(saved["sums"]), saved["steps"]
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the speed from now on: what was done meanwhile was no training."""
        self.start, self.pictures = time.monotonic(), 0

    def add(self, figures: dict[str, float], pictures: int) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.pictures += pictures

    def close(self) -> dict[str, float]:
        """Return the means and the speed, and begin anew."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        speed = self.pictures / max(time.monotonic() - self.start, 1e-9)
        self.sums, self.steps = {}, 0
        self.restart_clock()
        return means | {"pictures_per_second": round(speed, 1)}

    def to_json(self) -> dict:
        return {"window": {"sums": self.sums, "steps": self.steps}}


@contextmanager
def log_to(run: RunFolder, step: int) -> Iterator[Callable[[dict], dict]]:
    """Give a function that writes a row to metrics.jsonl and TensorBoard and returns it."""
    with event_file(run.path, step) as add:

        def log(row: dict) -> dict:
            run.append_metrics(row)
            figures = {name: value for name, value in row.items() if isinstance(value, float)}
            add({f"{row['stage']}/{name}": value for name, value in figures.items()}, row["step"])
            return row

        yield log


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Give an event that the first Ctrl-C sets; the second one ends at once, as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number, frame) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
