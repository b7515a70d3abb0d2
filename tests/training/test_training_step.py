"""Training a transformer: losses, resuming, stages, the exported model, and errors."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lumina_cli.core.dataset.training_data import TrainBatch, TrainingData
from lumina_cli.core.encoders.text import TextEncoder
from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.flow.path import shift_time, train_shift
from lumina_cli.core.flow.plan import Plan
from lumina_cli.core.nextdit import NextDiT, NextDiTConfig
from lumina_cli.core.nextdit.convert import from_official, load_transformer
from lumina_cli.core.sampling.pipeline import default_plan
from lumina_cli.core.training.config import Recipe
from lumina_cli.core.training.loop import train_transformer
from lumina_cli.core.training.objective import (
    LOW,
    MAIN,
    draw_time_and_noise,
    even_times,
    stage_loss,
    velocity_loss,
)
from lumina_cli.core.training.resume_point import describe_run
from lumina_cli.core.training.trainer import Trainer, build_model, compile_blocks

GOLDEN = Path(__file__).parents[1] / "golden" / "official_nextdit_tiny"
TENSORS = load_file(GOLDEN.with_suffix(".safetensors"))
FACTS = json.loads(GOLDEN.with_suffix(".json").read_text())
CONFIG = NextDiTConfig(
    dim=48,
    num_layers=3,
    num_refiner_layers=2,
    num_heads=3,
    num_kv_heads=1,
    multiple_of=16,
    text_dim=40,
    axes_dim=(8, 4, 4),
)


@pytest.fixture(scope="module")
def golden_model():
    model = NextDiT(CONFIG)
    weights = {name[8:]: tensor for name, tensor in TENSORS.items() if name.startswith("weights.")}
    model.load_state_dict(from_official(weights))
    return model


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_losses_and_gradients_match_the_official_implementation(golden_model):
    text, mask = TENSORS["in.caption_features"], TENSORS["in.caption_mask"].bool()
    losses = velocity_loss(
        lambda x, t: golden_model(x, t, text, mask), TENSORS["in.x"], TENSORS["in.noise"], TENSORS["in.t"]
    )
    assert relative(losses.detach(), TENSORS["out.loss_per_sample"]) < 1e-5
    losses.mean().backward()
    for name, parameter in golden_model.named_parameters():
        if f"grad.{name}" in TENSORS:
            theirs = TENSORS[f"grad.{name}"]
            ours = parameter.grad if parameter.grad.ndim == theirs.ndim else parameter.grad[0]
            assert relative(ours, theirs) < 1e-5, name


def test_a_list_of_latents_has_the_same_losses_as_a_batch(golden_model):
    text, mask, t = TENSORS["in.caption_features"], TENSORS["in.caption_mask"].bool(), TENSORS["in.t"]

    def velocity(x, t):
        return golden_model(x, t, text, mask)

    batch = velocity_loss(velocity, TENSORS["in.x"], TENSORS["in.noise"], t)
    listed = velocity_loss(velocity, list(TENSORS["in.x"]), list(TENSORS["in.noise"]), t)
    assert torch.allclose(batch, listed, rtol=1e-5)


def test_training_times_match_the_official_implementation():
    shift = train_shift(4096)
    ours = shift_time(torch.tensor(FACTS["train_shift"]["u"]), shift)
    assert torch.allclose(ours, torch.tensor(FACTS["train_shift"]["t"]), atol=1e-5)
    times, _ = draw_time_and_noise(0, 0, range(20_000), [(1,)] * 20_000)
    for quantile, time in FACTS["train_t_quantiles"].items():
        assert shift_time(times, shift).quantile(float(quantile)).item() == pytest.approx(time, abs=0.01)
        assert shift_time(even_times(10_000), shift).quantile(float(quantile)).item() == pytest.approx(
            time, abs=0.004
        )


def test_noise_depends_on_seed_step_and_sample_only():
    t, (a, b) = draw_time_and_noise(7, 3, [0, 1], [(2, 4), (2, 4)])
    other, (alone,) = draw_time_and_noise(7, 3, [1], [(2, 4)])
    assert torch.equal(alone, b)
    assert other[0] == t[1]
    assert not torch.equal(a, b)
    for changed in ((8, 3, 0), (7, 4, 0), (7, 3, 1)):
        assert not torch.equal(draw_time_and_noise(*changed[:2], [0], [(2, 4)], changed[2])[1][0], a)


def loss_by_hand(data, shift, stream):
    """The loss of a model that predicts 2 x_t + t, with the times and the noise of the stream."""
    times, noise = draw_time_and_noise(5, 9, range(len(data)), [tuple(x.shape) for x in data], stream)
    errors = []
    for x, n, u in zip(data, noise, times, strict=True):
        t = u / (u + shift * (1 - u))  # a shift above 1 moves times towards the noise
        errors.append((2 * (t * x + (1 - t) * n) + t - (x - n)).square().mean())
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize("listed", [False, True])
def test_auxiliary_loss_is_the_loss_of_pooled_latents_with_the_same_shift_and_its_own_noise(listed):
    data = torch.randn(3, 16, 8, 8)

    def draw(shapes, stream):
        return draw_time_and_noise(5, 9, range(3), shapes, stream)

    def velocity(x, t):
        if isinstance(x, list):
            return [2 * one + time for one, time in zip(x, t, strict=True)]
        return 2 * x + t[:, None, None, None]

    given = list(data) if listed else data
    loss, auxiliary = stage_loss(velocity, given, draw, shift=3.0, auxiliary=1.0)
    low = data.unflatten(2, (2, 4)).unflatten(4, (2, 4)).mean((3, 5))
    assert loss.item() == pytest.approx(loss_by_hand(data, 3.0, MAIN), rel=1e-5)
    assert auxiliary.item() == pytest.approx(loss_by_hand(low, 3.0, LOW), rel=1e-5)
    alone, nothing = stage_loss(velocity, given, draw, shift=3.0, auxiliary=0.0)
    assert (alone.item(), nothing) == (loss.item(), None)


def test_main_and_auxiliary_loss_share_neither_times_nor_noise():
    (t, (noise,)), (other, (low,)) = (draw_time_and_noise(0, 0, [0], [(4, 4)], s) for s in (MAIN, LOW))
    assert t != other
    assert not torch.equal(noise, low)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(30):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            captions = {"en": {"short": "red cup"[: 3 + i % 2], "tags": "red"}}
            file.write(json.dumps({"image": f"{i}.png", "captions": captions}) + "\n")
    return folder / "rows.jsonl"


@pytest.fixture
def recipe(tiny_folder, images, tmp_path_factory):
    def make(**changes):
        stage = {"size": 64, "steps": 4, "batch": 4, "lr": 1e-3, "system": "empty"}
        values = {
            "model": str(tiny_folder), "frozen": str(tiny_folder), "data": str(images), "precision": "fp32",
            "cache": tmp_path_factory.getbasetemp() / "latents", "log_every": 1, "checkpoint_every": 3,
            "validation": {"samples": 2, "every": 4}, "optimizer": {"name": "muon"},
            "stages": {"low": stage, "high": {**stage, "decay": 0.5, "auxiliary_loss": 1.0}},
        }  # fmt: skip
        return Recipe(**values | changes)

    return make


def train(recipe, out, **options):
    return list(train_transformer(recipe, out, open_data=TrainingData, **options))


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["stage"], row.get("loss"), row.get("val_loss")) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_run(recipe, tmp_path, exact):
    settings = recipe(exact_lengths=exact)
    train(settings, tmp_path / "straight")
    rows = train_transformer(settings, tmp_path / "killed", open_data=TrainingData)
    for row in rows:
        if row["step"] == 6:  # the checkpoint of step 6 is due but not written yet
            break
    rows.close()
    train(settings, tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    ours, theirs = (
        load_file(tmp_path / name / "model/transformer/diffusion_pytorch_model.safetensors")
        for name in ("killed", "straight")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_exported_model_uses_the_plan_of_its_recipe(recipe, tmp_path):
    stage = {"size": 64, "steps": 1, "batch": 2, "lr": 1e-3, "system": "empty"}
    train(recipe(stages={"low": stage}, plan={"shift": 3, "guide_until": 1}), tmp_path)
    assert default_plan(tmp_path / "model") == Plan(shift=3, guide_until=1)
    scheduler = json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())
    assert scheduler["shift"] == 3
    with pytest.raises(ValueError, match="no setting 'shif'"):
        recipe(plan={"shif": 3})


@pytest.mark.slow
def test_training_lowers_the_loss_and_exports_a_model_that_opens(recipe, tmp_path, tiny_folder):
    stage = {"size": 64, "steps": 30, "batch": 4, "lr": 5e-3, "system": "empty"}
    rows = train(recipe(stages={"low": stage}, log_every=10, ema=0.9, export="bf16"), tmp_path)
    means = [row["loss"] for row in rows if "loss" in row]
    assert means[-1] < means[0]
    model = load_transformer(tmp_path / "model" / "transformer")
    assert model.dtype == torch.bfloat16
    names = [*(p.name for p in tiny_folder.iterdir()), "SHA256SUMS"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(names)
    assert rows[-1] == {"step": 30, "model": str(tmp_path / "model")}


@pytest.mark.slow
def test_stages_can_be_run_one_at_a_time(recipe, tmp_path):
    settings = recipe()
    train(settings, tmp_path / "apart", stage="low")
    train(settings, tmp_path / "apart", stage="high")
    train(settings, tmp_path / "together")
    assert losses(tmp_path / "apart") == losses(tmp_path / "together")
    with pytest.raises(
        LuminaError,
        match="contains checkpoints up to step 8; resume it with --resume, or choose a different out=",
    ):
        train(settings, tmp_path / "apart")


def test_a_stage_requires_the_previous_stage_to_be_finished(recipe, tmp_path):
    rows = train_transformer(recipe(checkpoint_every=2), tmp_path, open_data=TrainingData)
    next(row for row in rows if row["step"] == 3)
    rows.close()
    with pytest.raises(LuminaError, match="has not finished stage low"):
        train(recipe(), tmp_path, stage="high", resume=True)


def test_an_interrupt_writes_a_checkpoint(recipe, tmp_path):
    rows = train_transformer(recipe(checkpoint_every=1000), tmp_path, open_data=TrainingData)
    next(row for row in rows if row["step"] == 2)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(rows)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0000002"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nanoo"}, "model 'nanoo' is unknown; did you mean 'nano'"),
        ({"model": "nano"}, "requires text features of width 256; the frozen encoder has width 32"),
        ({"frozen": "nowhere"}, "unknown model 'nowhere'"),
    ],
)
def test_models_that_do_not_fit_are_one_line_errors(recipe, tmp_path, changes, message):
    with pytest.raises(LuminaError, match=message):
        train(recipe(**changes), tmp_path)


def test_resuming_without_a_run_and_unknown_stages_are_errors(recipe, tmp_path):
    with pytest.raises(LuminaError, match="has no run to resume"):
        train(recipe(), tmp_path, resume=True)
    with pytest.raises(UsageError, match="no stage 'lo'; did you mean 'low'"):
        train(recipe(), tmp_path, stage="lo")


def test_resuming_with_another_optimizer_is_an_error(recipe, tmp_path):
    train(recipe(), tmp_path, stage="low")
    with pytest.raises(LuminaError, match="was written by a different optimizer; the recipe uses adamw"):
        train(recipe(optimizer={"name": "adamw"}), tmp_path, resume=True)


def test_a_dry_run_counts_tokens_and_parameters_without_training(recipe):
    rows = list(describe_run(recipe(model="nano")))
    assert [row["stage"] for row in rows] == ["low", "high"]
    assert rows[0]["image_tokens"] == 16
    assert rows[0]["parameters"] > 4e6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler emits warnings about its own code
def test_compiled_blocks_train_like_uncompiled_ones(recipe, tmp_path):
    stage = {
        "size": 64,
        "steps": 2,
        "batch": 4,
        "lr": 1e-3,
        "system": "empty",
        "langs": {"en": 1.0},
        "captions": {"tags": 1.0},
    }
    for name, compiled in (("plain", False), ("compiled", True)):
        settings = recipe(compile=compiled, exact_lengths=True, stages={"low": stage}, caption_dropout=0.0)
        train(settings, tmp_path / name)
    compiled, plain = (
        [row[2] for row in losses(tmp_path / name) if row[2]] for name in ("compiled", "plain")
    )
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_compiling_without_a_compiler_suggests_compile_false(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match="compile=false"):
        compile_blocks(build_model("nano"))


def test_gradient_checkpointing_does_not_change_gradients(recipe, tiny_folder):
    batch = TrainBatch(torch.randn(2, 16, 8, 8), torch.ones(2, 3, dtype=torch.long), None)
    weights, calls = [], []
    for checkpointing in (False, True):
        settings = recipe(checkpointing=checkpointing, clip=1e9)
        trainer = Trainer(settings, TextEncoder(tiny_folder, torch.device("cpu")), torch.device("cpu"))
        count = [0]
        block = trainer.model.layers[0]
        block.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        gradients = []
        trainer._apply = lambda norm, lr, model=trainer.model, into=gradients: into.extend(
            parameter.grad for parameter in model.parameters()
        )
        trainer.update(batch, settings.stages["low"], 1e-3)
        weights.append(gradients)
        calls.append(count[0])
    assert calls == [1, 2]  # once more in the backward pass
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_gradients_of_the_auxiliary_loss_scale_with_its_weight(recipe, tiny_folder):
    """Gradients are linear in the weight: each unit adds the same non-zero gradient."""
    batch = TrainBatch(torch.randn(2, 16, 8, 8), torch.ones(2, 3, dtype=torch.long), None)
    trainer = Trainer(recipe(clip=1e9), TextEncoder(tiny_folder, torch.device("cpu")), torch.device("cpu"))
    gradients, metrics = [], []
    for weight in (0.0, 1.0, 2.0):
        stage = recipe().stages["low"].model_copy(update={"auxiliary_loss": weight})
        trainer.step = 0
        trainer._apply = lambda norm, lr: gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
        )
        metrics.append(trainer.update(batch, stage, 1e-3))
        trainer.optimizer.zero_grad()
    assert "auxiliary_loss" not in metrics[0]
    assert metrics[1]["loss"] == metrics[2]["loss"] == metrics[0]["loss"]
    none, once, twice = gradients
    assert relative(once, none) > 0.01
    assert torch.allclose(twice - once, once - none, atol=1e-4 * float(once.abs().max()))


def exported(folder):
    return load_transformer(folder / "model" / "transformer").state_dict()


def test_the_exported_model_contains_the_moving_average_of_the_weights(recipe, tmp_path, tiny_folder):
    """The average is computed again from the weights of each step, by its definition."""
    stage = {"size": 64, "steps": 5, "batch": 4, "lr": 1e-2, "system": "empty"}
    train(recipe(stages={"low": stage}, ema=0.25, checkpoint_every=1, keep=9), tmp_path)
    average = load_transformer(tiny_folder / "transformer").state_dict()
    for step in range(5):
        weights = load_file(tmp_path / "checkpoints" / f"{step + 1:07d}" / "weights.safetensors")
        decay = min(0.25, (1 + step) / (10 + step))
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in weights}
    model = exported(tmp_path)
    assert max(relative(model[name], average[name]) for name in average) < 1e-5
    assert max(relative(model[name], weights[name]) for name in weights) > 1e-3


def test_truncated_images_do_not_end_a_run(recipe, images, tmp_path):
    lines = images.read_text().splitlines()
    for i in range(len(lines)):
        (tmp_path / f"{i}.png").write_bytes(
            (images.parent / f"{i}.png").read_bytes()[: 300 if i == 7 else None]
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = train(recipe(data=str(tmp_path / "rows.jsonl"), cache=tmp_path / "cache"), tmp_path / "run")
    assert rows[0] == {
        "phase": "cache latents", "pictures": 30, "rejects": 1,
        "why": str(next((tmp_path / "cache").glob("*-64")) / "rejects.jsonl"),
    }  # fmt: skip
