"""A server of OpenAI's chat completions over a real socket, in the test's own event loop, with faults on demand.

It writes an answer of words drawn by prompt, seed and temperature, one token a chunk, and honours `max_tokens`, `stop`,
`tools`, `logprobs` and `stream_options`. `replies` says how the next requests are met instead, each once.
"""

import asyncio
import json
import math
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http import HTTPStatus
from typing import Any

WORDS = ("amber ", "birch ", "cedar ", "dune ", "ember ", "fjord ", "grove ", "heath ")
ANSWER_TOKENS = 24

_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Exchange:
    """One request and the connection that it came on."""

    def __init__(self, head: bytes, body: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.path = head.split()[1].decode()
        lines = (line.partition(b":") for line in head.splitlines()[1:])
        self.headers = {name.decode().lower(): value.strip().decode() for name, _, value in lines}
        self.body = body
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def send_piece(self, data: bytes) -> None:
        """Send a piece of a chunked body."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        await self.reader.read(1)


Reply = Callable[[Exchange], Awaitable[None]]


class OpenAIServer:
    """See the module. `exchanges` are the requests that came in, oldest first."""

    def __init__(self) -> None:
        self.replies: deque[Reply] = deque()
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.open = 0
        self.gap_s = 0.0
        self.base_url = ""

    @property
    def body(self) -> Any:
        """The last request's body."""
        return self.exchanges[-1].body

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self.connections += 1
        self.open += 1
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while not writer.is_closing():
                    head = await reader.readuntil(b"\r\n\r\n")
                    exchange = Exchange(head, None, reader, writer)
                    length = int(exchange.headers["content-length"])
                    exchange.body = json.loads(await reader.readexactly(length))
                    self.exchanges.append(exchange)
                    await (self.replies.popleft() if self.replies else self._generate)(exchange)
        finally:
            self.open -= 1
            writer.close()

    async def _generate(self, exchange: Exchange) -> None:
        events = _answer(exchange.body)
        await exchange.send(_STREAM)
        for event in events:
            await exchange.send_piece(sse(event))
            await asyncio.sleep(self.gap_s)
        await exchange.send_piece(b"data: [DONE]\n\n")
        await exchange.send_piece(b"")


@asynccontextmanager
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """Run a server on a free port of loopback for the length of the block."""
    server = OpenAIServer()
    tasks: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    server.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v1"
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def openai_server_apart() -> Iterator[OpenAIServer]:
    """Run a server in a thread, for tests that look at the tasks of their own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    serving = openai_server()
    try:
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def sse(event: object) -> bytes:
    """Return an event as it is sent."""
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


def says(text: str, **choice: Any) -> dict[str, Any]:
    """Return a chunk that says `text`."""
    return chunk({"content": text}, **choice)


def chunk(delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
    """Return a chunk with one choice."""
    choice = {"index": 0, "delta": delta, "finish_reason": None, **choice}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "fake", "choices": [choice]}


# Replies


def refuse(status: int, error: object = None, **headers: str) -> Reply:
    """Answer with an error; a header's name is written with underscores."""

    async def reply(exchange: Exchange) -> None:
        content = json.dumps({"error": {"message": "No.", "type": None, "code": None} if error is None else error})
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n" + "\r\n".join(lines)
        await exchange.send(f"{head}\r\n\r\n{content}".encode())

    return reply


async def hang(exchange: Exchange) -> None:
    """Take the request and never answer."""
    await exchange.gone()


async def hang_up(exchange: Exchange) -> None:
    """Close the connection instead of answering."""
    exchange.writer.close()


def stream(*pieces: bytes, then: str = "end", when: asyncio.Event | None = None) -> Reply:
    """Answer with a stream of these pieces; `then` (`when` that is set) end it, `hang`, `break` or `reset` the connection."""

    async def reply(exchange: Exchange) -> None:
        await exchange.send(_STREAM)
        for piece in pieces:
            await exchange.send_piece(piece)
        if when is not None:
            await when.wait()
        match then:
            case "end":
                await exchange.send_piece(b"")
            case "hang":
                await exchange.gone()
            case "break":
                exchange.writer.close()
            case "reset":
                exchange.writer.transport.abort()

    return reply


# Generation


def _answer(body: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Yield the chunks of an answer to `body`."""
    limit = body.get("max_tokens", body.get("max_completion_tokens", 1 << 30))
    call = _called(body)
    tokens = ['{"city": ', '"Bern"', "}"] if call else _words(body)
    text = _cut("".join(tokens), body.get("stop") or [])
    written = 0
    finish = "tool_calls" if call else "stop"
    if call:
        yield chunk(_call_fragment({"id": "call_up", "type": "function", "function": {"name": call, "arguments": ""}}))
    for token in tokens:
        if not text:
            break
        if written == limit:
            finish = "length"
            break
        said, text = text[: len(token)], text[len(token) :]
        written += 1
        if call:
            yield chunk(_call_fragment({"function": {"arguments": said}}))
        else:
            yield says(said, **({"logprobs": _logprobs(said, body)} if body.get("logprobs") else {}))
    yield chunk({}, finish_reason=finish)
    if body.get("stream_options", {}).get("include_usage"):
        asked = sum(len((message["content"] or "").split()) for message in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written}
        yield {**chunk({}), "choices": [], "usage": usage}


def _call_fragment(fragment: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, **fragment}]}


def _called(body: dict[str, Any]) -> str | None:
    """Return the function that is called: the one that has to be, or the first, whose name the user says."""
    names = [tool["function"]["name"] for tool in body.get("tools", ())]
    if not names:
        return None
    match body.get("tool_choice", "auto"):
        case {"function": {"name": name}}:
            return str(name)
        case "required":
            return str(names[0])
        case "auto":
            last = body["messages"][-1]["content"] or ""
            return next((name for name in names if name in last), None)
        case _:
            return None


def _words(body: dict[str, Any]) -> list[str]:
    seed = json.dumps(body["messages"]) if body.get("temperature", 1) == 0 else body.get("seed")
    return random.Random(seed).choices(WORDS, k=ANSWER_TOKENS)


def _cut(text: str, stop: list[str]) -> str:
    return text[: min((at for at in (text.find(s) for s in stop) if at >= 0), default=len(text))]


def _logprobs(token: str, body: dict[str, Any]) -> dict[str, Any]:
    best = [{"token": token, "logprob": math.log(0.75)}, {"token": "?", "logprob": math.log(0.25)}]
    return {"content": [{**best[0], "top_logprobs": best[: body.get("top_logprobs", 0)]}]}
