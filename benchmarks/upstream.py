"""A model server that costs next to nothing: what stands behind the gateways that are compared.

It speaks OpenAI's streaming chat completions on a bare `asyncio.Protocol`, and writes the same tokens to whatever it is
asked, one every `gap_s` seconds. Every other request is answered with 200.
"""

import asyncio
import gc
import json
from typing import Annotated, Any, cast

import typer
import uvloop

TOKENS = 20

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_FINE = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


def _piece(event: bytes) -> bytes:
    data = b"data: " + event + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunk(choices: list[dict[str, Any]], **fields: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_750_000_000, "model": "upstream"}
    return _piece(json.dumps({**head, "choices": choices, **fields}, separators=(",", ":")).encode())


def _choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": reason}


_WORDS = [_chunk([_choice({"content": f"word{n} "})]) for n in range(TOKENS)]
_USAGE = {"prompt_tokens": 5, "completion_tokens": TOKENS, "total_tokens": TOKENS + 5}
_END = _chunk([_choice({}, "stop")]) + _chunk([], usage=_USAGE) + _piece(b"[DONE]") + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # of a stream socket

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length:")
        if len(body) < int(length.split(b"\r\n", 1)[0] or 0):
            return
        self._received = b""
        if head.startswith(b"POST"):
            self._transport.write(_HEAD)
            self._write(0)
        else:
            self._transport.write(_FINE)

    def _write(self, n: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(_WORDS[n] if n < TOKENS else _END)
        if n < TOKENS:
            asyncio.get_running_loop().call_later(self._gap_s, self._write, n + 1)


async def _serve(port: int, gap_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(gap_s), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main(port: Annotated[int, typer.Option()], gap_s: Annotated[float, typer.Option()]) -> None:
    """Serve until ended."""
    gc.disable()
    uvloop.run(_serve(port, gap_s))


if __name__ == "__main__":
    typer.run(main)
