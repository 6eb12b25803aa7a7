"""Connections are counted where whoever runs the server looks."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from support.server import Server


async def test_open_connections_are_shown_by_their_state(tmp_path: Path) -> None:
    server = Server(tmp_path / "home")
    await server.start()
    try:
        address = urlsplit(server.address)
        assert address.hostname is not None
        assert address.port is not None
        with (
            socket.create_connection((address.hostname, address.port)),
            socket.create_connection((address.hostname, address.port)),
        ):
            async with httpx.AsyncClient(base_url=server.address) as client:
                shown = (await client.get("/metrics")).raise_for_status().text
        assert 'baton_connections{state="waiting"} 2.0' in shown
        assert 'baton_connections{state="answering"} 1.0' in shown, "the one that asks"
    finally:
        await server.stop()
