"""Endpoints that echo secrets, send absurd answers, or have impossible addresses."""

import base64
import contextlib
import json
import socket
import threading
import time

import pytest
from local_endpoint import question

from lumina_cli.cli.app import run
from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.unicap.engines.openai import Captioner

KEY = "sk-live-1234567890abcdef"


def said(content, **others):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "only",
        "choices": [choice],
    } | others


@pytest.fixture
def command(capsys):
    """Return a function that runs a command line: (exit code, stdout, stderr)."""

    def run_command(line):
        code = run(line.split())
        return code, *capsys.readouterr()

    return run_command


@pytest.fixture
def photos(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def answer_to(url, **settings):
    engine = Captioner("only", None, url, retries=0, **settings)
    engine.answered = True
    try:
        return engine.answer([question()])[0]
    finally:
        engine.close()


def echo(endpoint):
    """Return the Authorization header of the last request."""
    head = endpoint.seen[-1][1]
    return next(line for line in head.splitlines() if line.lower().startswith("authorization"))


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 500])
def test_an_endpoint_that_echoes_the_key_does_not_publish_it(
    serve, command, photos, tmp_path, monkeypatch, status
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = serve(
        lambda *_: (
            status,
            said(f"a red wall with {echo(endpoint)}")
            if status == 200
            else {"error": {"message": f"bad request: {echo(endpoint)} and {KEY[::1]!r}"}},
        )
    )
    monkeypatch.setattr("lumina_cli.core.unicap.engines.openai.RETRIES", 0)
    _, out, err = command(
        f"caption {photos} --engine openai --endpoint {endpoint.url} --model only --levels short "
        f"--retries 0 --out {tmp_path}/out.jsonl --debug"
    )
    written = "".join(path.read_text() for path in tmp_path.glob("out.jsonl*"))
    assert KEY not in out + err + written
    assert endpoint.seen


def test_the_password_of_an_endpoint_is_masked(serve, command, photos, monkeypatch):
    endpoint = serve(lambda *_: (500, {"error": f"{echo(endpoint)} hunter2hunter2"}))
    url = endpoint.url.replace("http://", "http://someone:hunter2hunter2@")
    monkeypatch.setattr("lumina_cli.core.unicap.engines.openai.RETRIES", 0)
    code, _, err = command(f"caption {photos} --engine openai --endpoint {url} --model only --debug")
    login = base64.b64encode(b"someone:hunter2hunter2").decode()
    assert (code, "hunter2" in err, login in err) == (1, False, False)
    assert "someone:***@" in err


@pytest.mark.parametrize(
    "url", ["http://someone:hunter2@127.0.0.1:9/v1", "someone:hunter2@host", "ftp://a:hunter2@h"]
)
def test_messages_about_a_bad_endpoint_do_not_contain_its_password(url, command, photos, monkeypatch):
    monkeypatch.setattr("lumina_cli.core.unicap.engines.openai.RETRIES", 0)
    code, _, err = command(f"caption {photos} --engine openai --endpoint {url} --model only --debug")
    assert code in (1, 2)
    assert "://" not in url or "hunter2" not in err


@pytest.mark.parametrize(
    "url",
    [
        "http://h:99999", "http://h:-1", "http://h:port/v1", "http://", "http:///v1", "http://[::1/v1",
        "http://h h/v1", "http://h\n/v1", "http://h:0/v1", "https://:8000/v1",
    ],
)  # fmt: skip
def test_impossible_addresses_are_named(url):
    with pytest.raises(
        UsageError, match="has an invalid host or port; give a URL such as http://localhost:8000/v1"
    ):
        Captioner("only", None, url)


@pytest.mark.parametrize("key", ["a\nb-secret", "schlüssel", "x\0y"])
def test_a_key_that_no_header_can_contain_is_refused_without_being_printed(key, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-" + key) if "\0" not in key else monkeypatch.setattr(
        "lumina_cli.core.unicap.engines.openai.os.environ", {"OPENAI_API_KEY": key}
    )
    with pytest.raises(UsageError, match="OPENAI_API_KEY has characters") as caught:
        Captioner("only", None, "http://127.0.0.1:9/v1")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"completion_tokens": "many"}, 0), ({"completion_tokens": [1]}, 0), ({"completion_tokens": 10**30}, 0),
        ({"completion_tokens": -5}, 0), ({"completion_tokens": None}, 0), ("free", 0), ([], 0), (None, 0),
        ({"completion_tokens": 7}, 7),
    ],
)  # fmt: skip
def test_usage_of_any_type_is_read(serve, usage, tokens):
    endpoint = serve(lambda *_: (200, said("a red wall", usage=usage)))
    answer = answer_to(endpoint.url)
    assert (answer.text, answer.tokens, answer.error) == ("a red wall", tokens, None)


@pytest.mark.parametrize(
    "body",
    [
        said("x" * 200_000),
        said("half \ud83d of a pair"),
        {"choices": {"a": 1}},
        {"choices": 7},
        {"choices": [7]},
        {"choices": [{"message": 7}]},
        ("[" * 5000 + "]" * 5000).encode(),
        ('{"choices": ' + "[" * 5000 + "]" * 5000 + "}").encode(),
        ('{"choices": [{"message": {"content": ' + "[" * 900 + "]" * 900 + "}}]}").encode(),
        b"7",
        b"null",
        b"",
        b"\xff\xfe{",
    ],
)
def test_absurd_bodies_reject_one_answer(serve, body):
    endpoint = serve(lambda *_: (200, body))
    answer = answer_to(endpoint.url)
    assert answer.error.startswith(("unreadable answer", "no text in the endpoint's answer"))
    assert len(answer.error) < 300


def test_an_answer_of_a_hundred_megabytes_is_cut_off(serve):
    large = json.dumps(said("a" * 100_000_000)).encode()
    endpoint = serve(lambda *_: (200, large))
    start = time.perf_counter()
    answer = answer_to(endpoint.url)
    assert answer.error == "unreadable answer: larger than 8 MiB"
    assert time.perf_counter() - start < 20


def test_an_error_of_a_megabyte_is_one_short_line(serve):
    endpoint = serve(lambda *_: (500, {"error": {"message": "x" * 1_000_000}}))
    with pytest.raises(LuminaError) as caught:
        answer_to(endpoint.url)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            "HTTP/1.1 307 X\r\nLocation: http://127.0.0.2:9/v1\r\nContent-Length: 0\r\n\r\n",
            "redirects to another host",
        ),
        (
            "HTTP/1.1 308 X\r\nLocation: //example.invalid/v1\r\nContent-Length: 0\r\n\r\n",
            "redirects to another host",
        ),
        ("garbage\r\n\r\n", "sent an invalid HTTP answer"),
        ("HTTP/1.1 200 X\r\nContent-Length: many\r\n\r\n{}", "sent an invalid HTTP answer"),
    ],
)
def test_redirects_to_other_hosts_and_invalid_http_are_named(answer, message):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 20)
                    connection.sendall(answer.encode())

    threading.Thread(target=serve_one, daemon=True).start()
    try:
        with pytest.raises(LuminaError, match=message) as caught:
            answer_to(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    finally:
        listener.close()
    assert "is the server running" not in str(caught.value)
