"""Asking an engine, and looking at what it yields."""

import asyncio
from collections.abc import Callable

import pytest

from models.content import CallDelta, Delta, Item, Message, TextDelta, TextPart
from models.errors import BatonError
from models.language.openai.engine import OpenAIEngine
from models.ports.generate import GenerateRequest


def user(text: str, role: str = "user") -> Message:
    return Message(item_id=f"item_{role}", role=role, parts=(TextPart(text=text),))


def asks(*items: Item, **fields: object) -> GenerateRequest:
    return GenerateRequest(messages=items or (user("go"),), **{"tenant": "local", **fields})


async def collect(engine: OpenAIEngine, request: GenerateRequest | None = None) -> list[Delta]:
    return [delta async for delta in engine.generate(request or asks())]


async def fails(engine: OpenAIEngine, request: GenerateRequest | None = None) -> BatonError:
    with pytest.raises(BatonError) as caught:
        await collect(engine, request)
    return caught.value


async def until(condition: Callable[[], object]) -> None:
    """Let the sockets work until `condition` holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in the kernel
            await asyncio.sleep(0.001)


def text_in(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def calls_in(deltas: list[Delta]) -> dict[tuple[str, str], str]:
    calls: dict[tuple[str, str], str] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            key = (delta.call_id, delta.name)
            calls[key] = calls.get(key, "") + delta.arguments
    return calls
