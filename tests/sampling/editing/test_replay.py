"""Replay of images from their metadata: identical where possible, otherwise one clear line."""

import json
import os
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import open_image, read_metadata, save_image
from lumina_cli.core.sampling.editing.img2img import EditHook, read_edit
from lumina_cli.core.sampling.editing.replay import difference, read_replay, replay_images
from lumina_cli.core.sampling.output.metadata import GenerationRecord, to_metadata
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.runner import generate_rows
from lumina_cli.core.sampling.teacache.fit import CacheFit, write_cache_fit
from lumina_cli.core.sampling.teacache.policy import Curve
from lumina_cli.core.weights.fingerprint import digest_adapter

PLAN = Plan("euler", 2, guidance=3.0, guide_until=1.0)


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


@pytest.fixture(scope="module")
def nano():
    return load_pipeline("nano")


def drawn(pipe, folder, format="png", **settings):
    rows = [{"prompt": "two cups", "negative": "a ball"}]
    settings = {"plan": PLAN, "seed": 3, "count": 2, "size": "64x48", "system": "base"} | settings
    return list(generate_rows(rows, pipe, folder, format=format, **settings))[1]["image"]


def again(pipe, paths, folder, **options):
    return list(replay_images(paths, lambda *wanted: pipe, folder / "again", **options))


def test_replay_reproduces_an_image(pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    (row,) = again(pipe, [path], tmp_path)
    assert row["apart"] <= 1  # it was generated in a batch of two
    assert read_metadata(row["image"]) == read_metadata(path)
    assert (row["prompt"], row["seed"], row["number"], row["size"], row["from"]) == (
        "two cups",
        3,
        1,
        "64x48",
        path,
    )


def test_images_of_a_batch_differ_by_one_level_at_most_and_one_note_gives_the_reason(nano, tmp_path):
    rows = [{"prompt": word} for word in ("a red ball", "two cups on a table", "a green star")]
    plan = {"solver": "euler", "steps": 2}
    paths = [row["image"] for row in generate_rows(rows, nano, tmp_path, count=2, batch=6, plan=plan)]
    notes = []
    replayed = again(nano, paths, tmp_path, note=notes.append)
    apart = [row["apart"] for row in replayed]
    assert max(apart) == 1
    assert notes == [
        f"{sum(apart)} of 6 images differ from their files, by at most 1 of 255: "
        "each was generated alone, and a batch of another size or another device changes rounding"
    ]


def test_images_generated_alone_are_repeated_without_a_note(pipe, tmp_path):
    notes = []
    (row,) = again(pipe, [drawn(pipe, tmp_path, batch=1)], tmp_path, note=notes.append)
    assert (row["apart"], notes) == (0, [])


def test_replay_reproduces_an_image_of_a_preset(pipe, tmp_path):
    (row,) = again(pipe, [drawn(pipe, tmp_path, plan={"steps": 3}, preset="diffusers")], tmp_path)
    assert row["apart"] <= 1


def test_jpeg_metadata_suffices_for_a_replay(pipe, tmp_path):
    (row,) = again(pipe, [drawn(pipe, tmp_path, "jpg")], tmp_path)
    assert difference(row["image"], open_image(drawn(pipe, tmp_path)))["apart"] <= 1
    assert "apart" not in row


def test_changes_override_the_metadata(pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    changes = {"guidance": 6.0, "seed": 9, "size": "64", "system": "real"}
    (row,) = again(pipe, [path], tmp_path, changes=changes)
    metadata = read_metadata(row["image"])
    assert Plan.from_json(metadata["plan"]) == replace(PLAN, guidance=6.0)
    assert (metadata["seed"], metadata["size"], metadata["system"]) == (9, [64, 64], "real")
    assert (metadata["negative"], "apart" in row) == ("a ball", False)
    (row,) = again(pipe, [path], tmp_path, changes={"calls": 5})
    assert "apart" not in row
    assert read_metadata(row["image"])["plan"]["steps"] == 5


def test_replay_loads_the_model_of_the_image_once(pipe, tmp_path):
    path, asked, notes = drawn(pipe, tmp_path, batch=1), [], []
    load = lambda name, loras, quantize: asked.append(name) or pipe  # noqa: E731
    list(replay_images([path, path], load, tmp_path / "again", note=notes.append))
    assert (asked, notes) == ([pipe.name], [])
    list(replay_images([path], load, tmp_path / "again", model="other"))
    assert asked[-1] == "other"


def test_replay_reports_other_weights(pipe, tmp_path):
    path, notes = drawn(pipe, tmp_path), []
    save_image(open_image(path), path, read_metadata(path) | {"weights": "0123"})
    again(pipe, [path], tmp_path, note=notes.append)
    assert notes == [
        f"{path} was generated with other weights than those of {pipe.name}; the result will differ"
    ]


def test_replay_applies_loras_or_reports_why_not(pipe, tmp_path):
    files = [tmp_path / name for name in ("here.safetensors", "changed.safetensors", "gone.safetensors")]
    for file in files:
        file.write_text(file.name)
    loras = [(str(file), 0.1 + 0.2, digest_adapter(file)) for file in files]
    files[1].write_text("another LoRA")
    files[2].unlink()
    path, notes, asked = drawn(pipe, tmp_path), [], []
    weights = "+".join([pipe.base_weights, *(f"{digest}:{scale:g}" for _, scale, digest in loras), "int8"])
    save_image(
        open_image(path), path, read_metadata(path) | {"loras": loras, "quantize": "int8", "weights": weights}
    )

    def load(*wanted):
        asked.append(wanted)
        changed = copy(pipe)
        changed.record_changes(loras[:1])
        return changed

    list(replay_images([path], load, tmp_path / "again", note=notes.append))
    assert asked == [(pipe.name, (f"{files[0]}:0.30000000000000004",), "int8")]
    start, end = f"{path} was generated with the LoRA {tmp_path}", "; the result will differ"
    assert notes == [
        f"{start}/changed.safetensors at 0.3, which has changed since{end}",
        f"{start}/gone.safetensors at 0.3, which no longer exists{end}",
        f"{path} was generated in int8, which is not used here{end}",
    ]
    notes.clear()
    again(pipe, [path], tmp_path, note=notes.append)
    assert notes[0] == f"{start}/here.safetensors at 0.3, which is not used here{end}"


def test_metadata_without_lora_names_is_readable(pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    metadata = read_metadata(path)
    assert not {"loras", "quantize"} & set(metadata)
    save_image(open_image(path), path, metadata | {"weights": f"{pipe.weights}+0123456789ab:0.5"})
    notes = []
    again(pipe, [path], tmp_path, note=notes.append)
    assert notes == [
        f"{path} was generated with other weights than those of {pipe.name}; the result will differ"
    ]


@pytest.mark.parametrize("loras", [3, [["a.safetensors", "much", "0"]], [["a.safetensors"]]])
def test_invalid_lora_metadata_is_rejected(pipe, loras, tmp_path):
    path = drawn(pipe, tmp_path)
    save_image(open_image(path), path, read_metadata(path) | {"loras": loras})
    assert refused(path).startswith(f"{path}: invalid metadata: loras is {loras!r}, but must be a list of ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loras": [{"file": "/proc/kmsg", "scale": 1}]},
            "loras is [{'file': '/proc/kmsg', 'scale': 1}], but ",
        ),
        ({"loras": {"a": 1}}, "loras is {'a': 1}, but must be a list of [file, scale, digest]"),
        ({"loras": [["a", 10**200, "0"]]}, "but must be a list of [file, scale, digest]"),
        ({"size": "99999999x99999999"}, "size is '99999999x99999999', but must be [width, height] in pixels"),
        ({"size": [64, 64, 3]}, "size is [64, 64, 3], but must be [width, height] in pixels"),
        ({"size": 7}, "size is 7, but must be [width, height] in pixels"),
        ({"seed": 10**400}, "seed: an integer has more than 300 digits"),
        ({"plan": {"steps": 10**400}}, "plan: an integer has more than 300 digits"),
    ],
)
def test_the_setting_of_malformed_metadata_is_named(change, message, tmp_path):
    record = to_metadata(
        GenerationRecord(prompt="a", seed=7, number=0, model="nano", size=(64, 64), system="real", plan=PLAN)
    )
    info = PngImagePlugin.PngInfo()
    info.add_itxt("lumina", json.dumps(record | change))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    found = refused(tmp_path / "x.png")
    assert found.startswith(f"{tmp_path / 'x.png'}: invalid metadata: ")
    assert message in found


def test_another_cache_fit_is_reported_and_gives_another_file(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    pipe, notes, found = load_pipeline(folder), [], []
    for height in (1.0, 2.0, 2.0):
        write_cache_fit(CacheFit(pipe.weights, Curve((0.0, height), 1.0), 1.0, 9), folder / "teacache.json")
        (row,) = generate_rows([{"prompt": "two cups"}], pipe, tmp_path, plan=replace(PLAN, cache="tea:0.3"))
        found.append((Path(row["image"]).name, row.get("resumed"), row.get("cached", {}).get("threshold")))
    first, second, resumed = found
    assert (first[1:], second[1:], resumed) == ((None, 0.3), (None, 0.3), (second[0], True, None))
    assert first[0] != second[0]
    again(pipe, [tmp_path / first[0], tmp_path / second[0]], tmp_path, note=notes.append)
    assert notes == [
        f"{tmp_path / first[0]} was generated with another fit of its cache; the result will differ"
    ]


def test_replay_uses_the_parameters_of_other_programs(pipe, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "two cups\nNegative prompt: a ball\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 8, Size: 64x48",
    )
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png", pnginfo=info)
    notes = []
    (row,) = again(pipe, [tmp_path / "x.png"], tmp_path, note=notes.append)
    metadata = read_metadata(row["image"])
    assert (metadata["prompt"], metadata["negative"], metadata["seed"]) == ("two cups", "a ball", 8)
    assert Plan.from_json(metadata["plan"]) == replace(pipe.plan, steps=3, solver="euler", guidance=2.0)
    assert notes == [
        f"{tmp_path}/x.png is from another program: its prompt, steps, solver, guidance are used, "
        "but its noise and model differ"
    ]


def refused(path) -> str:
    with pytest.raises(LuminaError) as caught:
        read_replay(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_without_settings_are_rejected(tmp_path):
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "x.png")
    assert (
        refused(path)
        == f"{path} does not contain generation settings: no metadata of lumina, A1111, ComfyUI or similar"
    )
    save_image(Image.new("RGB", (8, 8)), path, {"prompt": "a"})
    assert refused(path).startswith(
        f"{path}: the image does not contain its generation settings: its metadata lacks"
    )
    save_image(Image.new("RGB", (8, 8)), path, {"grid": {}, "of": "a"})
    assert refused(path) == f"{path} is the sheet of a grid; use one of its images"
    assert "no such image" in refused(tmp_path / "gone.png")


@pytest.mark.parametrize("change", [{"seed": "7"}, {"number": None}, {"prompt": 3}, {"system": []}, {"size": [64]},
                                    {"plan": {"steps": 0}}, {"plan": {"stpes": 3}}])  # fmt: skip
def test_invalid_metadata_is_rejected(change, tmp_path):
    record = to_metadata(
        GenerationRecord(prompt="a", seed=7, number=0, model="nano", size=(64, 64), system="real", plan=PLAN)
    )
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "x.png", record | change)
    assert refused(path).startswith(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "/proc/kmsg",
        "/dev/zero",
        "/etc/passwd",
        "folder",
        "/proc/self/environ",
        "fifo.png",
        "link.png",
        "notes.txt",
    ],
)
@pytest.mark.parametrize("kind", ["init", "mask"])
def test_files_that_metadata_names_are_opened_only_if_they_are_data(kind, name, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("a")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "link.png").symlink_to("/proc/kmsg")
    photo = str(save_image(Image.new("RGB", (8, 8)), tmp_path / "photo.png"))
    path = drawn(pipe, tmp_path)
    edit = {"init": photo, "strength": 0.5, "pixels": "0", "mask_pixels": "0"} | {kind: name}
    save_image(open_image(path), path, read_metadata(path) | {"edit": edit})
    with pytest.raises(LuminaError, match="this is not an image file and is not opened"):
        again(pipe, [path], tmp_path)


@pytest.mark.parametrize("name", ["/proc/kmsg", "/dev/zero", "notes.txt"])
def test_loras_that_metadata_names_are_opened_only_if_they_are_data(name, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("a")
    path, notes = drawn(pipe, tmp_path), []
    save_image(open_image(path), path, read_metadata(path) | {"loras": [[name, 1.0, "0"]]})
    again(pipe, [path], tmp_path, note=notes.append)
    assert notes[-1].endswith(
        f"with the LoRA {name} at 1, which is not a LoRA file and is not opened; the result will differ"
    )


@pytest.mark.parametrize("name", ["nobody/nothing", "lumina-image-2"])
def test_models_that_metadata_names_are_not_downloaded(name, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *words, **settings: pytest.fail("downloaded")
    )
    monkeypatch.setattr("lumina_cli.core.models.locate.find_cached", lambda repo: None)
    path = drawn(pipe, tmp_path)
    save_image(open_image(path), path, read_metadata(path) | {"model": name})
    with pytest.raises(
        LuminaError, match="is not on this machine and is downloaded only on request: add --model"
    ):
        again(pipe, [path], tmp_path)


@pytest.mark.parametrize("change", [{"size": [10**9, 64]}, {"size": [True, 64]}, {"plan": {"steps": 10**9}}])
def test_absurd_metadata_is_rejected_before_a_model_is_loaded(change, pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    save_image(open_image(path), path, read_metadata(path) | change)
    with pytest.raises(LuminaError, match=f"^{path}"):
        list(replay_images([path], lambda *wanted: pytest.fail("loaded"), tmp_path / "again"))


@pytest.mark.parametrize(
    ("size", "found"), [("1024x768", "64x48"), ("64x48", "64x48"), ("50x50", "64x64"), ("x", "64x64")]
)
def test_sizes_of_other_programs_become_sizes_of_the_model(size, found, pipe, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", f"two cups\nSteps: 99999999, Sampler: DPM fast, Seed: 8, CFG scale: 3, Size: {size}"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=info)
    notes = []
    (row,) = again(pipe, [tmp_path / "x.png"], tmp_path, changes={"steps": 2}, note=notes.append)
    assert (row["size"], row["prompt"], row["seed"]) == (found, "two cups", 8)
    assert "cannot be used here" in notes[0]


@pytest.fixture
def edited(pipe, tmp_path):
    """An edited image and its original, both saved."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "init.png")
    edit = read_edit(tmp_path / "init.png", strength=0.5)
    (picture,) = pipe.with_hooks(EditHook(edit)).generate_batch([Job("two cups", 3)], ResolvedRequest(PLAN))
    job, resolved = Job("two cups", 3), ResolvedRequest(PLAN)
    record = GenerationRecord.of(pipe, resolved, job, (64, 64))
    return save_image(picture, tmp_path / "edited.png", to_metadata(record) | {"edit": edit.settings()})


def test_replay_reproduces_an_edit(pipe, edited, tmp_path):
    (row,) = again(pipe, [edited], tmp_path)
    assert row["apart"] == 0
    assert read_metadata(row["image"])["edit"]["strength"] == 0.5


def test_replay_rejects_an_edit_of_a_changed_image(pipe, edited, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "init.png")
    with pytest.raises(LuminaError, match=r"edited.png was edited from .*init.png, which has changed since"):
        again(pipe, [edited], tmp_path)
    (tmp_path / "init.png").unlink()
    with pytest.raises(
        LuminaError, match=r"edited.png was edited from another image: .*init.png: no such image"
    ):
        again(pipe, [edited], tmp_path)
