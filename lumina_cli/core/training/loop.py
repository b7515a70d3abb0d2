"""Training a transformer: its stages in order, metrics, checkpoints, and the exported model."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch

from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow.path import scheduler_config
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.models.components import MODEL_INDEX, find_components, find_transformer
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.config import NAMED
from lumina_cli.core.nextdit.convert import save_transformer
from lumina_cli.core.registry import MODELS
from lumina_cli.core.training.batches import OpenData, StageBatches, Tokenize, TrainingSource, prefetch
from lumina_cli.core.training.config import Recipe
from lumina_cli.core.training.optim import learning_rate
from lumina_cli.core.training.progress import MetricsWindow
from lumina_cli.core.training.tensorboard import event_file
from lumina_cli.core.training.trainer import TOKEN_SIDE, Trainer, stage_shift
from lumina_cli.core.weights.run_folder import RunFolder

SCHEMA = Recipe
EVERY = 1024  # images between two rows while latents are cached
COPIED = ("vae", "text_encoder", "tokenizer", "scheduler", "plan.json", "model_index.json")


def train_transformer(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    stage: str = "all",
    open_data: OpenData | None = None,
) -> Iterator[dict]:
    """Train the stages that `stage` selects ("all": each of them); yield rows of metrics; write `out/model`.

    `open_data` opens the training data. A run that was killed at any moment continues with `resume` and ends
    with the same weights as an uninterrupted one. An interrupt (Ctrl-C) finishes the step, writes a
    checkpoint and raises KeyboardInterrupt; closing the generator writes a checkpoint, too.

    Raises:
        UsageError: if the recipe does not have the stage, or `recipe.frozen` is unknown.
        LuminaError: if there is nothing to resume, if a checkpoint exists and `resume` is False, if a
            checkpoint is damaged or does not fit the recipe, if the data cannot be used, or if the gradient
            is not finite in ten consecutive steps.
    """
    run = RunFolder(out, recipe.keep)
    state, pending = resume_point(run, recipe, resume, stage)
    frozen = find_components(recipe.frozen)
    run.write_recipe(recipe.model_dump(mode="json"))
    device = pick_device()
    encoder = TextEncoder(frozen, device)
    trainer = Trainer(recipe, encoder, device)
    if state:
        trainer.load(*run.load(state["step"]), state["step"], str(run.path))
    run.rewind_metrics(trainer.step)
    if pending:
        data = open_data(recipe, recipe.cache or out / "cache", frozen)
        yield from _cache_latents(data, frozen, device)
    for name, first in pending:
        batches = data.stage(name, _tokenizer_of(encoder))
        if batches.missing:
            yield {"phase": "captions", "stage": name, "lacking": batches.missing}
        yield from _train_stage(trainer, run, batches, name, first)
        export(trainer, run, frozen)
    if not pending:
        export(trainer, run, frozen)
    yield {"step": trainer.step, "model": str(run.path / "model")}


def describe_run(recipe: Recipe, stage: str = "all") -> Iterator[dict]:
    """Yield a row of sizes and settings per stage, without training or reading data.

    Raises:
        UsageError: if the recipe does not have the stage.
    """
    parameters = None
    if recipe.model in NAMED:
        with torch.device("meta"):
            model = NextDiT(NextDiTConfig.named(recipe.model))
        parameters = sum(parameter.numel() for parameter in model.parameters())
    for name in recipe.select_stages(stage):
        settings = recipe.stages[name]
        tokens = (settings.size // TOKEN_SIDE) ** 2
        row = {"stage": name, "model": recipe.model, "parameters": parameters, "data": recipe.data}
        row |= {"image_tokens": tokens, "pictures": settings.steps * settings.batch}
        yield row | settings.model_dump(mode="json") | {"shift": round(stage_shift(settings), 4)}


def pending_stages(recipe: Recipe, out: Path, resume: bool, stage: str) -> list[dict]:
    """Return the rows of `describe_run` for the stages that remain to be trained.

    Raises:
        UsageError, LuminaError: as `train_transformer` would, as far as that is known without reading data.
    """
    _, pending = resume_point(RunFolder(out, recipe.keep), recipe, resume, stage)
    if recipe.frozen not in MODELS:  # locating a named model may start a download
        find_components(recipe.frozen)
    if recipe.model not in NAMED:
        find_transformer(recipe.model)
    return [row for row in describe_run(recipe, stage) if row["stage"] in dict(pending)]


def resume_point(
    run: RunFolder, recipe: Recipe, resume: bool, stage: str
) -> tuple[dict | None, list[tuple[str, int]]]:
    """Return the state of the last checkpoint, if any, and (stage, first step) of each stage to train.

    Raises:
        UsageError: if the recipe does not have the stage.
        LuminaError: if there is nothing to resume, if a checkpoint exists and `resume` is False, or if an
            earlier stage is not finished.
    """
    names, order, state = recipe.select_stages(stage), list(recipe.stages), run.state()
    if state is None:
        if resume and not (run.path / "recipe.yaml").exists():
            raise LuminaError(f"{run.path} has no run to resume; start one without --resume")
        return None, [(name, 0) for name in names]
    if state["stage"] not in order:
        raise LuminaError(f"{run.path} stopped in stage {state['stage']}, which the recipe does not have")
    finished = state["stage_step"] >= recipe.stages[state["stage"]].steps
    remaining = order[order.index(state["stage"]) + finished :]
    pending = [
        (name, state["stage_step"] if name == state["stage"] else 0) for name in remaining if name in names
    ]
    # A finished stage may be followed by another one without --resume, so that `--stage` can run them singly.
    if not resume and not (finished and stage != "all" and pending):
        raise LuminaError(
            f"{run.path} contains checkpoints up to step {state['step']}; "
            "resume it with --resume, or choose a different out="
        )
    if pending and pending[0][0] != remaining[0]:
        name = remaining[0]
        raise LuminaError(
            f"{run.path} has not finished stage {name}; finish it with `--stage {name} --resume`"
        )
    return state, pending


def _tokenizer_of(encoder: TextEncoder) -> Tokenize:
    def tokenize(texts: list[str]) -> list[list[int]]:
        return encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"]

    return tokenize


def _cache_latents(data: TrainingSource, frozen: Path, device: torch.device) -> Iterator[dict]:
    """Cache the latents of the data; yield rows of progress, rejects and precomputed latents."""
    vae = Autoencoder(frozen, device)
    done = 0
    for done in data.prepare(vae.encode):
        if done % EVERY == 0:
            yield {"phase": "cache latents", "pictures": done}
    rejects, why = data.rejects()
    if done and rejects:
        yield {"phase": "cache latents", "pictures": done, "rejects": rejects, "why": str(why)}
    if done and (precomputed := data.precomputed()):
        found = {str(size): count for size, count in precomputed.items()}
        yield {"phase": "cache latents", "pictures": done, "from_shards": found}


def _train_stage(
    trainer: Trainer, run: RunFolder, data: StageBatches, name: str, first: int
) -> Iterator[dict]:
    """Train one stage from its step `first` to its end; yield rows of metrics."""
    recipe, stage = trainer.recipe, trainer.recipe.stages[name]
    held_back = list(data.held_back()) if recipe.validation.samples else []
    window = MetricsWindow(run.state() if first else None)
    steps = range(first, stage.steps)
    with (
        stop_requested() as stopped,
        log_to(run, trainer.step) as log,
        closing(prefetch(data.batch, steps)) as batches,
    ):
        for step, batch in zip(steps, batches, strict=True):
            lr = learning_rate(stage, step)
            window.add(trainer.update(batch, stage, lr), stage.batch)
            where = {"step": trainer.step, "stage": name, "stage_step": step + 1}
            last = step + 1 == stage.steps
            try:
                if trainer.step % recipe.log_every == 0 or last:
                    yield log(where | window.close() | {"lr": lr})
                if held_back and (trainer.step % recipe.validation.every == 0 or last):
                    yield log(where | {"val_loss": trainer.validate(held_back, stage)})
                    window.restart_clock()
            except GeneratorExit:  # the consumer of the rows ended, as `| head` does: save what was trained
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
    """Write the averaged weights and the frozen components as `model/`, a model folder; return its path."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[trainer.recipe.export]
    with run.model_aside(frozen, COPIED) as folder:
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


@contextmanager
def log_to(run: RunFolder, step: int) -> Iterator[Callable[[dict], dict]]:
    """Provide a function that writes a row to metrics.jsonl and TensorBoard and returns it."""
    with event_file(run.path, step) as add:

        def log(row: dict) -> dict:
            run.append_metrics(row)
            scalars = {name: value for name, value in row.items() if isinstance(value, float)}
            add({f"{row['stage']}/{name}": value for name, value in scalars.items()}, row["step"])
            return row

        yield log


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Provide an event that the first Ctrl-C sets; the second one interrupts at once, as usual."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield requested
        return

    def request(number, frame) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)
