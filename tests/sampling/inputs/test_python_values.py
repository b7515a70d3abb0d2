"""Python calls are checked as the command line is, before any work; their images can be repeated."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import lumina_cli
from lumina_cli.core.errors import UsageError
from lumina_cli.core.images.io import open_image, read_metadata
from lumina_cli.core.sampling.editing.replay import replay_images
from lumina_cli.core.sampling.inputs.python_values import parse_dtype, read_call
from lumina_cli.core.sampling.output.generated import GeneratedImage
from lumina_cli.core.sampling.pipeline import Pipeline, load_pipeline

FAST = {"solver": "euler", "steps": 2}


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": None}, "prompt must be text or a list of texts, not None"),
        ({"prompt": b"a cup"}, "prompt must be text or a list of texts, not b'a cup'"),
        ({"prompt": {"prompt": "a"}}, "prompt must be text or a list of texts, not {'prompt': 'a'}"),
        ({"prompt": {"a", "b"}}, "prompt is a set, which has no fixed order; give a list, such as sorted("),
        ({"prompt": frozenset("a")}, "prompt is a set, which has no fixed order"),
        ({"prompt": 3}, "prompt must be text or a list of texts, not 3"),
        ({"prompt": ["a", None]}, "prompt 2 must be text, not None"),
        ({"prompt": ("a", b"b")}, "prompt 2 must be text, not b'b'"),
        ({"prompt": "a\ud83d"}, "prompt is not valid UTF-8 text: 'a\\ud83d'"),
        ({"count": 0}, "count must be an integer of at least 1, not 0"),
        ({"count": 1.5}, "count must be an integer, not 1.5"),
        ({"seed": "7"}, "seed must be an integer, not '7'"),
        ({"seed": True}, "seed must be an integer, not True"),
        ({"seed": 7.0}, "seed must be an integer, not 7.0"),
        ({"negative": ["a", "b"]}, "negative has 2 texts for 1 prompts; give as many, or one text"),
        ({"negative": [3]}, "negative 1 must be text, not 3"),
        ({"negative": b"a"}, "negative must be text or a list of texts, not b'a'"),
        ({"size": (64.5, 64)}, "each side of size must be an integer, not 64.5"),
        ({"size": (63, 64)}, "width 63 is not a multiple of 16"),
        ({"settings": {"steps": 2.5}}, "steps must be an integer, not 2.5"),
        ({"settings": {"guidance": -1}}, "guidance must be at least 0"),
        ({"settings": {"stpes": 2}}, "a plan has no setting 'stpes'; did you mean 'steps'?"),
        ({"system": 3}, "system must be text, not 3"),
        ({"prompt": []}, "no prompts in the list"),
        ({"prompt": ()}, "no prompts in the list"),
        ({"seed": []}, "seed is an empty list; give at least one integer"),
        ({"seed": [1, "2"]}, "each seed must be an integer, not '2'"),
        ({"seed": np.array([1.5])}, "each seed must be an integer, not "),
        ({"seed": b"7"}, "seed must be an integer, not b'7'"),
        ({"preset": 3}, "preset must be a name or a path, not 3"),
        ({"negative_system": "no"}, "negative_system must be True or False, not 'no'"),
        ({"settings": {"solver": 3}}, "solver must be one of euler, "),
        ({"settings": {"guidance": np.array([1, 2])}}, "guidance must be a single value, not array([1, 2])"),
        ({"settings": {"shift": torch.ones(2)}}, "shift must be a single value, not tensor([1., 1.])"),
        ({"settings": {"steps": "many"}}, "steps must be an integer, not 'many'"),
    ],
)
def test_invalid_arguments_are_one_line_errors(arguments, message):
    with pytest.raises(UsageError) as caught:
        read_call(**{"prompt": "a ball"} | arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_and_torch_are_plain_numbers():
    call = read_call(
        np.array(["a ball", "a cup"]), np.int64(7), torch.tensor(2), (np.int32(64), 48),
        settings={"steps": np.uint8(3), "guidance": np.float32(2.5), "shift": np.float64(3), "calls": None},
    )  # fmt: skip
    request = call.request
    assert (request.seed, request.count, request.size) == (7, 2, (64, 48))
    assert request.plan == {"steps": 3, "guidance": 2.5, "shift": 3.0}
    assert {type(value) for value in [request.seed, request.count, *request.size]} == {int}
    assert [(job.prompt, job.number) for job in call.jobs] == [
        ("a ball", 0), ("a ball", 1), ("a cup", 0), ("a cup", 1),
    ]  # fmt: skip


def test_none_stands_for_a_default():
    given = {"seed": None, "count": None, "size": None, "system": None, "negative": None, "preset": None}
    assert read_call("a", **given, settings={"steps": None, "solver": None}) == read_call("a")
    assert read_call("a", settings={"renorm": None}).request.plan == {"renorm": None}


def test_each_prompt_can_have_a_negative_prompt():
    assert [job.negative for job in read_call(["a", "b"], negative=["x", None]).jobs] == ["x", ""]
    assert [job.negative for job in read_call(["a", "b"], negative="x").jobs] == ["x", "x"]


def test_dtypes_are_named_as_in_torch():
    names = ("float16", "torch.bfloat16", torch.float32, None, "auto")
    assert [parse_dtype(name) for name in names] == [torch.float16, torch.bfloat16, torch.float32, None, None]
    for wrong in ("int8", "float99", 3, torch.int64):
        with pytest.raises(UsageError, match="dtype must be float32, bfloat16 or float16, not "):
            parse_dtype(wrong)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
def test_saved_images_can_be_repeated(name, pipe, tmp_path):
    image = pipe("two cups", seed=np.int64(5), count=2, size="64x48", negative="a ball", **FAST)[1]
    image.save(tmp_path / name)
    (row,) = replay_images([tmp_path / name], lambda *wanted: pipe, tmp_path / "again")
    assert read_metadata(row["image"]) == read_metadata(tmp_path / name) == image.metadata
    difference = np.abs(np.asarray(open_image(row["image"]), int) - np.asarray(image, int)).max()
    assert difference <= 1  # it was generated in a batch of two


def test_images_are_images_of_pil(pipe):
    (image,) = pipe("two cups", **FAST)
    assert isinstance(image, GeneratedImage)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert read_metadata(buffer.getvalue())["prompt"] == "two cups"
    assert type(image.copy()) is type(image.resize((8, 8))) is Image.Image
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    assert open_image(buffer.getvalue()).tobytes() == image.tobytes()


def test_calls_start_from_images_with_masks(pipe, tmp_path):
    (start,) = pipe("two cups", **FAST)
    mask = Image.new("L", start.size)
    mask.paste(255, (0, 0, 32, 64))
    (image,) = pipe("a ball", init=start, mask=mask, **FAST)
    assert image.metadata["edit"]["strength"] == 1.0
    assert image.crop((32, 0, 64, 64)).tobytes() == start.crop((32, 0, 64, 64)).tobytes()
    assert image.tobytes() != start.tobytes()
    with pytest.raises(UsageError, match="mask and strength need init"):
        pipe("a ball", strength=0.5, **FAST)


def test_load_takes_the_options_of_the_command(tiny_folder):
    pipe = lumina_cli.load(str(tiny_folder), dtype="float32", quantize="int8")
    assert isinstance(pipe, Pipeline)
    assert pipe.weights.endswith("+int8")
    with pytest.raises(UsageError, match="unknown quantization 'int9'"):
        lumina_cli.load(str(tiny_folder), quantize="int9")
    with pytest.raises(UsageError, match="memory decides device and dtype"):
        lumina_cli.load(str(tiny_folder), memory="2G", dtype="float32")
    with pytest.raises(TypeError):
        lumina_cli.load(str(tiny_folder), loar="x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model must be text or a path, not 3"),
        ({"model": b"nano"}, "model must be text or a path, not b'nano'"),
        ({"model": ""}, "model is empty; omit it for the default"),
        ({"device": 0}, "device must be text or a torch.device, not 0"),
        ({"frozen": 3}, "frozen must be text or a path, not 3"),
        ({"lora": 3}, "lora must be a path, or a list of paths, not 3"),
        ({"lora": ["a", None]}, "lora must be a path, or a list of paths, not None"),
        ({"quantize": 8}, "quantize must be text, not 8"),
        ({"memory": 8}, "memory must be text, not 8"),
        ({"kernel": b"sdpa"}, "kernel must be text, not b'sdpa'"),
        ({"compile": "yes"}, "compile must be True or False, not 'yes'"),
        ({"note": "print"}, "note must be a function of one text, not 'print'"),
        ({"dtype": 3}, "dtype must be float32, bfloat16 or float16, not 3"),
    ],
)
def test_invalid_arguments_of_load_are_one_line_errors(arguments, message):
    with pytest.raises(UsageError) as caught:
        lumina_cli.load(**{"model": "nano"} | arguments)
    assert str(caught.value) == message


def test_none_is_the_default_of_load(tiny_folder, monkeypatch):
    monkeypatch.setattr("lumina_cli.core.models.locate._choose_automatically", lambda: ("nano", "of a test"))
    assert lumina_cli.load(None, lora=None, kernel=None).name == "nano"
    assert lumina_cli.load(tiny_folder, lora=[]).folder == tiny_folder


@pytest.mark.parametrize("seeds", [[7, 2], (7, 2, 7), np.array([7, 2]), torch.tensor([7, 2])])
def test_several_seeds_are_images_of_each(seeds):
    call = read_call(["a", "b"], seeds, 2)
    images = [("a", 7, 0), ("a", 7, 1), ("a", 2, 0), ("a", 2, 1)]
    assert [(job.prompt, job.seed, job.number) for job in call.jobs[:4]] == images
    assert len(call.jobs) == 8
    assert call.request.seed == (7, 2)
    assert read_call("a", range(3, 5)) == read_call("a", [3, 4])


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("guidance_scale", 4.0, "guidance"),
        ("num_inference_steps", 20, "steps"),
        ("negative_prompt", None, "negative"),
        ("height", 64, "size"),
    ],
)
def test_arguments_of_diffusers_are_named(name, value, ours):
    with pytest.raises(UsageError, match=f"^{name} is an argument of diffusers; use {ours} here$"):
        read_call("a cup", settings={name: value})
