"""Keys and passwords never appear in messages, tracebacks, logs or the files that lumina writes."""

import base64
import logging

import pytest

from lumina_cli.cli import app, output
from lumina_cli.core.errors import LuminaError
from lumina_cli.core.limits import MAX_MESSAGE
from lumina_cli.core.secrets import add_secret, add_url_secrets, mask_known, mask_secrets, mask_url

KEY = "sk-live-1234567890abcdef"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://me:hunter22@host:80/v1 failed", "http://me:***@host:80/v1 failed"),
        ("sftp://:pa@ss:w@host/x", "sftp://:***@host/x"),
        ("see s3://bucket/a@b:c and http://h:8000/x@y", "see s3://bucket/a@b:c and http://h:8000/x@y"),
        ("http:/me:hunter22@host/x.png: no such file", "http:/me:***@host/x.png: no such file"),
        ("https:/h/x?token=abc does not exist", "https:/h/x?token=*** does not exist"),
        ("https://h/x?api_key=abc&n=1", "https://h/x?api_key=***&n=1"),
        ("https://h/x?X-Amz-Signature=abc&sig=d", "https://h/x?X-Amz-Signature=***&sig=***"),
        ("Authorization: Bearer abcdefgh1", "Authorization: Bearer ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': 'Basic ***'}"),
        ("x-api-key=abc", "x-api-key=***"),
        ("token was Bearer abc123def", "token was Bearer ***"),
        ("Incorrect API key provided: sk-abcdefghijklmnop.", "Incorrect API key provided: sk-***."),
        ("hf_abcdefghijklmnop", "hf_***"),
        ("a bearer of bad news, Basic shapes, sk-learn", "a bearer of bad news, Basic shapes, sk-learn"),
    ],
)
def test_forms_of_secrets_are_masked_in_messages(text, masked):
    assert mask_secrets(text) == masked
    assert str(LuminaError(text)) == masked


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_values_of_the_environment_are_masked(name, monkeypatch):
    monkeypatch.setenv(name, "wJalrXUtn/FEMI+K7")
    assert mask_known("got wJalrXUtn/FEMI+K7, wJalrXUtn%2FFEMI%2BK7!") == "got ***, ***!"


@pytest.mark.parametrize("value", ["none", "EMPTY", "test", "ollama", "lm-studio", "abc", ""])
def test_placeholders_are_words_of_captions(value, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    text = f"a sign that reads {value}, tested"
    assert mask_secrets(text) == text


def test_a_short_secret_is_masked_as_a_whole_word_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "house1")
    assert mask_known("a greenhouse1, a house1") == "a greenhouse1, a ***"


def test_a_password_is_masked_also_alone(monkeypatch):
    monkeypatch.setattr("lumina_cli.core.secrets._added", set())
    add_url_secrets("--endpoint=http://someone:Swordf1sh@host")
    login = base64.b64encode(b"someone:Swordf1sh").decode()
    assert mask_secrets(f"401 for Swordf1sh ({login})") == "401 for *** (***)"
    add_secret("")
    add_secret(None)
    assert mask_secrets("plain") == "plain"


def test_urls_of_files_lose_their_password():
    assert mask_url("sftp://me:hunter22@host/data") == "sftp://me:***@host/data"
    assert mask_url("photos/a:b@c.jpg") == "photos/a:b@c.jpg"


def test_the_password_of_a_source_is_in_no_message_and_no_traceback(lumina, tmp_path):
    for command in (
        "caption {} --engine noop",
        "shard {} DEST",
        "shard cat {}",
        "train nano out=RUN data={}",
    ):
        url = "sftp://me:Tr0ub4dor@127.0.0.1:9/x.jsonl"
        line = command.format(url).replace("DEST", f"{tmp_path}/d").replace("RUN", f"{tmp_path}/r")
        code, out, err = lumina(f"{line} --debug")
        assert code != 0
        assert "Tr0ub4dor" not in f"{out} {err}"


def test_tracebacks_and_unexpected_errors_are_masked(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def fail(*_args, **_settings):
        raise RuntimeError(f"boom with {KEY}")

    monkeypatch.setattr(app, "get_command", fail)
    assert app.run(["doctor", "--debug"]) == 1
    err = capsys.readouterr().err
    assert KEY not in err
    assert "boom with ***" in err
    assert "Traceback" in err


def test_notes_are_masked_and_short(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    output.write_note(f"key {KEY} " + "x" * 1_000_000)
    err = capsys.readouterr().err
    assert (KEY in err, err.startswith("key *** ")) == (False, True)
    assert len(err) <= MAX_MESSAGE + 1


def test_what_libraries_log_is_masked(monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    before = logging.getLogRecordFactory()
    app._mask_logs()
    try:
        with caplog.at_level(logging.INFO):
            logging.getLogger("httpx").info("HTTP Request: %s %s", "POST", f"http://a:{KEY}@h/v1?key={KEY}")
    finally:
        logging.setLogRecordFactory(before)
    assert KEY not in caplog.text
    assert "HTTP Request: POST http://a:***@h/v1?key=***" in caplog.text


@pytest.mark.parametrize(
    "word", ["x" * 1_000_000, "nano:" + "9" * 1_000_000, "a/" * 200_000], ids=["x", "nano", "path"]
)
def test_an_error_line_of_a_megabyte_is_short(word, capsys):
    for words in (["shard", word, "d"], ["caption", word], ["train", word], ["sample", "a", "--model", word]):
        assert app.run(words) in (1, 2)
        err = capsys.readouterr().err
        assert len(err) <= MAX_MESSAGE + 40
        assert err.count("\n") == 1
    assert str(LuminaError("a" * 5000 + "; the remedy")).endswith("; the remedy")
