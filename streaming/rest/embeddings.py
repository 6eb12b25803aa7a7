"""`POST /v1/embeddings`: texts as vectors, in OpenAI's shape. Nothing is kept.

Source: OpenAI's API reference, "Create embeddings". A field that would change the answer and cannot be honoured is refused by name.
"""

import base64
import sys
from array import array
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from models.catalog import unknown_model
from models.errors import BadInput, BatonError, LimitExceeded, NotFound, Unsupported
from models.ids import new_id
from models.ports.embed import Embeddings, EmbedRequest
from orchestrator.build import Conductor
from streaming.rest.whole import Whole
from streaming.subjects import whose
from streaming.wire.route import RestRoute
from streaming.wire.shapes import Strict

MOST_TEXTS = 2_048
"""Of one request, as the reference has it."""

_FLOAT_BYTES = 4


class EmbeddingRequest(Strict):
    """The body."""

    input: str | Annotated[list[str | int | list[int]], Field(min_length=1)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1)] = None

    # For whom an application asks; see `streaming.subjects`.
    user: str | None = None

    def texts(self) -> tuple[str, ...]:
        """Return the texts.

        Raises:
            Unsupported: one is of token ids.
            LimitExceeded: there are too many.
            BadInput: one is empty, which the reference does not take either.
        """
        given = [self.input] if isinstance(self.input, str) else self.input
        texts = []
        for at, text in enumerate(given):
            field = "input" if isinstance(self.input, str) else f"input[{at}]"
            if not isinstance(text, str):
                raise Unsupported(
                    "Token ids are not taken: their meaning depends on the model's own vocabulary, and clients write OpenAI's. "
                    "Send text (LangChain: check_embedding_ctx_length=False).",
                    field=field,
                )
            if not text:
                raise BadInput("A text must not be empty.", field=field)
            texts.append(text)
        if len(texts) > MOST_TEXTS:
            raise LimitExceeded(
                f"{len(texts)} texts are sent, and the most of one request are {MOST_TEXTS}: send fewer at a time.",
                field="input",
            )
        return tuple(texts)


def embedding_routes(conductor: Conductor) -> APIRouter:
    """Return the route."""
    router = APIRouter(route_class=RestRoute)

    @router.post("/v1/embeddings")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        """Turn texts into vectors."""
        texts, card = body.texts(), _card(conductor, body.model)
        if body.dimensions is not None:
            raise Unsupported(
                f"The vectors of {card!r} cannot be made shorter: the model was not trained for it. Leave 'dimensions' out.",
                field="dimensions",
            )
        owner = whose(request, user=body.user).within(new_id("call"))
        asked = EmbedRequest(
            texts=texts,
            priority="interactive" if isinstance(body.input, str) else "normal",
            deadline=conductor.clock.now_s() + conductor.settings.turn_timeout_s,
            tenant=owner.tenant,
            subject=owner.subject,
        )
        return Whole(_answer(conductor, card, asked, in_base64=body.encoding_format == "base64"))

    return router


def _card(conductor: Conductor, name: str | None) -> str:
    """Return the card that a request asks for; without a name the first that embeds.

    Raises:
        NotFound: there is none of that name, or none at all.
        BadInput: it is there, and does not embed.
    """
    names = conductor.fleet.names_of("embed")
    if not names:
        raise NotFound(
            "No model here embeds texts. Have one served: BATON_MODELS.", code="model_not_found", field="model"
        )
    if name is None:
        return next(iter(names))
    if name in names:
        return names[name]
    if name in conductor.fleet.names:
        raise BadInput(
            f"The model {name!r} writes, and does not embed. Those that do: {', '.join(sorted(names))}.",
            code="no_capable_model",
            field="model",
        )
    raise unknown_model(name, names)


async def _answer(conductor: Conductor, card: str, asked: EmbedRequest, *, in_base64: bool) -> dict[str, Any]:
    try:
        found = await conductor.fleet.embedder(card).embed(asked)
    except BatonError as exc:
        if exc.code == "context_length_exceeded":
            exc.field = "input"
        raise
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_vectors(found, in_base64=in_base64))
        ],
        "model": card,
        "usage": {"prompt_tokens": found.input_tokens, "total_tokens": found.input_tokens},
    }


def _vectors(found: Embeddings, *, in_base64: bool) -> list[str] | list[list[float]]:
    size = found.dimensions * _FLOAT_BYTES
    rows = [found.data[at : at + size] for at in range(0, len(found.data), size)]
    if in_base64:
        return [base64.b64encode(row).decode("ascii") for row in rows]
    return [_floats(row) for row in rows]


def _floats(row: bytes) -> list[float]:
    numbers = array("f", row)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
