"""A picture draws itself again: the same one where it can, and one clear line where it cannot."""

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


def drawn(pipe, folder, format="png", **wishes):
    rows = [{"prompt": "two cups", "negative": "a ball"}]
    wishes = {"plan": PLAN, "seed": 3, "count": 2, "size": "64x48", "system": "base"} | wishes
    return list(generate_rows(rows, pipe, folder, format=format, **wishes))[1]["image"]


def again(pipe, paths, folder, **options):
    return list(replay_images(paths, lambda *wanted: pipe, folder / "again", **options))


def test_a_picture_comes_out_the_same(pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    (row,) = again(pipe, [path], tmp_path)
    assert row["apart"] <= 1  # it was drawn in a batch of two
    assert read_metadata(row["image"]) == read_metadata(path)
    assert (row["prompt"], row["seed"], row["number"], row["size"], row["from"]) == (
        "two cups",
        3,
        1,
        "64x48",
        path,
    )


def test_a_preset_draws_the_same_again(pipe, tmp_path):
    (row,) = again(pipe, [drawn(pipe, tmp_path, plan={"steps": 3}, preset="diffusers")], tmp_path)
    assert row["apart"] <= 1


def test_a_jpeg_tells_all_that_it_takes(pipe, tmp_path):
    (row,) = again(pipe, [drawn(pipe, tmp_path, "jpg")], tmp_path)
    assert difference(row["image"], open_image(drawn(pipe, tmp_path)))["apart"] <= 1
    assert "apart" not in row


def test_changes_go_over_what_it_tells(pipe, tmp_path):
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


def test_the_picture_names_its_model_and_each_is_loaded_once(pipe, tmp_path):
    path, asked, told = drawn(pipe, tmp_path), [], []
    load = lambda name, loras, quantize: asked.append(name) or pipe  # noqa: E731
    list(replay_images([path, path], load, tmp_path / "again", note=told.append))
    assert (asked, told) == ([pipe.name], [])
    list(replay_images([path], load, tmp_path / "again", model="other"))
    assert asked[-1] == "other"


def test_other_weights_are_told(pipe, tmp_path):
    path, told = drawn(pipe, tmp_path), []
    save_image(open_image(path), path, read_metadata(path) | {"weights": "0123"})
    again(pipe, [path], tmp_path, note=told.append)
    assert told == [
        f"{path} was generated with other weights than those of {pipe.name}; the result will differ"
    ]


def test_what_was_done_to_the_weights_is_asked_for_again_or_named(pipe, tmp_path):
    files = [tmp_path / name for name in ("here.safetensors", "changed.safetensors", "gone.safetensors")]
    for file in files:
        file.write_text(file.name)
    loras = [(str(file), 0.1 + 0.2, digest_adapter(file)) for file in files]
    files[1].write_text("another LoRA")
    files[2].unlink()
    path, told, asked = drawn(pipe, tmp_path), [], []
    weights = "+".join([pipe.base_weights, *(f"{digest}:{scale:g}" for _, scale, digest in loras), "int8"])
    save_image(
        open_image(path), path, read_metadata(path) | {"loras": loras, "quantize": "int8", "weights": weights}
    )

    def load(*wanted):
        asked.append(wanted)
        changed = copy(pipe)
        changed.record_changes(loras[:1])
        return changed

    list(replay_images([path], load, tmp_path / "again", note=told.append))
    assert asked == [(pipe.name, (f"{files[0]}:0.30000000000000004",), "int8")]
    start, end = f"{path} was generated with the LoRA {tmp_path}", "; the result will differ"
    assert told == [
        f"{start}/changed.safetensors at 0.3, which has changed since{end}",
        f"{start}/gone.safetensors at 0.3, which no longer exists{end}",
        f"{path} was generated in int8, which is not used here{end}",
    ]
    told.clear()
    again(pipe, [path], tmp_path, note=told.append)
    assert told[0] == f"{start}/here.safetensors at 0.3, which is not used here{end}"


def test_pictures_that_do_not_name_their_loras_are_readable(pipe, tmp_path):
    path = drawn(pipe, tmp_path)
    metadata = read_metadata(path)
    assert not {"loras", "quantize"} & set(metadata)
    save_image(open_image(path), path, metadata | {"weights": f"{pipe.weights}+0123456789ab:0.5"})
    told = []
    again(pipe, [path], tmp_path, note=told.append)
    assert told == [
        f"{path} was generated with other weights than those of {pipe.name}; the result will differ"
    ]


@pytest.mark.parametrize("loras", [3, [["a.safetensors", "much", "0"]], [["a.safetensors"]]])
def test_loras_that_make_no_sense_are_one_line(pipe, loras, tmp_path):
    path = drawn(pipe, tmp_path)
    save_image(open_image(path), path, read_metadata(path) | {"loras": loras})
    assert refused(path).startswith(f"{path}: the image does not contain its generation settings")


def test_another_fit_of_the_cache_is_told_and_draws_another_picture(tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    pipe, told, found = load_pipeline(folder), [], []
    for height in (1.0, 2.0, 2.0):
        write_cache_fit(CacheFit(pipe.weights, Curve((0.0, height), 1.0), 1.0, 9), folder / "teacache.json")
        (row,) = generate_rows([{"prompt": "two cups"}], pipe, tmp_path, plan=replace(PLAN, cache="tea:0.3"))
        found.append((Path(row["image"]).name, row.get("resumed"), row.get("cached", {}).get("threshold")))
    first, second, resumed = found
    assert (first[1:], second[1:], resumed) == ((None, 0.3), (None, 0.3), (second[0], True, None))
    assert first[0] != second[0]
    again(pipe, [tmp_path / first[0], tmp_path / second[0]], tmp_path, note=told.append)
    assert told == [
        f"{tmp_path / first[0]} was generated with another fit of its cache; the result will differ"
    ]


def test_another_programs_picture_is_taken_as_far_as_it_goes(pipe, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        "two cups\nNegative prompt: a ball\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 8, Size: 64x48",
    )
    Image.new("RGB", (64, 48)).save(tmp_path / "x.png", pnginfo=info)
    told = []
    (row,) = again(pipe, [tmp_path / "x.png"], tmp_path, note=told.append)
    metadata = read_metadata(row["image"])
    assert (metadata["prompt"], metadata["negative"], metadata["seed"]) == ("two cups", "a ball", 8)
    assert Plan.from_json(metadata["plan"]) == replace(pipe.plan, steps=3, solver="euler", guidance=2.0)
    assert told == [
        f"{tmp_path}/x.png is from another program: its prompt, steps, solver, guidance are used, "
        "but its noise and model differ"
    ]


def refused(path) -> str:
    with pytest.raises(LuminaError) as caught:
        read_replay(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_picture_that_tells_nothing_is_one_line(tmp_path):
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "x.png")
    assert refused(path) == f"{path} does not contain generation settings: no metadata of lumina or A1111"
    save_image(Image.new("RGB", (8, 8)), path, {"prompt": "a"})
    assert refused(path).startswith(
        f"{path}: the image does not contain its generation settings: its metadata lacks"
    )
    save_image(Image.new("RGB", (8, 8)), path, {"grid": {}, "of": "a"})
    assert refused(path) == f"{path} is the sheet of a grid; use one of its images"
    assert "no such image" in refused(tmp_path / "gone.png")


@pytest.mark.parametrize("change", [{"seed": "7"}, {"number": None}, {"prompt": 3}, {"system": []}, {"size": [64]},
                                    {"plan": {"steps": 0}}, {"plan": {"stpes": 3}}])  # fmt: skip
def test_metadata_that_makes_no_sense_is_one_line(change, tmp_path):
    origin = to_metadata(
        GenerationRecord(prompt="a", seed=7, number=0, model="nano", size=(64, 64), system="real", plan=PLAN)
    )
    path = save_image(Image.new("RGB", (8, 8)), tmp_path / "x.png", origin | change)
    assert refused(path).startswith(str(path))


@pytest.fixture
def edited(pipe, tmp_path):
    """A picture drawn over another one, both on the disk."""
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "init.png")
    edit = read_edit(tmp_path / "init.png", strength=0.5)
    (picture,) = pipe.with_hooks(EditHook(edit)).generate_batch([Job("two cups", 3)], ResolvedRequest(PLAN))
    job, resolved = Job("two cups", 3), ResolvedRequest(PLAN)
    record = GenerationRecord.of(pipe, resolved, job, (64, 64))
    return save_image(picture, tmp_path / "edited.png", to_metadata(record) | {"edit": edit.settings()})


def test_an_edit_is_drawn_over_its_picture_again(pipe, edited, tmp_path):
    (row,) = again(pipe, [edited], tmp_path)
    assert row["apart"] == 0
    assert read_metadata(row["image"])["edit"]["strength"] == 0.5


def test_an_edit_of_a_picture_that_changed_is_one_line(pipe, edited, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "init.png")
    with pytest.raises(LuminaError, match=r"edited.png was edited from .*init.png, which has changed since"):
        again(pipe, [edited], tmp_path)
    (tmp_path / "init.png").unlink()
    with pytest.raises(
        LuminaError, match=r"edited.png was edited from another image: .*init.png: no such image"
    ):
        again(pipe, [edited], tmp_path)
