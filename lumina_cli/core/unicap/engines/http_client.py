"""The HTTP client of an endpoint: checks of its URL and key, and a limit on the size of its answers."""

import time
import zlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from lumina_cli.core.errors import LuminaError, UsageError
from lumina_cli.core.secrets import add_secret, add_url_secrets

MAX_ANSWER = 8 << 20  # bytes of a response; the rest is not received
EXAMPLE = "such as http://localhost:8000/v1"

# what a request learns about its response; set by `watch_response` in the task of the request
_watched: ContextVar[dict[str, str] | None] = ContextVar("watched", default=None)


def check_url(url: str | None) -> str:
    """Return the URL of an endpoint.

    Raises:
        UsageError: if it is missing or invalid.
    """
    if not url:
        raise UsageError(f"--engine openai needs --endpoint URL, {EXAMPLE}")
    add_url_secrets(url)
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--endpoint {url!r} is not a URL {EXAMPLE}")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # a port above 65535, brackets that do not match
        valid = False
    if not valid:
        raise UsageError(f"--endpoint {url!r} has an invalid host or port; give a URL {EXAMPLE}")
    return url


def check_key(key: str | None) -> str:
    """Return the key for an endpoint, "none" without one.

    Raises:
        UsageError: if an HTTP header cannot contain it.
    """
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError("OPENAI_API_KEY has characters that a key cannot contain, such as a line break")
    add_secret(key)
    return key or "none"


class _CutOff(Exception):
    """The reason why the rest of a response is not read."""


class _Decoder:
    """Decompresses a body piece by piece, so that a small one cannot fill the memory."""

    def __init__(self, encoding: str):
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise _CutOff(f"compressed with {encoding[:20]!r}, which was not requested")
        self.gzip = zlib.decompressobj(zlib.MAX_WBITS | 32) if encoding not in ("", "identity") else None

    def decode(self, data: bytes, most: int) -> bytes:
        """Return the next bytes of the body, at most `most` bytes.

        Raises:
            _CutOff: if there are more, or the data is damaged.
        """
        try:
            data = data if self.gzip is None else self.gzip.decompress(data, most + 1)
        except zlib.error:
            raise _CutOff("damaged compressed data") from None
        if len(data) > most:
            raise _CutOff(f"larger than {MAX_ANSWER >> 20} MiB")
        return data


def open_client(openai: Any, url: str, key: str, retries: int, timeout: float) -> Any:
    """Return the asynchronous client of an endpoint.

    Its responses are cut off after MAX_ANSWER bytes, after decompression, or after `timeout` seconds.
    """
    base = openai.DefaultAsyncHttpxClient.__mro__[1]
    http = import_module(base.__module__.partition(".")[0])  # httpx, or its successor in newer versions

    class BoundedStream(http.AsyncByteStream):  # type: ignore[name-defined]
        """The body of a response within the limits; `watch_response` reports why it was cut off."""

        def __init__(self, stream: Any, encoding: str):
            self.stream, self.encoding, self.start = stream, encoding, time.monotonic()

        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            try:
                decoder = _Decoder(self.encoding)
                async for chunk in self.stream:
                    yield (data := decoder.decode(chunk, MAX_ANSWER - size))
                    size += len(data)
                    if time.monotonic() - self.start > timeout:
                        raise _CutOff(f"not complete after {timeout:g} s")
            except _CutOff as error:
                if (watched := _watched.get()) is not None:
                    watched["reason"] = str(error)

        async def aclose(self) -> None:
            await self.stream.aclose()

    async def bound(response: Any) -> None:
        if response.has_redirect_location:
            target = response.url.join(response.headers["location"])
            if (target.scheme, target.netloc) != (response.url.scheme, response.url.netloc):
                raise LuminaError(
                    f"{url} redirects to another host, {target.scheme}://{target.host}, which must not "
                    "receive the key or the images; give its URL with --endpoint if you trust it"
                )
        encoding = response.headers.pop("content-encoding", "").strip().lower()
        response.stream = BoundedStream(response.stream, encoding)
        if (watched := _watched.get()) is not None:  # an earlier response may have been retried
            watched.clear()

    client = openai.DefaultAsyncHttpxClient(event_hooks={"response": [bound]})
    try:
        return openai.AsyncOpenAI(
            base_url=url,
            api_key=key,
            max_retries=retries,
            timeout=timeout,
            http_client=client,
            default_headers={"Accept-Encoding": "identity"},
        )
    except http.InvalidURL as error:
        raise UsageError(f"--endpoint {url!r} is not a valid URL ({error}); give a URL {EXAMPLE}") from error


def describe_connection_error(cause: BaseException, reason: str) -> str:
    """Return what is wrong with a connection, to follow the URL; `reason` is the text of `cause`."""
    # a closed connection is not an invalid answer
    if type(cause).__name__ == "RemoteProtocolError" and "disconnected" not in str(cause):
        return f"sent an invalid HTTP answer ({reason})"
    return f"cannot be reached ({reason}); is the server running?"


def watch_response() -> dict[str, str]:
    """Return a dict that gets a "reason" if the response to a request of this task is not read completely."""
    watched: dict[str, str] = {}
    _watched.set(watched)
    return watched
