"""Engine for endpoints with OpenAI's chat API, with a fixed number of concurrent requests."""

import asyncio
import base64
import contextlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image

from lumina_cli.core.errors import LuminaError, MissingDependency, UsageError
from lumina_cli.core.unicap.engines.answer_text import UnreadableAnswer, read_completion, shorten_line
from lumina_cli.core.unicap.engines.http_client import (
    check_key,
    check_url,
    describe_connection_error,
    open_client,
    watch_response,
)
from lumina_cli.core.unicap.engines.journal import AnswerJournal
from lumina_cli.core.unicap.protocol import Answer, Engine, Question

TEMPERATURE, TOP_P, RETRY_TEMPERATURE = 0.2, 0.8, 0.3  # as in engines/transformers.py
RETRIES = 5  # per request, by the client: after 0.5 s, then doubling up to 8 s
TIMEOUT = 300.0  # seconds for one answer
MAX_PIXELS = 4_000_000  # larger images are downscaled; models do so anyway
MAX_UNREADABLE = 24  # responses; if all were unreadable, the endpoint is not what the run needs
LOSSLESS = 512 * 512  # pixels up to which an image is sent as PNG, else as JPEG of quality 95


class Captioner(Engine):
    """A model behind a URL such as http://localhost:8000/v1, with `batch` concurrent requests.

        model       name of the model; None if the endpoint has exactly one
        endpoint    URL; None reads OPENAI_BASE_URL from the environment
        batch       concurrent requests
        retries     retries of a request after 429, 5xx and lost connections
        timeout     seconds per request

    The API key is read from OPENAI_API_KEY; local servers do not need one. A question that the endpoint
    refuses (400, 413, 422) gets an answer with an error, unless all questions so far were refused. So does
    one whose answer is unreadable, unless the first MAX_UNREADABLE are.

    Raises:
        UsageError: if the URL is missing or invalid, or the model is ambiguous.
        LuminaError: if the endpoint cannot be reached or keeps failing.
    """

    structured = "guided"
    lanes = 2  # the next images start while the last answers of others are pending
    one_by_one = True

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
        self.url = check_url(endpoint or os.environ.get("OPENAI_BASE_URL"))
        self.key = check_key(os.environ.get("OPENAI_API_KEY"))
        self.answered, self.unreadable = False, 0
        self.journal: AnswerJournal | None = None  # set for a run that may be resumed
        self.rejected_settings: set[str] = set()  # settings that this endpoint rejects
        self.lock, self.closed = threading.Lock(), False
        self.waiting: set[Future] = set()  # what threads wait for
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.client, self.slots = self._run(self._connect(batch, retries, timeout))
        self.model_given, self.name = model is not None, model
        self.name = self._run(self._find_model(model))
        self.found = None if model else self.name
        self.apply_model_settings(self.name)  # a local server may serve a folder by its path

    async def _connect(self, batch: int, retries: int, timeout: float) -> tuple[Any, asyncio.Semaphore]:
        client = open_client(self.openai, self.url, self.key, retries, timeout)
        return client, asyncio.Semaphore(batch)

    def _run(self, work: Any) -> Any:
        """Run a coroutine on the thread of the loop; an interrupt, or closing the engine, cancels it."""
        with self.lock:
            if self.closed:
                work.close()
                raise LuminaError("interrupted before the request")
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
            self.waiting.add(future)
        try:
            return future.result()
        except CancelledError:
            raise LuminaError("interrupted while waiting for answers") from None
        except BaseException:
            future.cancel()
            raise
        finally:
            with self.lock:
                self.waiting.discard(future)

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """Answer the questions; images are embedded in the requests."""
        return self._run(self._ask_all(questions))

    async def _ask_all(self, questions: Sequence[Question]) -> list[Answer]:
        urls: dict[int, str] = {}
        tasks = []
        try:
            for question in questions:
                place = id(question.image)
                known = self.journal and self.journal.find(question, self.name)
                if question.image is not None and place not in urls and not known:
                    urls[place] = await asyncio.to_thread(data_url, question.image)
                tasks.append(asyncio.create_task(self._ask(question, urls.get(place))))
            return await asyncio.gather(*tasks)
        finally:  # the first error cancels the others
            for task in tasks:
                task.cancel()

    async def _ask(self, question: Question, url: str | None) -> Answer:
        """Return the answer from the journal or the endpoint; it is on disk when this ends."""
        if self.journal is None:
            return await self._request_answer(question, url)
        if known := self.journal.find(question, self.name):
            self.answered = True
            return known
        answer = await self._request_answer(question, url)
        self.journal.add(question, self.name, answer)
        return answer

    async def _request_answer(self, question: Question, url: str | None) -> Answer:
        watched = watch_response()
        async with self.slots:
            try:
                while True:
                    try:
                        create = self.client.chat.completions.with_raw_response.create
                        response = await create(**self._request(question, url))
                        break
                    except self.openai.BadRequestError as error:
                        if not self._drop_rejected_setting(error):
                            raise
            except self.openai.APIStatusError as error:
                if error.status_code not in (400, 413, 422) or not self.answered:
                    raise LuminaError(self._describe_error(error)) from error
                return Answer(
                    "", True, error=f"refused by the endpoint: {shorten_line(_error_message(error))}"
                )
            except self.openai.OpenAIError as error:
                raise LuminaError(self._describe_error(error)) from error
        try:
            if "reason" in watched:
                raise UnreadableAnswer(watched["reason"])
            answer = read_completion(response.content)
        except UnreadableAnswer as error:
            return self._reject_unreadable(error)
        self.answered = True
        return answer

    def _reject_unreadable(self, error: UnreadableAnswer) -> Answer:
        """Return an answer with the reason, unless the endpoint has sent nothing else from the start."""
        self.unreadable += 1
        if self.unreadable >= MAX_UNREADABLE and not self.answered:
            raise LuminaError(
                f"{self.url} sent {self.unreadable} answers without a caption and no other: {error}"
            )
        return Answer("", True, error=str(error))

    def _request(self, question: Question, url: str | None) -> dict[str, Any]:
        content: list[dict] = [{"type": "text", "text": question.text}]
        if url:
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        settings = {
            "max_tokens": question.max_tokens,
            "temperature": min(TEMPERATURE + RETRY_TEMPERATURE * question.attempt, 1.0),
            "top_p": TOP_P,
            "seed": question.seed % 2**31,
        }
        if question.form:
            named = {"name": "captions", "strict": True, "schema": question.form}
            settings["response_format"] = {"type": "json_schema", "json_schema": named}
        if "max_tokens" in self.rejected_settings:
            settings["max_completion_tokens"] = question.max_tokens
        settings = {name: value for name, value in settings.items() if name not in self.rejected_settings}
        return {"model": self.name, "messages": [{"role": "user", "content": content}]} | settings

    def _drop_rejected_setting(self, error: Any) -> bool:
        """Return whether the endpoint rejects an optional setting, which is then omitted from now on."""
        name = getattr(error, "param", None)
        if (
            name not in ("max_tokens", "temperature", "top_p", "seed", "response_format")
            or name in self.rejected_settings
        ):
            return False
        self.rejected_settings.add(name)
        return True

    async def _find_model(self, model: str | None) -> str:
        """Return the model name, after checking that the endpoint is reachable."""
        names = []
        try:
            async for one in self.client.with_options(max_retries=1).models.list():
                names.append(str(one.id))
        except self.openai.APIStatusError as error:
            if model is None or error.status_code in (401, 403):
                raise LuminaError(self._describe_error(error)) from error
        except self.openai.OpenAIError as error:
            raise LuminaError(self._describe_error(error)) from error
        except (ValueError, AttributeError, TypeError, RecursionError):  # not every endpoint lists its models
            names = []
        if model or len(names) == 1:
            return model or names[0]
        offered = f"it offers {shorten_line(', '.join(names[:8]))}" if names else "it lists none"
        raise UsageError(f"--model must select a model of {self.url}; {offered}")

    def _describe_error(self, error: Any) -> str:
        """Return a one-line message about an error that ends the run."""
        if isinstance(error, self.openai.APITimeoutError):
            return f"{self.url} did not answer in time"
        if isinstance(error, self.openai.APIConnectionError):
            cause = error.__cause__ or error
            return f"{self.url} {describe_connection_error(cause, shorten_line(cause))}"
        if isinstance(error, self.openai.AuthenticationError | self.openai.PermissionDeniedError):
            key = (
                "refuses the key in OPENAI_API_KEY"
                if self.key != "none"
                else "needs a key: set OPENAI_API_KEY"
            )
            return f"{self.url} {key} ({shorten_line(_error_message(error))})"
        hint = "" if self.model_given else f"; without --model, the requested one was {self.name!r}"
        hint = "; select a model with --model NAME" if self.name is None else hint
        reason = shorten_line(_error_message(error))
        if isinstance(error, self.openai.NotFoundError):
            return f"{self.url} does not have model {self.name!r}, or the URL lacks /v1 ({reason}){hint}"
        return f"{self.url} failed: {reason}{hint}"

    def close(self) -> None:
        """Cancel pending requests; the threads that wait for them, and later requests, get an error."""
        with self.lock:
            closed, self.closed = self.closed, True
        if closed:
            return
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)
        for future in list(self.waiting):  # the loop has stopped, and would never end them
            future.cancel()
        if not self.thread.is_alive():
            self.loop.close()

    async def _end(self) -> None:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self.client.close()


def data_url(image: Image.Image) -> str:
    """Return an image as a data URL: PNG if it is small, else JPEG, downscaled to MAX_PIXELS."""
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
    """Return the status with the message of the server, from any of the usual fields."""
    status, body = getattr(error, "status_code", None), getattr(error, "body", None)
    if status is None:
        return str(error)
    for name in ("error", "detail", "message"):
        body = body.get(name, body) if isinstance(body, dict) else body
    if not body or isinstance(body, dict | list):
        body = body or error.response.text
    return f"Error code: {status}{f', {body}' if body else ''}"


@cache
def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise MissingDependency("--engine openai needs `pip install 'lumina-cli[openai]'`") from error
    return openai
