"""Training a transformer: its stages in order, metrics, checkpoints, and the exported model."""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch

from lumina_cli.core.device import pick_device
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.flow.path import scheduler_config
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.models.components import MODEL_INDEX, find_components
from lumina_cli.core.nextdit.convert import save_transformer
from lumina_cli.core.training.batches import OpenData, StageBatches, Tokenize, TrainingSource, prefetch
from lumina_cli.core.training.config import Recipe, absolute_paths
from lumina_cli.core.training.optim import learning_rate
from lumina_cli.core.training.progress import MetricsWindow
from lumina_cli.core.training.resume_point import (
    ResumePoint,
    find_model_damage,
    find_resume_point,
    read_saved,
)
from lumina_cli.core.training.tensorboard import event_file
from lumina_cli.core.training.trainer import Trainer
from lumina_cli.core.weights.run_folder import RunFolder

SCHEMA = Recipe
EVERY = 1024  # images between two rows while latents are cached
COPIED = ("vae", "text_encoder", "tokenizer", "scheduler", "plan.json", "model_index.json")


def train_transformer(
    recipe: Recipe,
    out: Path,
    resume: bool = False,
    stage: str | None = None,
    open_data: OpenData | None = None,
    note: Callable[[str], None] = lambda text: None,
    progress: Callable[..., None] = lambda done, total=None, label=None: None,
) -> Iterator[dict]:
    """Train the stages that the recipe selects; yield rows of metrics; write `out/model`.

    stage      replaces the setting `stage` of the recipe
    open_data  opens the training data
    note       receives one line about damaged files, or about settings that a resume changes
    progress   receives the images cached so far, their total (None: unknown) and a label

    A run that was killed at any moment continues with `resume` and ends with the same weights as an
    uninterrupted one. An interrupt (Ctrl-C) finishes the step, writes a checkpoint and raises
    KeyboardInterrupt; closing the generator writes a checkpoint, too. The settings are saved when the run has
    opened with them, so that a resume with settings that fail leaves the saved ones unchanged.

    Raises:
        UsageError: if the recipe does not have the stage, or `recipe.frozen` is unknown.
        LuminaError: if there is nothing to resume, if a checkpoint exists and `resume` is False, if all
            checkpoints are damaged or the newest does not fit the recipe, if another process trains in `out`,
            if the data cannot be used, or if the gradient is not finite in ten consecutive steps.
    """
    recipe = absolute_paths(recipe.model_copy(update={"stage": stage or recipe.stage}))
    run = RunFolder(out, recipe.keep)
    recipe.select_stages()
    with run.locked():
        point = find_resume_point(run, recipe, resume)
        for line in point.notes:
            note(line)
        yield from _train(recipe, run, point, open_data, note, progress)


def _train(
    recipe: Recipe,
    run: RunFolder,
    point: ResumePoint,
    open_data: OpenData,
    note: Callable[[str], None],
    progress: Callable[..., None],
) -> Iterator[dict]:
    """Train the pending stages of a locked run folder; yield rows of metrics."""
    frozen, device = find_components(recipe.frozen), pick_device()
    encoder = TextEncoder(frozen, device)
    tokenize = _tokenizer_of(encoder)
    trainer = Trainer(recipe, encoder, device)
    _restore(trainer, run, point, note)
    if point.damaged:
        yield {"phase": "resume", "step": trainer.step, "damaged": list(point.damaged)}
    data = open_data(recipe, recipe.cache or run.path / "cache", frozen)
    vae = Autoencoder(frozen, device)
    if (reason := find_model_damage(run)) and (run.path / "model").is_dir() and point.state:
        note(f"{reason}; exporting the model again, from step {trainer.step}")
        export(trainer, run, frozen, recipe.stages[point.state["stage"]].size // vae.factor)
    if point.pending:
        for row in _cache_latents(data, vae, progress):
            if point.fresh:  # so that `--resume` continues a run that is interrupted here
                run.write_recipe(recipe.model_dump(mode="json"))
            yield row
    elif _changes_data(run, recipe):
        next(data.prepare(vae.encode), None)  # nothing to train, but new settings are saved only if they work
    for name, _ in point.pending[1:]:  # an error in the settings of a later stage ends the run now
        data.stage(name, tokenize)
    for name, first in point.pending:
        batches = data.stage(name, tokenize)
        if name == point.pending[0][0]:
            _save_settings(run, recipe, point, note)
        if batches.missing:
            yield {"phase": "captions", "stage": name, "lacking": batches.missing}
        yield from _train_stage(trainer, run, batches, name, first, point.state, note)
        export(trainer, run, frozen, recipe.stages[name].size // vae.factor)
    if not point.pending:
        _save_settings(run, recipe, point, note)
        export(trainer, run, frozen, recipe.stages[point.state["stage"]].size // vae.factor)
    yield {"step": trainer.step, "model": str(run.path / "model")}


def _save_settings(run: RunFolder, recipe: Recipe, point: ResumePoint, note: Callable[[str], None]) -> None:
    """Save the settings of a run that has opened with them; report those that a resume changes."""
    run.write_recipe(recipe.model_dump(mode="json"))
    for line in point.changes:
        note(line)


def _restore(trainer: Trainer, run: RunFolder, point: ResumePoint, note: Callable[[str], None]) -> None:
    """Load the checkpoint of a resume point, and remove what was written after it."""
    if point.state:
        step = point.state["step"]
        trainer.load(*run.load(step), step, str(run.path))
    for damaged in point.damaged:
        run.set_aside(damaged)
    if unreadable := run.rewind_metrics(trainer.step):
        note(f"{run.metrics}: removed {unreadable} unreadable line{'s' if unreadable > 1 else ''}")


def _changes_data(run: RunFolder, recipe: Recipe) -> bool:
    """Whether the data of a finished run differs from the saved settings, so that it has to be opened."""
    saved = read_saved(run)
    return saved is None or absolute_paths(saved).data != recipe.data


def _tokenizer_of(encoder: TextEncoder) -> Tokenize:
    def tokenize(texts: list[str]) -> list[list[int]]:
        return encoder.tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"]

    return tokenize


def _cache_latents(data: TrainingSource, vae: Autoencoder, progress: Callable[..., None]) -> Iterator[dict]:
    """Cache the latents of the data; yield rows of progress, rejects and precomputed latents."""
    done, total = 0, data.count()
    known = {} if total is None else {"total": total}
    progress(0, total=total, label="cache latents")
    for done in data.prepare(vae.encode):
        progress(done, total=total, label="cache latents")
        if done % EVERY == 0:
            yield {"phase": "cache latents", "pictures": done} | known
    rejects, why = data.rejects()
    if done and rejects:
        yield {"phase": "cache latents", "pictures": done, "rejects": rejects, "why": str(why)}
    if done and (precomputed := data.precomputed()):
        found = {str(size): count for size, count in precomputed.items()}
        yield {"phase": "cache latents", "pictures": done, "from_shards": found}


def _train_stage(
    trainer: Trainer,
    run: RunFolder,
    data: StageBatches,
    name: str,
    first: int,
    state: dict | None,
    note: Callable[[str], None],
) -> Iterator[dict]:
    """Train one stage from its step `first` to its end; yield rows of metrics.

    `state` is that of the checkpoint that the run continues from, if any; `note` is that of
    `train_transformer`.
    """
    recipe, stage = trainer.recipe, trainer.recipe.stages[name]
    held_back = list(data.held_back()) if recipe.validation.samples else []
    window = MetricsWindow(state if first else None)
    steps = range(first, stage.steps)
    with (
        stop_requested(note) as stopped,
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
    state = state | {"recipe": trainer.recipe.model_dump(mode="json")}
    run.save(weights, ema, trainer.optimizer.state_dict(), state)


def export(trainer: Trainer, run: RunFolder, frozen: Path, side: int) -> Path:
    """Write the averaged weights and the frozen components as `model/`, a model folder; return its path.

    `side` is the latent side of the images that it was trained on last, which is its default when sampling.
    """
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[trainer.recipe.export]
    trainer.ema.config = replace(trainer.ema.config, sample_size=side)
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
def stop_requested(note: Callable[[str], None] = lambda text: None) -> Iterator[threading.Event]:
    """Provide an event that the first Ctrl-C sets; the second one interrupts at once, as usual.

    `note` receives one line when it is set, because the step may take a while.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield requested
        return

    def request(number, frame) -> None:
        requested.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with suppress(RuntimeError):  # if the signal interrupts the writing of another line
            note("stopping after this step, with a checkpoint; another Ctrl-C stops at once, without one")

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)
