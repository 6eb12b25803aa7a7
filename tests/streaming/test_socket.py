"""What the socket adapter does with clients that do not behave."""

import asyncio
import json
import socket as sockets

import psutil
import pytest
import websockets

from streaming.limits import SurfaceLimits

_FLOOD = json.dumps({"rules": [{"pattern": ".*", "reply": "{n} " + "x" * 2000 + " ", "times": "500", "gap_s": 0.0005}]})


def _is_connected(server_port: int, client_port: int) -> bool:
    return any(
        (c.laddr.port, c.raddr.port) == (server_port, client_port)
        for c in psutil.Process().net_connections("tcp")
        if c.raddr
    )


async def _ask(socket: websockets.ClientConnection) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]}
    await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
    await socket.send(json.dumps({"type": "response.create"}))


async def test_a_client_that_stops_reading_is_dropped_and_its_session_goes_on(serve) -> None:
    limits = SurfaceLimits(send_timeout_s=0.5, drain_s=1)
    async with serve(limits=limits, script=_FLOOD) as served:
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.setblocking(False)
        host, port = served.address.split(":")
        await asyncio.get_running_loop().sock_connect(raw, (host, int(port)))
        lazy = await websockets.connect(f"ws://{served.address}/v1/realtime", sock=raw, max_queue=1, ping_interval=None)
        assert lazy.response is not None
        session_id = lazy.response.headers["x-baton-session"]
        session = await served.conductor.sessions.open("local", session_id)
        for _ in range(8):
            await _ask(lazy)
        # It reads nothing; what it is sent fills the buffers, and after the time-out its connection is let go.
        async with asyncio.timeout(30):
            while _is_connected(int(port), raw.getsockname()[1]):  # noqa: ASYNC110  # the kernel sets no event
                await asyncio.sleep(0.1)
        assert served.conductor.registry.get_sample_value("baton_websockets", {"tenant": "local"}) == 0
        events = session.events(0)
        async with asyncio.timeout(30):
            async for event in events:
                if event.kind == "committed" and event.event.kind == "turn_ended":
                    break
        await events.aclose()
        assert event.event.state == "finished"
        lazy.transport.abort()


async def test_more_connections_than_the_limit_are_refused_with_its_number(serve) -> None:
    async with serve(limits=SurfaceLimits(sockets=1, drain_s=1)) as served:
        url = f"ws://{served.address}/v1/realtime"
        async with websockets.connect(url):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url)
            assert refused.value.response.status_code == 503
            assert b"1 websockets are open" in refused.value.response.body
