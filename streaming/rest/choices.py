"""Several answers to one request: `n`, and prompts. They come as they are written, each with its index."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from orchestrator.events import TurnEnded, TurnInput, Usage
from streaming.rest.answer import Answer
from streaming.wire.usage import completion_usage

_PIECES = 64
"""Pieces of all answers that wait to be sent; then their models wait."""


def for_choice(turn_input: TurnInput, index: int) -> TurnInput:
    """Return what is asked for the answer `index`: the first as if it were alone, the others with seeds that follow from its."""
    sampling = turn_input.sampling
    if sampling.seed is None or index == 0:
        return turn_input
    digest = hashlib.blake2b(f"{sampling.seed}:{index}".encode(), digest_size=8).digest()
    return replace(turn_input, sampling=replace(sampling, seed=int.from_bytes(digest) >> 1))


class ChoiceReply(Protocol):
    """Who puts one of the answers into words; see `Reply`."""

    def tell_usage(self, wanted: bool) -> None: ...  # noqa: D102
    def said(self, piece: Answer) -> list[bytes]: ...  # noqa: D102
    def last(self, end: TurnEnded) -> bytes: ...  # noqa: D102
    def ending(self, end: TurnEnded, *, include_usage: bool, total: Usage | None = None) -> list[bytes]: ...  # noqa: D102
    async def whole(self, answer: AsyncGenerator[Answer, None]) -> dict[str, Any]: ...  # noqa: D102


class Choices:
    """Puts several answers into OpenAI's words; each prompt is counted once."""

    def __init__(
        self,
        replies: Sequence[ChoiceReply],
        answers: Sequence[AsyncGenerator[Answer, None]],
        *,
        copies: int | None = None,
    ) -> None:
        """Take for each answer who puts it into words; so many `copies` in turn answer one prompt, all if None."""
        self._replies = replies
        self._answers = answers
        self._copies = copies or len(answers)

    async def chunks(self, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Yield the answers as server-sent events, as they come. Closes them.

        Raises:
            BatonError: one of the turns failed.
        """
        for reply in self._replies:
            reply.tell_usage(include_usage)
        ends: dict[int, TurnEnded] = {}
        async with aclosing(_together(self._answers)) as pieces:
            async for index, piece in pieces:
                for chunk in self._replies[index].said(piece):
                    yield chunk
                if not isinstance(piece, TurnEnded):
                    continue
                ends[index] = piece
                if len(ends) < len(self._answers):
                    yield self._replies[index].last(piece)
                    continue
                total = self._total([ends[each] for each in sorted(ends)])
                for chunk in self._replies[index].ending(piece, include_usage=include_usage, total=total):
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
            "usage": completion_usage(self._total(ends)),
        }

    def _total(self, ends: Sequence[TurnEnded]) -> Usage:
        """Return what all have used: a prompt once, as whoever read most of it did."""
        prompts = range(0, len(ends), self._copies)
        readers = [
            min((end.usage for end in ends[at : at + self._copies]), key=lambda usage: usage.cached_tokens)
            for at in prompts
        ]
        return Usage(
            input_tokens=sum(reader.input_tokens for reader in readers),
            cached_tokens=sum(reader.cached_tokens for reader in readers),
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
        except Exception as exc:  # noqa: BLE001  # told to whoever reads
            await said.put(exc)
        else:
            await said.put(None)

    # No task group: it would wrap what whoever reads throws in here, and what is raised.
    listening = [asyncio.create_task(listen(index, answer)) for index, answer in enumerate(answers)]
    left = len(answers)
    try:
        while left:
            match await said.get():
                case None:
                    left -= 1
                case Exception() as failure:
                    raise failure
                case piece:
                    yield piece
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
