"""Captions by any endpoint that speaks OpenAI's chat API, a fixed number of requests in flight."""

import asyncio
import base64
import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.unicap.protocol import Answer, Engine, Question

TEMPERATURE, TOP_P, BOLDER = 0.2, 0.8, 0.3  # as in engines/transformers.py
RETRIES = 5  # of one request, by the client: 0.5 s after the first failure, then twice as long, up to 8 s
TIMEOUT = 300.0  # seconds for one answer
MAX_PIXELS = 4_000_000  # larger images are sent reduced; models reduce them anyway
LOSSLESS = 512 * 512  # pixels up to which a image is sent as PNG, above as JPEG of quality 95


class Captioner(Engine):
    """A model behind a URL such as http://localhost:8000/v1, asked `batch` questions at a time.

    Without `model` the only one that the endpoint offers; without `endpoint` OPENAI_BASE_URL of the
    environment. The key is OPENAI_API_KEY of the environment; a local server needs none. Busy servers (429),
    their faults (5xx) and lost connections are tried again; LuminaError where that does not help. A question
    that the endpoint refuses (400, 413, 422) has an error in its answer, unless it has refused all so far.
    """

    structured = "guided"
    lanes = 2  # while the last answers of one batch are awaited, the next one has begun

    def __init__(
        self,
        model: str | None = None,
        device: str | None = None,
        endpoint: str | None = None,
        batch: int = 8,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
    ):
        self.openai = _library()
        self.url = endpoint or os.environ.get("OPENAI_BASE_URL")
        if not self.url:
            raise UsageError("--engine openai needs --endpoint URL, such as http://localhost:8000/v1")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"--endpoint {self.url!r} is no URL, such as http://localhost:8000/v1")
        self.answered = False
        self.unknown: set[str] = set()  # settings that this endpoint does not take
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.client, self.room = self._run(self._connect(batch, retries, timeout))
        self.chosen, self.name = model is not None, model
        self.name = self._run(self._find_model(model))
        self.apply_model_settings(self.name)  # a server of this machine may serve a folder by its path

    async def _connect(self, batch: int, retries: int, timeout: float) -> tuple[Any, asyncio.Semaphore]:
        key = os.environ.get("OPENAI_API_KEY") or "none"
        client = self.openai.AsyncOpenAI(base_url=self.url, api_key=key, max_retries=retries, timeout=timeout)
        return client, asyncio.Semaphore(batch)

    def _run(self, work: Any) -> Any:
        """Wait for a coroutine on the loop's thread; what interrupts the waiting ends it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except CancelledError:
            raise LuminaError("interrupted while waiting for answers") from None
        except BaseException:
            future.cancel()
            raise

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Return an Answer to each question; the pictures travel inside the requests."""
        return self._run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        shown: dict[int, str] = {}
        tasks = []
        try:
            for question in questions:
                place = id(question.image)
                if question.image is not None and place not in shown:
                    shown[place] = await asyncio.to_thread(data_url, question.image)
                tasks.append(asyncio.create_task(self._ask(question, shown.get(place))))
            return await asyncio.gather(*tasks)
        finally:  # the first error ends the others, too
            for task in tasks:
                task.cancel()

    async def _ask(self, question: Question, url: str | None) -> Answer:
        async with self.room:
            try:
                while True:
                    try:
                        found = await self.client.chat.completions.create(**self._request(question, url))
                        break
                    except self.openai.BadRequestError as error:
                        if not self._does_without(error):
                            raise
            except self.openai.APIStatusError as error:
                if error.status_code not in (400, 413, 422) or not self.answered:
                    raise LuminaError(self._fault(error)) from error
                return Answer("", True, error=f"refused by the endpoint: {_short(_error_message(error))}")
            except self.openai.OpenAIError as error:
                raise LuminaError(self._fault(error)) from error
            except ValueError as error:  # a body that is no JSON
                return Answer("", True, error=f"no answer that can be read: {_short(error)}")
        return self._read(found)

    def _request(self, question: Question, url: str | None) -> dict[str, Any]:
        content: list[dict] = [{"type": "text", "text": question.text}]
        if url:
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        wanted = {
            "max_tokens": question.max_tokens,
            "temperature": min(TEMPERATURE + BOLDER * question.attempt, 1.0),
            "top_p": TOP_P,
            "seed": question.seed % 2**31,
        }
        if question.form:
            named = {"name": "captions", "strict": True, "schema": question.form}
            wanted["response_format"] = {"type": "json_schema", "json_schema": named}
        if "max_tokens" in self.unknown:
            wanted["max_completion_tokens"] = question.max_tokens
        wanted = {name: value for name, value in wanted.items() if name not in self.unknown}
        return {"model": self.name, "messages": [{"role": "user", "content": content}]} | wanted

    def _does_without(self, error: Any) -> bool:
        """Whether the endpoint complains of a setting that it can do without; then it is not sent again."""
        name = getattr(error, "param", None)
        if (
            name not in ("max_tokens", "temperature", "top_p", "seed", "response_format")
            or name in self.unknown
        ):
            return False
        self.unknown.add(name)
        return True

    def _read(self, found: Any) -> Answer:
        """Return what a completion says; endpoints leave out almost any part of it."""
        choices = getattr(found, "choices", None)
        message = getattr(choices[0], "message", None) if choices else None
        text, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
        if refusal:
            return Answer("", True, error=f"refused by the model: {_short(refusal)}")
        if not isinstance(text, str):
            return Answer("", True, error="no text in the endpoint's answer")
        self.answered = True
        ended = choices[0].finish_reason
        if ended == "content_filter":
            return Answer(text, True, error="refused by the endpoint: content filter")
        tokens = getattr(getattr(found, "usage", None), "completion_tokens", 0) or 0
        return Answer(text.strip(), ended != "length", tokens)

    async def _find_model(self, model: str | None) -> str:
        """Return the model to ask, after a look whether the endpoint is there at all."""
        names = []
        try:
            async for one in self.client.with_options(max_retries=1).models.list():
                names.append(one.id)
        except self.openai.APIStatusError as error:
            if model is None or error.status_code in (401, 403):
                raise LuminaError(self._fault(error)) from error
        except self.openai.OpenAIError as error:
            raise LuminaError(self._fault(error)) from error
        except (ValueError, AttributeError, TypeError):  # not every endpoint lists its models
            names = []
        if model or len(names) == 1:
            return model or names[0]
        offered = f"it offers {', '.join(names[:8])}" if names else "it names none"
        raise UsageError(f"--model says which model of {self.url} to ask; {offered}")

    def _fault(self, error: Any) -> str:
        """Return one line about an error that ends the run."""
        if isinstance(error, self.openai.APITimeoutError):
            return f"{self.url} did not answer in time"
        if isinstance(error, self.openai.APIConnectionError):
            return (
                f"{self.url} cannot be reached ({_short(error.__cause__ or error)}); is the server running?"
            )
        if isinstance(error, self.openai.AuthenticationError | self.openai.PermissionDeniedError):
            return f"{self.url} refuses the key in OPENAI_API_KEY ({_short(_error_message(error))})"
        hint = "" if self.chosen else f"; no --model was given, so it was asked for {self.name!r}"
        hint = "; --model NAME says which model to ask" if self.name is None else hint
        reason = _short(_error_message(error))
        if isinstance(error, self.openai.NotFoundError):
            return f"{self.url} has no model {self.name!r}, or lacks its /v1 ({reason}){hint}"
        return f"{self.url} failed: {reason}{hint}"

    def close(self) -> None:
        """End the requests that are under way; their waiting threads get an error."""
        if self.loop.is_running():
            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(5)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(5)
            self.loop.close()

    async def _end(self) -> None:
        mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in mine:
            task.cancel()
        await asyncio.gather(*mine, return_exceptions=True)
        await self.client.close()


def data_url(image: Image.Image) -> str:
    """Return a picture as a data URL: PNG where it is small, else JPEG, reduced to MAX_PIXELS."""
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        scale = (MAX_PIXELS / pixels) ** 0.5
        image = image.resize(
            (max(1, int(image.width * scale)), max(1, int(image.height * scale))),
            Image.Resampling.LANCZOS,
        )
    kind = "png" if pixels <= LOSSLESS else "jpeg"
    buffer = BytesIO()
    image.save(buffer, kind, **({} if kind == "png" else {"quality": 95}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _error_message(error: Any) -> str:
    """Return a status with what the server itself said about it, wherever in its answer that is."""
    status, said = getattr(error, "status_code", None), getattr(error, "body", None)
    if status is None:
        return str(error)
    for name in ("error", "detail", "message"):
        said = said.get(name, said) if isinstance(said, dict) else said
    if not said or isinstance(said, dict | list):
        said = said or error.response.text
    return f"Error code: {status}{f', {said}' if said else ''}"


def _short(text: Any) -> str:
    text = " ".join(str(text).split())
    return text if len(text) <= 200 else text[:199] + "…"


@cache
def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependency("--engine openai needs `pip install 'lumina-cli[openai]'`") from error
    return openai
