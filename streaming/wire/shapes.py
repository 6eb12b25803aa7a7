"""What JSON that clients send is made of, on every surface."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from orchestrator.events import OnLeave

ID = r"^[A-Za-z0-9_-]{1,64}$"
"""How ids are written, and the names of functions."""


class Typed(BaseModel):
    """Types are as OpenAI has them: a number in a string is a string, and true is no number."""

    model_config = ConfigDict(frozen=True, strict=True)


class Strict(Typed):
    """A field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")


class Sparse(Strict):
    """Likewise, but a field that is null asks for nothing, known or not: clients of the Realtime API send many."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {name: value for name, value in sent.items() if value is not None or name in cls.model_fields}


def _plain_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Refuse the numbers that JSON has no words for, which parsers take in and strict ones choke on."""
    json.dumps(value, allow_nan=False)
    return value


JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_plain_json)]
"""A JSON object that every parser takes."""


_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
Metadata = Annotated[dict[_MetadataKey, _MetadataValue], Field(max_length=16)]
"""What a caller notes of an answer for itself."""


class BatonTurn(Sparse):
    """What a caller may say of one turn that OpenAI's APIs have no field for.

    Attributes:
        on_leave: what becomes of it once nobody follows it any more; None leaves it to the server, which waits a while.
    """

    on_leave: OnLeave | None = None
