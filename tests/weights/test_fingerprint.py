"""The identity of a model covers what generates, and fingerprints of earlier versions are recognised."""

import json
import os
import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from lumina_cli.core.evals.geneval.layout import ImageGenerator, generate_images
from lumina_cli.core.flow import Plan
from lumina_cli.core.images.io import save_image
from lumina_cli.core.models.folder import ModelFolder
from lumina_cli.core.models.locate import ModelChoice
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.sampling.output.filenames import FileNames, read_record
from lumina_cli.core.sampling.output.metadata import GenerationRecord, to_metadata
from lumina_cli.core.sampling.pipeline import load_pipeline
from lumina_cli.core.sampling.request import Job, ResolvedRequest
from lumina_cli.core.sampling.teacache.fit import FIT_FILE, read_cache_fit
from lumina_cli.core.sampling.teacache.kinds import fit_digest, recognize_weights
from lumina_cli.core.weights.fingerprint import fingerprint, fingerprint_weights, identify_model

NANO = ASSETS / "nano"
EARLIER_NANO = ("dada46198571", "2ad3c77615c8", "5fff343a89c3")  # with no, the first and the second captioner


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize(
    "extra", ["captioner/model.safetensors", "detector/model.safetensors", "x.safetensors"]
)
def test_files_that_do_not_generate_do_not_count(folder, extra):
    before = identify_model(folder)
    (folder / extra).parent.mkdir(exist_ok=True)
    (folder / extra).write_bytes(b"x" * 100)
    (folder / "plan.json").write_text("{}")  # every image stores its own plan
    os.utime(folder / "vae" / "config.json", (0, 0))
    after = identify_model(folder)
    assert after.current == before.current
    assert fingerprint_weights(folder) in after.earlier
    assert set(before.earlier) <= set(after.earlier)  # images made before the file was added


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_every_component_that_generates_counts(folder, part):
    before = fingerprint(folder)
    name = {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")
    path = folder / part / name
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings, indent=7) if part != "tokenizer" else path.read_text())
    assert fingerprint(folder) == before  # the layout of JSON
    path.write_text(json.dumps(settings | {"extra": 1}))
    assert fingerprint(folder) != before
    if (weights := next((folder / part).glob("*.safetensors"), None)) is not None:
        path.write_text(json.dumps(settings))
        tensors = load_file(weights)
        name = sorted(tensors)[0]
        save_file({**tensors, name: tensors[name] + 1}, weights)
        assert fingerprint(folder) != before


def test_settings_of_the_file_format_do_not_count(folder):
    before = fingerprint(folder)
    path = folder / "text_encoder" / "config.json"
    settings = json.loads(path.read_text()) | {"dtype": "bfloat16", "transformers_version": "9.9"}
    path.write_text(json.dumps(settings))
    assert fingerprint(folder) == before


def test_the_bundled_model_is_known_by_its_earlier_fingerprints():
    identity = identify_model(NANO)
    assert set(EARLIER_NANO) <= set(identity.earlier)
    assert {identity.recognize(name) for name in EARLIER_NANO} == {identity.current}
    assert identity.recognize("0" * 12) == "0" * 12
    assert json.loads((NANO / FIT_FILE).read_text())["weights"] == identity.current


@pytest.mark.slow
def test_the_shipped_fit_is_used_by_the_command_of_the_readme(lumina, tmp_path):
    code, rows, err = lumina(f"sample 'a red ball' --model nano --cache error:0.05 --out {tmp_path}")
    assert (code, err) == (0, "")
    assert rows[0]["cached"]["cache"] == "error:0.05"


def test_a_fit_that_names_an_earlier_fingerprint_is_used(folder):
    shutil.copyfile(NANO / FIT_FILE, folder / FIT_FILE)
    identity, plan = identify_model(folder), Plan(cache="error:0.05")
    text = (folder / FIT_FILE).read_text().replace(identify_model(NANO).current, identity.earlier[0])
    (folder / FIT_FILE).write_text(text)
    old = fit_digest(plan, folder)
    assert read_cache_fit(folder, identity.current, identity.earlier).weights == identity.earlier[0]
    (folder / FIT_FILE).write_text(text.replace(identity.earlier[0], identity.current))
    new = fit_digest(plan, folder)
    found = recognize_weights(f"{identity.earlier[0]}+a1b2:0.5+fit:{old}", plan, folder, identity)
    assert found == f"{identity.current}+a1b2:0.5+fit:{new}"
    foreign = f"{'0' * 12}+fit:{'1' * 12}"
    assert recognize_weights(foreign, plan, folder, identity) == foreign


def test_images_of_an_earlier_version_keep_their_names(tiny_folder, tmp_path):
    pipeline = load_pipeline(tiny_folder)
    resolved = ResolvedRequest(Plan("euler", 2))
    record = GenerationRecord.of(pipeline, resolved, Job("a cup"), (64, 64))
    old = replace(record, weights=pipeline.identity.earlier[0])
    (image,) = pipeline.generate_batch([Job("a cup")], resolved, (64, 64))
    path, _ = FileNames(tmp_path, "png", 1).assign(0, {}, record)
    save_image(image, path, to_metadata(old))
    assert FileNames(tmp_path, "png", 1).assign(0, {}, record) == (path, True)
    save_image(image, path, to_metadata(replace(record, weights="0" * 12)))
    other, exists = FileNames(tmp_path, "png", 1).assign(0, {}, record)
    assert (other.stem, exists) == (f"{path.stem}-2", False)
    assert "recognize" not in to_metadata(record)
    assert read_record(path).weights == "0" * 12


def test_images_of_an_earlier_evaluation_are_not_generated_again(tiny_folder, tmp_path):
    identity = ModelFolder(ModelChoice("tiny", tiny_folder)).identity
    made = []

    def generate(rows, numbers):
        made.extend(numbers)
        return [load_blank() for _ in rows]

    def run(weights):
        settings = {"model": "tiny", "weights": weights}
        generator = ImageGenerator(generate, settings, identity.recognize)
        return list(generate_images([{"prompt": "a cup"}], generator, tmp_path, 2))

    run(identity.earlier[0])
    assert len(made) == 2
    run(identity.current)
    assert len(made) == 2
    run("0" * 12)
    assert len(made) == 4


def load_blank():
    from PIL import Image

    return Image.new("RGB", (8, 8))


def test_a_replay_recognises_an_earlier_fingerprint(lumina, tiny_folder, tmp_path):
    pipeline = load_pipeline(tiny_folder)
    resolved = ResolvedRequest(Plan("euler", 2))
    record = GenerationRecord.of(pipeline, resolved, Job("a cup"), (64, 64))
    (image,) = pipeline.generate_batch([Job("a cup")], resolved, (64, 64))
    for name, weights in (("old", pipeline.identity.earlier[0]), ("other", "0" * 12)):
        save_image(image, tmp_path / f"{name}.png", to_metadata(replace(record, weights=weights)))
        code, _, err = lumina(f"sample --from {tmp_path}/{name}.png --out {tmp_path}/out")
        assert code == 0, err
        assert ("with other weights" in err) is (name == "other")
