"""What the bodies of OpenAI's requests have in common."""

from pydantic import BaseModel, ConfigDict


class Typed(BaseModel):
    """Types are as OpenAI has them: a number in a string is a string, and true is no number."""

    model_config = ConfigDict(frozen=True, strict=True)


class Strict(Typed):
    """A field that is not known is refused."""

    model_config = ConfigDict(extra="forbid")
