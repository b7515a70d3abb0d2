"""Model settings under "captioning" in config.json, and the error messages of endpoints."""

import json

import pytest
from local_endpoint import asked, question

from lumina_cli.core.errors import LuminaError
from lumina_cli.core.nano.captioner import CAPTIONING
from lumina_cli.core.registry import ASSETS
from lumina_cli.core.unicap.engines import open_engine
from lumina_cli.core.unicap.protocol import Engine

CAPTIONER = ASSETS / "nano" / "captioner"


def words_of(rows, *levels):
    return [
        {lang: {level: row["captions"][lang][level] for level in levels} for lang in row["captions"]}
        for row in rows
    ]


def test_the_embedded_captioner_contains_its_instructions():
    assert json.loads((CAPTIONER / "config.json").read_text())["captioning"] == CAPTIONING
    engine = open_engine("transformers", str(CAPTIONER), "cpu")
    found = (engine.domain, engine.languages, engine.heeds_hints, engine.structured)
    assert found == ("synthetic", ("en", "zh", "ja", "ru", "de"), False, None)


def test_a_trained_captioner_contains_its_instructions(tmp_path):
    from safetensors import safe_open
    from transformers import AutoTokenizer

    from lumina_cli.core.nano.captioner import build_captioner
    from lumina_cli.core.training.nano.captioner import _save

    tokenizer = AutoTokenizer.from_pretrained(CAPTIONER)
    _save(build_captioner(tokenizer, 1, 1), tokenizer, tmp_path)
    config = json.loads((tmp_path / "captioner" / "config.json").read_text())
    assert (config["captioning"], config["dtype"]) == (CAPTIONING, "float32")
    assert config.keys() == json.loads((CAPTIONER / "config.json").read_text()).keys()
    with safe_open(tmp_path / "captioner" / "model.safetensors", "pt") as file:
        assert "F32" not in {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("text", ["{", "[]", '{"captioning": 3}', '{"captioning": {"domain": 1}}', "{}"])
def test_a_folder_without_instructions_uses_the_defaults(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    engine = Engine()
    engine.apply_model_settings(str(tmp_path))
    engine.apply_model_settings("owner/name")
    assert (engine.domain, engine.languages, engine.heeds_hints) == (None, None, True)


@pytest.mark.slow
def test_the_transformers_engine_matches_the_nano_engine(lumina):
    words = ("nano:8?seed=800001", "--levels", "short,tags,medium", "--langs", "en,de,zh", "--device", "cpu")
    code, own, _ = lumina(*words, "--engine", "nano")
    assert code == 0
    code, other, _ = lumina(*words, "--engine", "transformers", "--model", CAPTIONER)
    assert code == 0
    assert words_of(other, "short", "tags", "medium") == words_of(own, "short", "tags", "medium")


@pytest.mark.slow
def test_a_served_folder_matches_the_nano_engine(server, lumina):
    words = ("nano:4?seed=800001", "--levels", "short", "--langs", "en,de")
    _, own, _ = lumina(*words, "--engine", "nano", "--device", "cpu")
    code, other, _ = lumina(*words, "--engine", "openai", "--endpoint", server, "--model", CAPTIONER)
    assert (code, [row for row in other if "rejected_captions" in row]) == (0, [])
    assert words_of(other, "short") == words_of(own, "short")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, {"error": {"message": "no such model: only"}}, "Error code: 400, no such model: only"),
        (500, {"detail": "model 'only' cannot be loaded"}, "Error code: 500, model 'only' cannot be loaded"),
        (500, b"Internal Server Error", "Error code: 500, Internal Server Error"),
        (422, {"detail": [{"loc": ["model"]}]}, "Error code: 422, [{'loc': ['model']}]"),
    ],
)
def test_server_errors_are_reported_with_the_automatic_model(serve, status, body, told):
    endpoint = serve(lambda *_: (status, body))
    hint = "; without --model, the requested one was 'only'"
    with pytest.raises(LuminaError) as caught:
        asked(endpoint, [question()], retries=0)
    assert str(caught.value) == f"{endpoint.url} failed: {told}{hint}"
