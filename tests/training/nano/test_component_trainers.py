"""The frozen components of nano: each trainer runs, resumes exactly, and exports what the pipeline opens."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lumina_cli.cli.app import run
from lumina_cli.core.encoders.prompts import full_prompt
from lumina_cli.core.encoders.vae import Autoencoder
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nano.dataset import render_images
from lumina_cli.core.nano.detector import DetectorNet, load_detector
from lumina_cli.core.nano.scene import KINDS, TINTS, draw_scene
from lumina_cli.core.training.nano import autoencoder, detector, text_encoder
from lumina_cli.core.training.progress import TrainingProgress


@pytest.fixture(autouse=True)
def few_unseen(monkeypatch):
    """The trainers measure on hundreds of unseen scenes; here a few suffice."""
    render = render_images
    for module in (autoencoder, detector):
        monkeypatch.setattr(module, "render_images", lambda s, n, out: render(s, min(n, 24), out, workers=1))
    calibrate = detector.calibrate
    monkeypatch.setattr(detector, "calibrate", lambda net, out: calibrate(net, out, count=12))


PARTS = {
    "autoencoder": (
        autoencoder,
        autoencoder.train_autoencoder,
        {"scenes": 24, "batch": 4, "steps": 4, "save_every": 2},
    ),
    "text": (
        text_encoder,
        text_encoder.train_text_encoder,
        {"vocabulary": 700, "batch": 4, "steps": 4, "save_every": 2},
    ),
    "detector": (
        detector,
        detector.train_detector,
        {"scenes": 24, "batch": 4, "steps": 4, "save_every": 2, "width": 16},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_a_resumed_component_equals_an_uninterrupted_one(name, tmp_path, monkeypatch):
    module, train, settings = PARTS[name]
    if name == "text":
        build = text_encoder.build_tokenizer
        monkeypatch.setattr(text_encoder, "build_tokenizer", lambda size, seed: build(size, seed, scenes=40))
    whole = list(train(module.SCHEMA(**settings), tmp_path / "whole"))
    assert all(np.isfinite(row["loss"]) for row in whole)
    rows = train(module.SCHEMA(**settings), tmp_path / "cut")
    for _ in rows:  # the first row comes after a save; then the run is killed
        break
    rows.close()
    resumed = list(train(module.SCHEMA(**settings), tmp_path / "cut", resume=True))
    assert resumed[-1]["step"] == 4
    assert resumed[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=1e-4)


SAVED = {"autoencoder": "vae", "text": "text_encoder", "detector": "detector"}
FIRST = {"steps": 1, "save_every": 5}


@pytest.fixture(params=PARTS)
def part(request, monkeypatch):
    """A trainer, its settings for one step, and the folder that it writes."""
    module, train, settings = PARTS[request.param]
    build = text_encoder.build_tokenizer
    monkeypatch.setattr(text_encoder, "build_tokenizer", lambda size, seed: build(size, seed, scenes=40))
    return train, module.SCHEMA(**settings | FIRST), SAVED[request.param]


@pytest.mark.slow
def test_a_resume_exports_a_component_whose_last_export_failed(part, tmp_path, monkeypatch):
    train, settings, saved = part
    module = sys.modules[train.__module__]
    with monkeypatch.context() as patch:
        patch.setattr(module, "_save", fail)
        with pytest.raises(LuminaError, match="the disk is full"):
            list(train(settings, tmp_path))
    assert not (tmp_path / saved).exists()
    rows = list(train(settings, tmp_path, resume=True))
    assert [row["step"] for row in rows] == [1]
    assert list((tmp_path / saved).glob("*.safetensors"))


def fail(*_):
    raise LuminaError("the disk is full: here")


@pytest.mark.slow
def test_measurements_are_those_of_the_saved_file(tmp_path, monkeypatch):
    """The weights of the file are rounded, so that they differ from the trained ones."""
    torch.manual_seed(0)
    model = autoencoder.build_autoencoder()
    pictures, _ = render_images(3, 4, tmp_path, workers=1)
    figures = autoencoder._save(model, pictures, tmp_path / "vae")
    shipped = Autoencoder(tmp_path).model
    assert autoencoder.measure(shipped, pictures) == pytest.approx(figures, rel=1e-7)
    assert autoencoder.measure(model.eval(), pictures) != pytest.approx(figures, rel=1e-7)
    assert shipped.config.scaling_factor == pytest.approx(1 / figures["deviation"], abs=1e-4)


def test_the_saved_detector_is_the_calibrated_one(tmp_path, monkeypatch):
    calibrated = []
    monkeypatch.setattr(detector, "calibrate", lambda net, out: (calibrated.append(net), ({}, {"n": 1}))[1])
    net = DetectorNet(16)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    assert detector._save(net, tmp_path, 16) == {"n": 1}
    shipped = load_detector(tmp_path / "detector").net.state_dict()
    assert all(torch.equal(weight, shipped[name]) for name, weight in calibrated[0].state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nano-detector scenes=8", "nano-detector.yaml: a batch of 32 needs as many scenes, not 8"),
        ("nano-detector scenes=0", "scenes: '0': input should be greater than or equal to 1"),
        ("nano-detector width=12", "width: '12': input should be a multiple of 8"),
        ("nano-autoencoder batch=3", "batch: '3': input should be greater than or equal to 4"),
        ("nano-autoencoder batch=24 scenes=20", "a batch of 24 needs as many scenes, not 20"),
        ("nano-autoencoder crop=136", "crop: '136': input should be less than or equal to 128"),
        ("nano-autoencoder small_share=1.5", "input should be less than or equal to 1"),
        ("nano-autoencoder seed=-1", "seed: '-1': input should be greater than or equal to 0"),
        ("nano-text translations=6", "translations: '6': input should be less than or equal to 5"),
        ("nano-text vocabulary=100", "vocabulary: '100': input should be greater than or equal to 261"),
        ("nano-text lr=0", "lr: '0': input should be greater than 0"),
        ("nano-text save_every=0", "save_every: '0': input should be greater than or equal to 1"),
    ],
)
def test_invalid_settings_are_one_line_errors(words, message, capsys):
    assert run(["train", *words.split(), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def progress(tmp_path):
    net = torch.nn.Linear(2, 2)
    settings = detector.SCHEMA(width=16)
    return TrainingProgress(tmp_path / "detector.pt", net, torch.optim.AdamW(net.parameters()), settings)


@pytest.mark.parametrize("damage", [b"", b"no weights", None])
def test_a_damaged_state_is_a_one_line_error(progress, damage):
    progress.save(3)
    whole = progress.path.read_bytes()
    progress.path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    with pytest.raises(
        LuminaError, match=r"detector.pt is damaged \(.+\); delete it to start over"
    ) as caught:
        progress.load()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_state_falls_back_to_the_previous_one(progress, damage):
    progress.save(2)
    progress.save(3)
    whole = progress.path.read_bytes()
    at = whole.index(bytes(progress.model.weight.detach().numpy().tobytes()))
    changed = {
        "flipped": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "truncated": whole[:-100],
        "empty": b"",
    }
    progress.path.unlink()
    if damage in changed:
        progress.path.write_bytes(changed[damage])
    step, line = progress.load()
    assert step == 2
    assert line.startswith(f"{progress.path} is damaged (")
    assert line.endswith(f"; resuming from {progress.path.with_name('detector.previous.pt')} at step 2")


@pytest.mark.parametrize("text", ["7", "", "part: detector\nstpes: 3\n", None])
def test_damaged_settings_of_a_component_are_restored(progress, text, lumina):
    progress.save(2)
    path = progress.path.with_suffix(".yaml")
    content = path.read_text()
    path.unlink()
    if text is not None:
        path.write_text(text)
    _, rows, err = lumina(f"train out={path.parent} --resume --dry-run")
    assert rows[0]["width"] == 16
    assert err.startswith(f"{path} is damaged (")
    assert "restored from the newest checkpoint" in err
    assert path.read_text() == content


def test_a_state_of_another_network_is_a_one_line_error(progress):
    progress.save(3)
    assert progress.load() == (3, None)
    progress.model = torch.nn.Linear(3, 3)
    with pytest.raises(LuminaError, match="holds a different network than the recipe describes"):
        progress.load()


def test_a_state_saved_on_a_gpu_opens_without_one(progress, monkeypatch):
    with monkeypatch.context() as patch:  # the locations in the file are those of a GPU
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        progress.save(3)
    assert progress.load() == (3, None)


@pytest.mark.slow
def test_resuming_without_a_run_is_an_error(tmp_path):
    with pytest.raises(LuminaError, match="nothing to resume"):
        list(detector.train_detector(detector.SCHEMA(scenes=24, steps=2, batch=4), tmp_path, resume=True))


def test_the_tokenizer_encodes_system_prompts_as_one_token_and_preserves_text():
    tokenizer = text_encoder.build_tokenizer(900, 0, scenes=60)
    assert tokenizer("").input_ids == [tokenizer.bos_token_id]
    ids = tokenizer(full_prompt("a red car")).input_ids
    assert len(ids) <= 6
    for text in ("a red car", "ein grüner Würfel", "два шара", "猫と犬 ☃"):
        ids = tokenizer(full_prompt(text)).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith(text)


def test_scene_targets_contain_the_objects_of_the_scene():
    scenes = [draw_scene(1, i) for i in range(20)]
    present, tint, count, place, _ = text_encoder.scene_targets(scenes)
    for i, scene in enumerate(scenes):
        assert {KINDS[k] for k in present[i].nonzero()[:, 0]} == {thing.kind for thing in scene.things}
        k = KINDS.index(scene.things[0].kind)
        assert TINTS[tint[i, k]] == scene.things[0].tint
        assert count[i, k] + 1 == sum(thing.kind == scene.things[0].kind for thing in scene.things)
        assert place[i].abs().max() < 3


@pytest.mark.slow
def test_the_detector_decodes_its_own_targets(tmp_path):
    """Maps built from the targets are decoded as the targets: encoder and decoder of boxes agree."""
    from lumina_cli.core.nano.detector import Detector

    pictures, boxes = render_images(11, 12, tmp_path, workers=1)
    scenes = [draw_scene(11, i) for i in range(12)]
    heat, cells, tints, offsets = detector.targets(scenes, boxes, 16)

    class Truth(DetectorNet):
        def forward(self, pixels):
            tint, box = torch.zeros(12, len(TINTS), 16, 16), torch.zeros(12, 4, 16, 16)
            i, row, column = cells.T
            tint[i, tints, row, column] = 1
            box[i, :, row, column] = offsets
            return torch.logit(heat, 1e-4), tint, box

    found = Detector(Truth(16), {}).detect([Image.fromarray(picture) for picture in pictures])
    for scene, box, things in zip(scenes, boxes, found, strict=True):
        sure = [thing for thing in things if thing.score > 0.9]
        assert sorted((t.kind, t.tint) for t in sure) == sorted((t.kind, t.tint) for t in scene.things)
        wanted = sorted(map(tuple, box[~np.isnan(box[:, 0])]))
        assert np.allclose(sorted(t.box for t in sure), wanted, atol=0.01)


def test_a_folder_without_a_detector_is_an_error(tmp_path):
    with pytest.raises(LuminaError, match="contains no detector"):
        load_detector(tmp_path)


@pytest.mark.slow
def test_trained_components_open_in_the_pipeline(tmp_path):
    list(autoencoder.train_autoencoder(autoencoder.SCHEMA(scenes=24, batch=4, steps=1), tmp_path))
    vae = Autoencoder(tmp_path)
    latents = vae.encode(torch.zeros(1, 3, 64, 64))
    assert latents.shape == (1, 16, 8, 8)
    assert vae.decode(latents).shape == (1, 3, 64, 64)
    list(detector.train_detector(detector.SCHEMA(scenes=24, batch=2, steps=1, width=16), tmp_path))
    config = json.loads((tmp_path / "detector" / "config.json").read_text())
    assert set(config["ceiling"]) == {"scenes", "kinds", "kinds_and_tints"}
    load_detector(tmp_path / "detector")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "saved"), [(autoencoder, "vae"), (text_encoder, "tokenizer"), (detector, "detector")]
)
def test_a_failed_write_keeps_the_previous_component(module, saved, tmp_path):
    """A child process with a limit on file sizes trains a step; the folder stays as it was."""
    (tmp_path / saved).mkdir()
    (tmp_path / saved / "config.json").write_text("old")
    saves = {
        autoencoder: "m._save(m.build_autoencoder(), np.zeros((1, 64, 64, 3), np.uint8), out / 'vae')",
        text_encoder: "next(m.train_text_encoder(m.SCHEMA(vocabulary=700), out))",
        detector: "m.calibrate = lambda *_: ({}, {}); m._save(m.DetectorNet(64), out, 64)",
    }
    lines = (
        "import resource, signal, warnings; warnings.simplefilter('ignore')",
        "import numpy as np; from pathlib import Path; from functools import partial",
        f"import {module.__name__} as m; from lumina_cli.core.errors import LuminaError",
        "if hasattr(m, 'build_tokenizer'): m.build_tokenizer = partial(m.build_tokenizer, scenes=20)",
        f"out = Path({str(tmp_path)!r})",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))",
        f"try: {saves[module]}",
        "except LuminaError as error: print(error)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / saved}: "), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [saved]
    assert (tmp_path / saved / "config.json").read_text() == "old"
