"""Settings of other programs are found in every place and form in which they store them."""

import json

import pytest
from PIL import Image, PngImagePlugin

from lumina_cli.core.images.io import read_metadata, save_image
from lumina_cli.core.images.metadata.reader import read_settings

IMAGE = Image.new("RGB", (8, 8))
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "lumina_2.safetensors"}},
    "2": {"class_type": "ModelSamplingAuraFlow", "inputs": {"shift": 6.0, "model": ["1", 0]}},
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["9", 0], "steps": 30, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple",
            "denoise": 1.0, "model": ["2", 0], "positive": ["8", 0], "negative": ["8", 1],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    "5": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
    "6": {
        "class_type": "CLIPTextEncodeLumina2",
        "inputs": {"system_prompt": "superior", "user_prompt": ["10", 0], "clip": ["1", 1]},
    },
    "7": {"class_type": "SaveImage", "inputs": {"images": ["11", 0], "filename_prefix": "ComfyUI"}},
    "8": {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {"strength": 1.0, "positive": ["6", 0], "negative": ["4", 0]},
    },
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 77}},
    "10": {"class_type": "PrimitiveString", "inputs": {"value": "a red car"}},
    "11": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
}  # fmt: skip
CUSTOM = {
    "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "lumina_2.safetensors"}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
    "3": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
    "4": {"class_type": "BasicScheduler", "inputs": {"steps": 30, "scheduler": "simple", "model": ["1", 0]}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red car"}},
    "7": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["6", 0]}},
    "8": {
        "class_type": "CFGGuider",
        "inputs": {"cfg": 4.0, "model": ["1", 0], "positive": ["6", 0], "negative": ["7", 0]},
    },
    "9": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["2", 0], "guider": ["8", 0], "sampler": ["3", 0], "sigmas": ["4", 0],
            "latent_image": ["5", 0],
        },
    },
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "a red car", "negativeprompt": "blurry", "model": "lumina_2", "seed": 77, "steps": 30,
        "cfgscale": 4.0, "aspectratio": "4:3", "width": 1024, "height": 768, "sigmashift": 6,
        "sampler": "euler", "scheduler": "normal", "swarm_version": "0.9.5.0",
    },
    "sui_extra_data": {"date": "2025-01-01"},
    "sui_models": [{"name": "lumina_2.safetensors", "param": "model", "hash": "0xab"}],
}  # fmt: skip
FOOOCUS = {
    "base_model": "lumina_2", "full_prompt": ["a red car", "cinematic"], "guidance_scale": 4.0, "loras": [],
    "metadata_scheme": "fooocus", "negative_prompt": "blurry", "performance": "Speed", "prompt": "a red car",
    "resolution": "(1024, 768)", "sampler": "euler", "scheduler": "karras", "seed": "77", "sharpness": 2.0,
    "steps": 30, "styles": "['Fooocus V2']", "version": "Fooocus v2.5.5",
}  # fmt: skip
FOOOCUS_LOG = {
    "Prompt": "a red car", "Negative Prompt": "blurry", "Performance": "Speed", "Resolution": "(1024, 768)",
    "Sharpness": 2.0, "Guidance Scale": 4.0, "Base Model": "lumina_2", "Sampler": "euler", "Seed": 77,
    "Steps": 30,
}  # fmt: skip
INVOKE = {
    "app_version": "5.4.0", "generation_mode": "txt2img", "positive_prompt": "a red car", "steps": 30,
    "negative_prompt": "blurry", "width": 1024, "height": 768, "seed": 77, "cfg_scale": 4.0,
    "scheduler": "euler", "model": {"key": "ab-12", "name": "lumina_2", "base": "sd-1"},
}  # fmt: skip
INVOKE_OLD = {
    "model": "stable diffusion", "model_weights": "lumina_2",
    "image": {
        "prompt": [{"prompt": "a red car", "weight": 1.0}], "steps": 30, "cfg_scale": 4.0, "seed": 77,
        "sampler": "k_euler", "width": 1024, "height": 768,
    },
}  # fmt: skip
NOVELAI = {"prompt": "a red car", "uc": "blurry", "steps": 30, "scale": 4.0, "seed": 77, "sampler": "k_euler",
           "width": 1024, "height": 768}  # fmt: skip
SD_NEXT = (
    "a red car\nNegative prompt: blurry\nSteps: 30, Size: 1024x768, Seed: 77, Sampler: Euler, CFG scale: 4, "
    'App: SD.Next, Version: ab12, Model: lumina_2, Extra: {"x": [1, 2]}'
)


@pytest.mark.parametrize(
    ("text", "program", "negative"),
    [
        (json.dumps(GRAPH), "ComfyUI", "blurry"),
        ("prompt:" + json.dumps(GRAPH), "ComfyUI", "blurry"),
        (json.dumps(CUSTOM), "ComfyUI", None),
        (json.dumps(SWARM), "SwarmUI", "blurry"),
        (json.dumps(FOOOCUS), "Fooocus", "blurry"),
        (json.dumps(FOOOCUS_LOG), "Fooocus", "blurry"),
        (json.dumps(INVOKE), "InvokeAI", "blurry"),
        (json.dumps(INVOKE_OLD), "InvokeAI", None),
        (json.dumps(NOVELAI), "NovelAI", "blurry"),
        (SD_NEXT, None, "blurry"),
    ],
)
def test_records_of_programs(text, program, negative):
    found = read_settings(["no settings", "{}", text])
    assert (found["prompt"], found.get("negative"), found["seed"]) == ("a red car", negative, 77)
    assert (found["size"], found.get("program")) == ([1024, 768], program)
    plan = {name: value for name, value in found["plan"].items() if name != "shift"}
    assert plan == {"steps": 30, "solver": "dpm" if text == json.dumps(CUSTOM) else "euler", "guidance": 4.0}
    assert found["plan"].get("shift", 6.0) == 6.0
    assert "unused" not in found
    if text != json.dumps(NOVELAI):
        assert found["model"].startswith("lumina_2")


@pytest.mark.parametrize(
    "text",
    [
        "{}", "[1]", '{"prompt": "a red car"}', '{"a": {"class_type": "SaveImage"}}', "{" * 5000, "{" + '"a":' * 9,
        json.dumps({"3": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "seed": 1}}}),
        '{"prompt": 3, "steps": 4}', '{"seed": ' + "9" * 5000 + ', "prompt": "a", "steps": 2}',
    ],
)  # fmt: skip
def test_other_json_has_no_settings(text):
    assert read_settings([text]) == {}


def test_one_unusable_setting_costs_only_itself():
    found = read_settings([json.dumps(FOOOCUS | {"seed": [1], "steps": True, "sampler": "dpmpp_2m_sde_gpu"})])
    assert (found["prompt"], found["plan"], found["size"]) == ("a red car", {"guidance": 4.0}, [1024, 768])
    assert sorted(found["unused"]) == ["seed", "solver", "steps"]


@pytest.mark.parametrize("name", ["parameters", "Parameters", "prompt", "invokeai_metadata", "Comment"])
@pytest.mark.parametrize("text", [json.dumps(SWARM), SD_NEXT, json.dumps(GRAPH)])
def test_text_chunks_of_a_png(name, text, tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "some program")
    info.add_text(name, text)
    info.add_text("workflow", "{}")
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    assert read_metadata(tmp_path / "x.png")["prompt"] == "a red car"


@pytest.mark.parametrize("format", ["jpg", "webp", "png"])
@pytest.mark.parametrize(
    ("field", "text"),
    [
        (0x010E, json.dumps(INVOKE)),
        (0x0110, "prompt:" + json.dumps(GRAPH)),
        (0x010F, "Prompt:" + json.dumps(GRAPH)),
    ],
)
def test_fields_of_exif(format, field, text, tmp_path):
    exif = Image.Exif()
    exif[field] = text
    IMAGE.save(tmp_path / f"x.{format}", exif=exif)
    assert read_metadata(tmp_path / f"x.{format}")["seed"] == 77


def test_utf_8_in_a_latin_1_chunk_is_repaired(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"parameters\0" + "ein grüner Würfel\nSteps: 4, Seed: 7".encode())
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    assert read_metadata(tmp_path / "x.png")["prompt"] == "ein grüner Würfel"


def test_own_metadata_has_priority(tmp_path):
    own = {"prompt": "a cup", "plan": {"steps": 3}, "seed": 1}
    assert read_metadata(save_image(IMAGE, tmp_path / "x.png", own)) == own
    assert read_metadata(save_image(IMAGE, tmp_path / "x.jpg", own)) == own
    assert read_metadata(save_image(IMAGE, tmp_path / "y.webp", {"other": 1})) == {"other": 1}
