"""A local endpoint with an OpenAI-compatible interface, whose replies the tests choose."""

import asyncio
import json
import threading

from tiny_captioner import plain_picture

from lumina_cli.core.unicap.protocol import Question


def question(text="Describe.", image=None, **settings):
    return Question(text, "short", "en", 7, 40, image or plain_picture("red"), **settings)


class Endpoint:
    """A local server that speaks just enough HTTP; `reply(number, request) -> (status, body)` for each question."""

    def __init__(self, reply):
        self.reply, self.seen, self.now, self.most = reply, [], 0, 0
        self.writers = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self.loop
        ).result()
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        size = next(
            (
                int(line.split(":")[1])
                for line in head.splitlines()
                if line.lower().startswith("content-length")
            ),
            0,
        )
        request = json.loads(await reader.readexactly(size)) if size else None
        if request is None:
            status, body = (
                200,
                {
                    "object": "list",
                    "data": [{"id": "only", "object": "model", "created": 0, "owned_by": "me"}],
                },
            )
        else:
            self.now, self.most = self.now + 1, max(self.most, self.now + 1)
            self.seen.append((request, head))
            status, body = self.reply(len(self.seen), request)
            await asyncio.sleep(0.02 if status else 30)
            self.now -= 1
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nretry-after-ms: 5\r\nConnection: close\r\n\r\n"
        writer.write(lines.encode() + data)
        await writer.drain()
        writer.close()

    def close(self):
        async def end():
            self.server.close()
            mine = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in mine:
                task.cancel()
            await asyncio.gather(*mine, return_exceptions=True)
            for writer in self.writers:  # an answer that was cut short has left its connection open
                writer.close()
            closed = [writer.wait_closed() for writer in self.writers]
            await asyncio.gather(*closed, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self.loop).result(5)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def said(text, finish="stop", **message):
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "only", "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}  # fmt: skip


def asked(endpoint, questions, **settings):
    from lumina_cli.core.unicap.engines.openai import Captioner

    engine = Captioner(None, None, endpoint.url, **settings)
    try:
        return engine.answer(questions)
    finally:
        engine.close()
