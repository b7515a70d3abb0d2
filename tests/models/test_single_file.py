"""Single files of ComfyUI are models: the same images as the folder that they were made from."""

import json
import shutil

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file, save_file

from lumina_cli import load
from lumina_cli.core.encoders.vae_names import from_ldm, is_ldm, to_ldm
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.models.layout import missing_files
from lumina_cli.core.models.locate import choose_model, find_model
from lumina_cli.core.models.single_file import TOKENIZER, write_single_file
from lumina_cli.core.nextdit.convert import load_transformer, to_comfyui, to_official
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.weights.files import read_weights, write_weights

NANO = ASSETS / "nano"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of assembled models of its own."""
    monkeypatch.setenv("LUMINA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def nano_file(tmp_path_factory):
    """The bundled model as one file in the layout of ComfyUI, as ComfyUI itself saves one: no header of ours."""
    path = tmp_path_factory.mktemp("nano") / "nano.safetensors"
    write_single_file(NANO, load_transformer(NANO / "transformer").state_dict(), path)
    tensors = load_file(path)
    del tensors[TOKENIZER]
    save_file(tensors, path, metadata={"modelspec.title": "nano"})
    return path


@pytest.fixture
def tiny_file(tiny_folder, tmp_path):
    """The tiny model as one file that lumina wrote."""
    path = tmp_path / "tiny.safetensors"
    write_single_file(tiny_folder, load_transformer(tiny_folder / "transformer").state_dict(), path)
    return path


def same(one, other):
    return ImageChops.difference(one, other).getbbox() is None


def draw(pipe):
    (image,) = pipe("a red ball", seed=3, steps=2)
    return image


@pytest.mark.slow
def test_a_file_that_comfyui_saved_generates_the_identical_image(nano_file, lumina, tmp_path):
    images = []
    for model in (nano_file, "nano"):
        code, rows, err = lumina(
            f"sample 'a red ball' --model {model} --steps 4 --out {tmp_path}/{len(images)}"
        )
        assert (code, err) == (0, "")
        images.append(Image.open(rows[0]["image"]))
    assert same(*images)
    assert find_model(nano_file) == find_model(nano_file)  # assembled once


@pytest.mark.slow
def test_python_opens_a_single_file(nano_file):
    assert same(draw(load(str(nano_file))), draw(load("nano")))


def test_a_file_that_lumina_wrote_contains_everything(tiny_file, tiny_folder, cache):
    assert same(draw(load(str(tiny_file))), draw(load(str(tiny_folder))))
    (folder,) = cache.iterdir()
    assert missing_files(folder) == []
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_a_changed_file_is_another_model(tiny_file, cache):
    first = find_model(tiny_file)
    assert find_model(tiny_file) == first
    tensors = load_file(tiny_file)
    name = "model.diffusion_model.layers.0.attention.out.weight"
    header = read_all_metadata(tiny_file)
    save_file({**tensors, name: tensors[name] + 1}, tiny_file, metadata=header)
    assert find_model(tiny_file) != first
    shutil.rmtree(first / "vae")
    assert len(list(cache.iterdir())) == 2


def read_all_metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


BARE = {
    "comfyui.safetensors": lambda weights: to_comfyui(weights),
    "official.pth": lambda weights: to_official(weights),
    "bare.sft": lambda weights: {
        f"diffusion_model.{name}"[16:]: one for name, one in to_official(weights).items()
    },
}


@pytest.mark.parametrize("kind", BARE)
def test_a_bare_transformer_takes_the_other_components(tiny_folder, tmp_path, lumina, kind):
    weights = load_transformer(tiny_folder / "transformer").state_dict()
    tensors = {name: tensor.contiguous() for name, tensor in BARE[kind](weights).items()}
    if kind.endswith(".sft"):
        save_file(tensors, tmp_path / kind)
    else:
        write_weights(tensors, tmp_path / kind)
    code, rows, err = lumina(
        f"sample 'a cup' --model {tmp_path}/{kind} --steps 2 --size 64x64 --out {tmp_path}/o"
    )
    assert (code, rows) == (1, [])
    assert f"{kind} contains a transformer without vae and text_encoder; take them from another model" in err
    command = f"sample 'a cup' --model {tmp_path}/{kind} --frozen {tiny_folder} --steps 2 --size 64x64"
    code, rows, err = lumina(f"{command} --out {tmp_path}/o")
    assert (code, err) == (0, "")
    code, theirs, _ = lumina(
        f"sample 'a cup' --model {tiny_folder} --steps 2 --size 64x64 --out {tmp_path}/p"
    )
    assert same(Image.open(rows[0]["image"]), Image.open(theirs[0]["image"]))


def test_the_message_for_a_bare_transformer_names_the_model_that_fits(tmp_path, lumina):
    write_weights(to_comfyui(load_transformer(NANO / "transformer").state_dict()), tmp_path / "x.safetensors")
    code, _, err = lumina(f"sample a --model {tmp_path}/x.safetensors --explain")
    assert code == 1
    assert "such as --frozen nano" in err


@pytest.mark.slow
def test_eval_takes_a_bare_transformer(tmp_path, lumina):
    write_weights(to_comfyui(load_transformer(NANO / "transformer").state_dict()), tmp_path / "x.safetensors")
    command = f"eval geneval --model {tmp_path}/x.safetensors --frozen nano --per-task 1 --pictures 1 --plan steps=2"
    code, rows, err = lumina(f"{command} --out {tmp_path}/out")
    assert code == 0, err
    assert len(rows) == 7  # six images and the summary
    code, _, err = lumina(f"eval geneval --images {tmp_path}/out --frozen nano")
    assert (code, "pass --model too" in err) == (2, True)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("nano", "nano is not a transformer alone: omit --frozen"),
        ("auto", "--frozen completes the transformer that --model names"),
        ("some/model", "some/model is not a transformer alone: omit --frozen"),
    ],
)
def test_frozen_needs_a_transformer(model, words):
    with pytest.raises(UsageError, match=words):
        choose_model(model, "nano")


def test_a_missing_file_is_named(lumina):
    code, _, err = lumina("sample a --model gone.safetensors")
    assert code == 2
    assert "gone.safetensors does not exist" in err


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vae.decoder.conv_in.weight", (3, 3, 3, 3), "the shapes of its vae are not those of a known model"),
        (
            "text_encoders.gemma2_2b.transformer.model.norm.weight",
            (3,),
            "the shapes of its text_encoder are not",
        ),
        ("model.diffusion_model.layers.0.attention.out.weight", (3, 3), "does not fit this model: misshaped"),
    ],
)
def test_a_component_of_another_shape_is_named(tiny_file, name, shape, words):
    header = read_all_metadata(tiny_file)
    save_file({**load_file(tiny_file), name: torch.ones(shape)}, tiny_file, metadata=header)
    with pytest.raises(LuminaError, match=words):
        find_model(tiny_file)


def test_a_hostile_header_is_one_line(tiny_file):
    header = read_all_metadata(tiny_file)
    for found in ("[1]", "{", '{"vae": 3}', "[" * 100_000):
        save_file(load_file(tiny_file), tiny_file, metadata=header | {"lumina": found})
        with pytest.raises(LuminaError, match="in its header is not a JSON object of configs"):
            find_model(tiny_file)


@pytest.mark.parametrize(
    ("component", "key"),
    [("transformer", "num_layers"), ("vae", "layers_per_block"), ("text_encoder", "num_hidden_layers")],
)
def test_more_layers_than_tensors_are_refused_before_work(tiny_file, component, key):
    header = read_all_metadata(tiny_file)
    configs = json.loads(header["lumina"])
    configs[component][key] = 10**9
    save_file(load_file(tiny_file), tiny_file, metadata=header | {"lumina": json.dumps(configs)})
    with pytest.raises(LuminaError, match=f"has {key} 1000000000 for its {component}, more than its"):
        find_model(tiny_file)


def test_a_hub_model_of_another_kind_is_refused_before_its_weights_are_downloaded(tmp_path, monkeypatch):
    asked = []

    def download(repo, allow_patterns):
        asked.append(allow_patterns)
        (tmp_path / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(LuminaError, match=r"is a ZImagePipeline: of Z-Image, not of Lumina-Image 2\.0; use"):
        find_model("someone/some-model")
    assert asked == [["model_index.json"]]


def test_the_tokenizer_of_a_checkpoint_without_one_is_asked_from_the_hub(tiny_file, tiny_folder, monkeypatch):
    asked = []

    def download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(tiny_folder)

    header, tensors = read_all_metadata(tiny_file), load_file(tiny_file)
    del tensors[TOKENIZER]
    save_file(tensors, tiny_file, metadata=header)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert missing_files(find_model(tiny_file)) == []
    assert asked == [("Alpha-VLLM/Lumina-Image-2.0", ["tokenizer/*"])]
    save_file(tensors | {"model.diffusion_model.x_pad_token": torch.ones(1)}, tiny_file, metadata=header)
    with pytest.raises(LuminaError, match="these are the weights of Z-Image"):
        find_model(tiny_file)


def test_weights_in_eight_bits_are_widened(tiny_file):
    header, tensors = read_all_metadata(tiny_file), load_file(tiny_file)
    small = {
        name: tensor.to(torch.float8_e4m3fn) if name.startswith("model.") and tensor.ndim == 2 else tensor
        for name, tensor in tensors.items()
    }
    save_file(small, tiny_file, metadata=header)
    assert (
        load_transformer(find_model(tiny_file) / "transformer").layers[0].attention.qkv.weight.dtype
        == torch.bfloat16
    )
    save_file(
        {**small, "model.diffusion_model.layers.0.attention.qkv.scale_weight": torch.ones(())}, tiny_file
    )
    with pytest.raises(LuminaError, match=r"contains quantized weights .*use the same model in bf16"):
        find_model(tiny_file)


def test_the_names_of_the_autoencoder_are_those_that_diffusers_converts(tiny_folder):
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    for folder in (tiny_folder, NANO):
        ours = read_weights(folder / "vae")
        named = to_ldm(ours)
        assert is_ldm(named)
        assert not is_ldm(ours)
        config = json.loads((folder / "vae" / "config.json").read_text())
        theirs = convert_ldm_vae_checkpoint({f"vae.{name}": tensor for name, tensor in named.items()}, config)
        for found in (theirs, from_ldm(named)):
            assert found.keys() == ours.keys()
            assert all(torch.equal(found[name], ours[name]) for name in ours)


def test_the_published_models_are_there_by_name(lumina):
    from lumina_cli.core.models import hub
    from lumina_cli.core.models.folder import ModelFolder
    from lumina_cli.core.models.locate import ModelChoice
    from lumina_cli.core.registry import MODELS

    assert {"nano", "lumina-image-2", "neta-lumina", "netayume-lumina"} <= set(MODELS.names())
    for name in ("neta-lumina", "netayume-lumina", hub.NETA_LUMINA, hub.NETAYUME_LUMINA):
        assert ModelFolder(ModelChoice(name, NANO)).default_system == "neta"
    assert ModelFolder(ModelChoice("nano", NANO)).default_system == "real"
    code, rows, _ = lumina("sample '1girl' --model nano --system neta --explain")
    assert code == 0
    texts = [row["text"] for row in rows if row["about"] == "text"]
    prefix = (
        "You are an assistant designed to generate anime images based on textual prompts. <Prompt Start> "
    )
    assert texts[0] == f"{prefix}1girl"
