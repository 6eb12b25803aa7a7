"""Several answers to one request: `n` of chat completions. They come as they are written, each with its index."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from orchestrator.events import TurnEnded, TurnInput, Usage
from streaming.rest.chat_reply import Answer, Reply, usage_fields

_PIECES = 64
"""Pieces of all answers that wait to be sent; then their models wait."""


def for_choice(turn_input: TurnInput, index: int) -> TurnInput:
    """Return what is asked for the answer `index`: the first as if it were alone, the others with seeds that follow from its."""
    sampling = turn_input.sampling
    if sampling.seed is None or index == 0:
        return turn_input
    digest = hashlib.blake2b(f"{sampling.seed}:{index}".encode(), digest_size=8).digest()
    return replace(turn_input, sampling=replace(sampling, seed=int.from_bytes(digest) >> 1))


class Choices:
    """Puts several answers to one prompt into OpenAI's words; the prompt is counted once."""

    def __init__(self, replies: Sequence[Reply], answers: Sequence[AsyncGenerator[Answer, None]]) -> None:
        """Take for each answer who puts it into words."""
        self._replies = replies
        self._answers = answers

    async def chunks(self, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Yield the answers as server-sent events, as they come. Closes them.

        Raises:
            BatonError: one of the turns failed.
        """
        for reply in self._replies:
            reply.tell_usage(include_usage)
        ends: list[TurnEnded] = []
        async with aclosing(_together(self._answers)) as pieces:
            async for index, piece in pieces:
                for chunk in self._replies[index].said(piece):
                    yield chunk
                if not isinstance(piece, TurnEnded):
                    continue
                ends.append(piece)
                if len(ends) < len(self._answers):
                    yield self._replies[index].last(piece)
                    continue
                for chunk in self._replies[index].ending(piece, include_usage=include_usage, total=_total(ends)):
                    yield chunk

    async def whole(self) -> dict[str, Any]:
        """Return the completion object with all choices. Closes the answers.

        Raises:
            BatonError: one of the turns failed.
        """
        said: list[list[Answer]] = [[] for _ in self._answers]
        async with aclosing(_together(self._answers)) as pieces:
            async for index, piece in pieces:
                said[index].append(piece)
        completions = [
            await reply.whole(_again(pieces_of)) for reply, pieces_of in zip(self._replies, said, strict=True)
        ]
        ends = [piece for pieces_of in said for piece in pieces_of if isinstance(piece, TurnEnded)]
        return {
            **completions[0],
            "choices": [choice for completion in completions for choice in completion["choices"]],
            "usage": usage_fields(_total(ends)),
        }


def _total(ends: Sequence[TurnEnded]) -> Usage:
    """Return what answers to one prompt have used: the prompt once, as whoever read most of it did."""
    reader = min((end.usage for end in ends), key=lambda usage: usage.cached_tokens)
    return Usage(
        input_tokens=reader.input_tokens,
        cached_tokens=reader.cached_tokens,
        output_tokens=sum(end.usage.output_tokens for end in ends),
        drafts=tuple(draft for end in ends for draft in end.usage.drafts),
    )


async def _again(pieces: Sequence[Answer]) -> AsyncGenerator[Answer, None]:
    for piece in pieces:
        yield piece


async def _together(answers: Sequence[AsyncGenerator[Answer, None]]) -> AsyncGenerator[tuple[int, Answer], None]:
    """Yield the pieces of all answers, each with whose it is. Closing it, or an error of one, closes all."""
    said: asyncio.Queue[tuple[int, Answer] | Exception | None] = asyncio.Queue(_PIECES)

    async def listen(index: int, answer: AsyncGenerator[Answer, None]) -> None:
        try:
            async with aclosing(answer) as pieces:
                async for piece in pieces:
                    await said.put((index, piece))
        except Exception as exc:  # noqa: BLE001  # told to whoever reads, not to the task group, which would wrap it
            await said.put(exc)
        else:
            await said.put(None)

    failure: Exception | None = None
    async with asyncio.TaskGroup() as tasks:
        listening = [tasks.create_task(listen(index, answer)) for index, answer in enumerate(answers)]
        left = len(answers)
        while left and failure is None:
            match await said.get():
                case None:
                    left -= 1
                case Exception() as failure:
                    pass
                case piece:
                    yield piece
        for task in listening:
            task.cancel()
    if failure is not None:
        raise failure
