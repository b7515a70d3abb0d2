"""A damaged tokenizer: the message names its file."""

import shutil

import pytest

from lumina_cli.core.encoders.tokenizer import PromptTokenizer
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.registry import ASSETS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "[" * 50_000 + "]" * 50_000, "nested too deeply (more than 256 levels)"),
        ("tokenizer.json", '{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deeply (more than 256 levels)"),
        ("tokenizer.json", '{"version": "1.0" "model": {}}', "Expecting ',' delimiter"),
        ("tokenizer.json", "", "is empty"),
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer_config.json", "[" * 50_000 + "]" * 50_000, "nested too deeply (more than 256 levels)"),
        ("tokenizer_config.json", "{", "not readable JSON"),
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_named(name, text, message, tmp_path, lumina):
    folder = shutil.copytree(ASSETS / "nano", tmp_path / "model")
    (folder / "tokenizer" / name).write_text(text)
    with pytest.raises(LuminaError) as caught:
        PromptTokenizer(folder)
    assert str(caught.value).startswith(f"{folder / 'tokenizer' / name} ")
    assert message in str(caught.value)
    code, _, err = lumina(f"sample red --model {folder} --steps 1 --out {tmp_path / 'images'}")
    assert (code, err.count("\n"), f": {folder / 'tokenizer' / name} " in err) == (1, 1, True)
    assert "text_encoder:" not in err
