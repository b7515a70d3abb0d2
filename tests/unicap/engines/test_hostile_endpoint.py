"""Endpoints that echo secrets, send absurd answers, or have impossible addresses."""

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
import zlib

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


def deep(levels):
    return b"[" * levels + b"]" * levels


def within(value):
    """Return a completion with these bytes as another field."""
    return json.dumps(said("a red wall", extra="@")).encode().replace(b'"@"', value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (said("x" * 200_000), "unreadable answer: more than 100,000 characters"),
        (said("half \ud83d of a pair"), "unreadable answer: not valid UTF-8 text"),
        ({"choices": {"a": 1}}, "no text in the endpoint's answer: a JSON object without choices[0].message"),
        ({"choices": 7}, "no text in the endpoint's answer: a JSON object without choices[0].message"),
        ({"choices": [7]}, "no text in the endpoint's answer: a JSON object without choices[0].message"),
        ({"choices": [{"message": 7}]}, "no text in the endpoint's answer: a JSON object without choices"),
        (said(None), "no text in the endpoint's answer: its message is without content"),
        (said(float("nan")), "no text in the endpoint's answer: its message is without content"),
        ({"error": {"message": "model overloaded"}}, "error in the endpoint's answer: model overloaded"),
        ({"error": [1]}, "error in the endpoint's answer: [1]"),
        (deep(100_000), "unreadable answer: nested too deeply (more than 256 levels)"),
        (within(deep(100_000)), "unreadable answer: nested too deeply (more than 256 levels)"),
        (within(deep(900)), "unreadable answer: nested too deeply (more than 256 levels)"),
        (b"9" * 5000, "unreadable answer: an integer has more than 300 digits"),
        (within(b"9" * 5000), "unreadable answer: an integer has more than 300 digits"),
        (within(b"9" * 301), "unreadable answer: an integer has more than 300 digits"),
        (b"7", "unreadable answer: a JSON number, not a JSON object"),
        (b'"a red wall"', "unreadable answer: a JSON text, not a JSON object"),
        (b"null", "unreadable answer: null, not a JSON object"),
        (b"[]", "unreadable answer: a JSON array, not a JSON object"),
        (b"", "unreadable answer: an empty body"),
        (b"\xff\xfe{", "unreadable answer: not JSON, and not UTF-8 text"),
        (b"\n<!doctype html><p>Welcome", "unreadable answer: HTML or XML, not JSON"),
        (b'data: {"choices": []}\n\ndata: [DONE]', "unreadable answer: a stream of events, which was not"),
        (b'{"choices": [', "unreadable answer: not JSON (Expecting value at character 13)"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_absurd_bodies_reject_one_answer(serve, body, reason):
    endpoint = serve(lambda *_: (200, body))
    answer = answer_to(endpoint.url)
    assert answer.error.startswith(reason)
    assert (answer.text, answer.tokens, len(answer.error) < 300) == ("", 0, True)


@pytest.mark.parametrize("body", [b"7", deep(100_000), b"<html>", b'{"error": "busy"}'])
def test_one_unreadable_answer_rejects_one_image_and_the_others_get_captions(serve, command, tmp_path, body):
    from PIL import Image

    for name in ("a", "b", "c"):
        Image.new("RGB", (32, 32), "red" if name == "b" else "blue").save(tmp_path / f"{name}.png")
    red = base64.b64encode((tmp_path / "b.png").read_bytes()).decode()[60:]
    endpoint = serve(lambda _, request: (200, body if red in str(request) else said("A blue wall.")))
    code, _, err = command(
        f"caption {tmp_path} --engine openai --endpoint {endpoint.url} --model only --levels short "
        f"--out {tmp_path}/out.jsonl --max-bad-rate 0.5"
    )
    rows = {row["key"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())}
    assert (code, len(rows)) == (0, 3), err
    assert [rows[key]["captions"] for key in "ac"] == [{"en": {"short": "A blue wall."}}] * 2
    assert [each["code"] for each in rows["b"]["rejected_captions"]] == ["endpoint"]


def test_the_reason_is_reported_when_all_answers_are_unreadable(serve, command, photos, tmp_path):
    endpoint = serve(lambda *_: (200, b"<html>Welcome"))
    code, _, err = command(
        f"caption {photos} --engine openai --endpoint {endpoint.url} --model only --levels short "
        f"--out {tmp_path}/out.jsonl"
    )
    assert code == 3
    assert err.splitlines()[-1].endswith("; the first reason: unreadable answer: HTML or XML, not JSON")


def test_an_endpoint_that_never_sends_a_caption_ends_the_run(serve):
    endpoint = serve(lambda *_: (200, b"7"))
    engine = Captioner("only", None, endpoint.url, retries=0)
    try:
        with pytest.raises(LuminaError, match="sent 24 answers without a caption and no other: unreadable"):
            engine.answer([question()] * 30)
    finally:
        engine.close()
    assert 24 <= len(endpoint.seen) <= 30


def raw_server(head, pieces):
    """Start a server that sends a head and then pieces of a body; return its socket and its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(1 << 20)
                    connection.sendall(f"HTTP/1.1 200 X\r\nConnection: close\r\n{head}\r\n\r\n".encode())
                    for piece in pieces():
                        connection.sendall(piece)

    threading.Thread(target=serve_one, daemon=True).start()
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def chunks(piece, pause):
    while True:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
        time.sleep(pause)


def zeros(megabytes):
    """Yield the gzip form of so many MB of spaces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    for _ in range(megabytes):
        yield packer.compress(b" " * 1_000_000)
    yield packer.flush()


@pytest.mark.parametrize(
    ("head", "pieces", "reason"),
    [
        ("Transfer-Encoding: chunked", lambda: chunks(b" " * 65536, 0), "larger than 8 MiB"),
        ("Transfer-Encoding: chunked", lambda: chunks(b" ", 0.02), "not complete after 1 s"),
        ("Content-Encoding: gzip", lambda: zeros(50), "larger than 8 MiB"),
        ("Content-Encoding: gzip", lambda: [b"no gzip"], "damaged compressed data"),
        ("Content-Encoding: br", lambda: [b"anything"], "compressed with 'br', which was not requested"),
    ],
)
def test_endless_and_compressed_bodies_are_cut_off(head, pieces, reason):
    listener, url = raw_server(head, pieces)
    try:
        assert answer_to(url, timeout=1.0).error == f"unreadable answer: {reason}"
    finally:
        listener.close()


def test_a_compressed_completion_is_read():
    body = gzip.compress(json.dumps(said("a red wall")).encode())
    listener, url = raw_server("Content-Encoding: gzip", lambda: [body[:20], body[20:]])
    try:
        assert answer_to(url).text == "a red wall"
    finally:
        listener.close()


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
