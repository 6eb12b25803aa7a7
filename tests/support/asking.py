"""Asking a local engine in words, and looking at what it yields."""

from models.content import Delta, Item, Message, Role, TextDelta, TextPart
from models.ports.generate import PROCESSORS, Engine, GenerateRequest, Sampling, Signal

ALL: frozenset[Signal] = frozenset({"token_ids", "logprobs", "entropies", "margins"})
"""All that can be told of a token."""

LONG = "one two three four five six seven eight nine ten " * 4


def says(text: str, role: Role = "user") -> Message:
    """Return a message."""
    return Message(item_id=f"item_{role}", role=role, parts=(TextPart(text=text),))


def asks(*items: Item | str, limit: int = 24, **fields: object) -> GenerateRequest:
    """Return a request; fields of `Sampling` are taken as those of the request itself."""
    names = {"temperature", "top_p", "seed", "stop", *PROCESSORS}
    sampling = {name: fields.pop(name) for name in names & fields.keys()}
    messages = tuple(says(item) if isinstance(item, str) else item for item in items or ("Hello",))
    fields = {"tenant": "local", **fields}
    return GenerateRequest(messages=messages, sampling=Sampling(max_output_tokens=limit, **sampling), **fields)  # type: ignore[arg-type]


async def collect(engine: Engine, request: GenerateRequest) -> list[Delta]:
    """Return all that is yielded."""
    return [delta async for delta in engine.generate(request)]


def text_of(deltas: list[Delta]) -> str:
    """Return the words."""
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def tokens_of(deltas: list[Delta]) -> list[int]:
    """Return the tokens, if they were asked for."""
    return [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.token_ids]
