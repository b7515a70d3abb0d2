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
from lumina_cli.core.training import loop
from lumina_cli.core.training.config import Recipe
from lumina_cli.core.training.loop import ASSETS, describe_run, find_frozen, train_transformer
from lumina_cli.core.training.objective import (
    LOW,
    MAIN,
    draw_time_and_noise,
    even_times,
    stage_loss,
    velocity_loss,
)
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


def test_losses_and_gradients_are_the_official_ones(golden_model):
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


def test_a_list_has_the_losses_of_a_batch(golden_model):
    text, mask, t = TENSORS["in.caption_features"], TENSORS["in.caption_mask"].bool(), TENSORS["in.t"]

    def velocity(x, t):
        return golden_model(x, t, text, mask)

    batch = velocity_loss(velocity, TENSORS["in.x"], TENSORS["in.noise"], t)
    listed = velocity_loss(velocity, list(TENSORS["in.x"]), list(TENSORS["in.noise"]), t)
    assert torch.allclose(batch, listed, rtol=1e-5)


def test_training_times_are_the_official_ones():
    shift = train_shift(4096)
    ours = shift_time(torch.tensor(FACTS["train_shift"]["u"]), shift)
    assert torch.allclose(ours, torch.tensor(FACTS["train_shift"]["t"]), atol=1e-5)
    times, _ = draw_time_and_noise(0, 0, range(20_000), [(1,)] * 20_000)
    for share, time in FACTS["train_t_quantiles"].items():
        assert shift_time(times, shift).quantile(float(share)).item() == pytest.approx(time, abs=0.01)
        assert shift_time(even_times(10_000), shift).quantile(float(share)).item() == pytest.approx(
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
    """The loss of a model that answers 2 x_t + t, written out; times and noise are the stream's own."""
    times, noise = draw_time_and_noise(5, 9, range(len(data)), [tuple(x.shape) for x in data], stream)
    errors = []
    for x, n, u in zip(data, noise, times, strict=True):
        t = u / (u + shift * (1 - u))  # a shift above 1 moves times towards the noise
        errors.append((2 * (t * x + (1 - t) * n) + t - (x - n)).square().mean())
    return torch.stack(errors).mean().item()


@pytest.mark.parametrize("listed", [False, True])
def test_auxiliary_loss_is_the_loss_of_pooled_latents_at_the_same_shift_and_draws_of_its_own(listed):
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


def test_the_two_losses_share_neither_times_nor_noise():
    (t, (noise,)), (other, (low,)) = (draw_time_and_noise(0, 0, [0], [(4, 4)], s) for s in (MAIN, LOW))
    assert t != other
    assert not torch.equal(noise, low)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(30):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            captions = {"en": {"short": "red cup"[: 3 + i % 2], "tags": "red"}}
            file.write(json.dumps({"image": f"{i}.png", "captions": captions}) + "\n")
    return folder / "rows.jsonl"


@pytest.fixture
def recipe(tiny_folder, pictures, tmp_path_factory):
    def make(**changes):
        stage = {"size": 64, "steps": 4, "batch": 4, "lr": 1e-3, "system": "empty"}
        values = {
            "model": str(tiny_folder), "frozen": str(tiny_folder), "data": str(pictures), "precision": "fp32",
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


@pytest.mark.parametrize("exact", [True, False])
def test_a_resumed_run_is_the_run_that_was_never_stopped(recipe, tmp_path, exact):
    settings = recipe(exact_lengths=exact)
    train(settings, tmp_path / "straight")
    rows = train_transformer(settings, tmp_path / "killed", open_data=TrainingData)
    for row in rows:
        if row["step"] == 6:  # after the checkpoint of step 6 has been promised, before it is written
            break
    rows.close()
    train(settings, tmp_path / "killed", resume=True)
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    ours, theirs = (
        load_file(tmp_path / name / "model/transformer/diffusion_pytorch_model.safetensors")
        for name in ("killed", "straight")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_model_of_a_run_is_drawn_with_the_plan_of_its_recipe(recipe, tmp_path):
    stage = {"size": 64, "steps": 1, "batch": 2, "lr": 1e-3, "system": "empty"}
    train(recipe(stages={"low": stage}, plan={"shift": 3, "guide_until": 1}), tmp_path)
    assert default_plan(tmp_path / "model") == Plan(shift=3, guide_until=1)
    scheduler = json.loads((tmp_path / "model/scheduler/scheduler_config.json").read_text())
    assert scheduler["shift"] == 3
    with pytest.raises(ValueError, match="no setting 'shif'"):
        recipe(plan={"shif": 3})


def test_training_lowers_the_loss_and_leaves_a_model_that_opens(recipe, tmp_path, tiny_folder):
    stage = {"size": 64, "steps": 30, "batch": 4, "lr": 5e-3, "system": "empty"}
    rows = train(recipe(stages={"low": stage}, log_every=10, ema=0.9, export="bf16"), tmp_path)
    means = [row["loss"] for row in rows if "loss" in row]
    assert means[-1] < means[0]
    model = load_transformer(tmp_path / "model" / "transformer")
    assert model.dtype == torch.bfloat16
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(
        p.name for p in tiny_folder.iterdir()
    )
    assert rows[-1] == {"step": 30, "model": str(tmp_path / "model")}


def test_stages_can_be_run_one_at_a_time(recipe, tmp_path):
    settings = recipe()
    train(settings, tmp_path / "apart", stage="low")
    train(settings, tmp_path / "apart", stage="high")
    train(settings, tmp_path / "together")
    assert losses(tmp_path / "apart") == losses(tmp_path / "together")
    with pytest.raises(LuminaError, match="holds checkpoints up to step 8; --resume goes on"):
        train(settings, tmp_path / "apart")


def test_a_stage_waits_for_the_one_before(recipe, tmp_path):
    rows = train_transformer(recipe(checkpoint_every=2), tmp_path, open_data=TrainingData)
    next(row for row in rows if row["step"] == 3)
    rows.close()
    with pytest.raises(LuminaError, match="has not finished stage low"):
        train(recipe(), tmp_path, stage="high", resume=True)


def test_an_interrupt_writes_a_checkpoint_first(recipe, tmp_path):
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
        ({"model": "nano"}, "reads text of width 256; the frozen encoder gives 32"),
        ({"frozen": "nowhere"}, "unknown model 'nowhere'"),
    ],
)
def test_what_does_not_fit_is_one_line(recipe, tmp_path, changes, message):
    with pytest.raises(LuminaError, match=message):
        train(recipe(**changes), tmp_path)


def test_resuming_nothing_and_unknown_stages_are_errors(recipe, tmp_path):
    with pytest.raises(LuminaError, match="has no run to resume"):
        train(recipe(), tmp_path, resume=True)
    with pytest.raises(UsageError, match="no stage 'lo'; did you mean 'low'"):
        train(recipe(), tmp_path, stage="lo")


def test_another_optimiser_cannot_resume(recipe, tmp_path):
    train(recipe(), tmp_path, stage="low")
    with pytest.raises(LuminaError, match="trained with another optimiser than adamw"):
        train(recipe(optimizer={"name": "adamw"}), tmp_path, resume=True)


def test_describe_counts_without_training(recipe):
    rows = list(describe_run(recipe(model="nano")))
    assert [row["stage"] for row in rows] == ["low", "high"]
    assert rows[0]["image_tokens"] == 16
    assert rows[0]["parameters"] > 4e6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of its own code
def test_compiled_blocks_train_like_plain_ones(recipe, tmp_path):
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


def test_compiling_without_a_compiler_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingDependency, match="compile=false"):
        compile_blocks(build_model("nano"))


def test_checkpointing_changes_no_gradient(recipe, tiny_folder):
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
    assert calls == [1, 2]  # on the way back once more
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_the_auxiliary_loss_trains_with_its_weight(recipe, tiny_folder):
    """Gradients are linear in the weight: each unit of it adds the same, which is not nothing."""
    batch = TrainBatch(torch.randn(2, 16, 8, 8), torch.ones(2, 3, dtype=torch.long), None)
    trainer = Trainer(recipe(clip=1e9), TextEncoder(tiny_folder, torch.device("cpu")), torch.device("cpu"))
    gradients, figures = [], []
    for weight in (0.0, 1.0, 2.0):
        stage = recipe().stages["low"].model_copy(update={"auxiliary_loss": weight})
        trainer.step = 0
        trainer._apply = lambda norm, lr: gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
        )
        figures.append(trainer.update(batch, stage, 1e-3))
        trainer.optimizer.zero_grad()
    assert "auxiliary_loss" not in figures[0]
    assert figures[1]["loss"] == figures[2]["loss"] == figures[0]["loss"]
    none, once, twice = gradients
    assert relative(once, none) > 0.01
    assert torch.allclose(twice - once, once - none, atol=1e-4 * float(once.abs().max()))


def exported(folder):
    return load_transformer(folder / "model" / "transformer").state_dict()


def test_the_model_that_is_left_holds_the_average_of_the_weights(recipe, tmp_path, tiny_folder):
    """The average is made anew from the weights of every step, by its definition."""
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


def test_truncated_pictures_do_not_end_a_run(recipe, pictures, tmp_path):
    lines = pictures.read_text().splitlines()
    for i in range(len(lines)):
        (tmp_path / f"{i}.png").write_bytes(
            (pictures.parent / f"{i}.png").read_bytes()[: 300 if i == 7 else None]
        )
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = train(recipe(data=str(tmp_path / "rows.jsonl"), cache=tmp_path / "cache"), tmp_path / "run")
    assert rows[0] == {
        "phase": "cache latents", "pictures": 30, "rejects": 1,
        "why": str(next((tmp_path / "cache").glob("*-64")) / "rejects.jsonl"),
    }  # fmt: skip


def test_frozen_parts_are_found_by_name_before_any_folder(tmp_path, monkeypatch, tiny_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert find_frozen("nano") == ASSETS / "nano"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_folder)
    assert find_frozen("run") == Path("run/model")
    assert find_frozen(str(tiny_folder)) == tiny_folder
    with pytest.raises(LuminaError, match="nano has no vae, text_encoder, tokenizer"):
        find_frozen("./nano")
    with pytest.raises(UsageError, match="frozen: unknown model 'nanoo'; did you mean 'nano'"):
        find_frozen("nanoo")


def test_frozen_is_never_a_path_into_the_assets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="frozen: unknown model"):
        find_frozen("nano/../nano")


def test_an_embedded_model_without_transformer_gives_its_frozen_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "ASSETS", tmp_path)
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / "nano" / part).mkdir(parents=True)
    assert find_frozen("nano") == tmp_path / "nano"
    (tmp_path / "nano" / "vae").rmdir()
    with pytest.raises(LuminaError, match="has no vae"):
        find_frozen("nano")
