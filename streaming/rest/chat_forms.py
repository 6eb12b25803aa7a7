"""Tools and response formats of `POST /v1/chat/completions`: what an answer is held to.

Source: OpenAI's API reference, "Create chat completion".
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field
from pydantic_core import PydanticCustomError

from models.errors import BadInput, quoted
from models.ports.generate import (
    Form,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    ToolConstraint,
)
from streaming.wire.complaints import not_offered_choice
from streaming.wire.shapes import JsonObject, Strict, Typed
from streaming.wire.tools import FunctionOnOffer, ToolMode, on_offer


class ChatTool(Typed):
    """A tool on offer."""

    type: Literal["function"]
    function: FunctionOnOffer


class NamedFunction(Strict):
    """A function by name."""

    name: str


class NamedTool(Strict):
    """A tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction


def _of_function(sent: Any) -> Any:
    """Refuse the choices that OpenAI has and this has not, by their type rather than by what else they lack."""
    kind = sent.get("type") if isinstance(sent, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise PydanticCustomError("not_offered", "{said}", {"said": not_offered_choice(kind)})
    return sent


ChatToolChoice = Annotated[ToolMode | NamedTool, BeforeValidator(_of_function)]


def tools_of(
    tools: Sequence[ChatTool] | None, choice: ChatToolChoice | None, *, parallel: bool | None
) -> ToolConstraint | None:
    """Return what functions are on offer; None if none is.

    Raises:
        BadInput: the function that has to be called is not among them.
    """
    named = choice.function.name if isinstance(choice, NamedTool) else None
    if named is not None and named not in {tool.function.name for tool in tools or ()}:
        raise BadInput(f"The function {quoted(named)} is not among the tools.", field="tool_choice")
    if not tools:
        if choice == "required":
            raise BadInput("A call is required, and there are no tools. Send 'tools' with it.", field="tool_choice")
        return None
    return on_offer(
        (tool.function for tool in tools),
        None if isinstance(choice, NamedTool) else choice,
        named=named,
        parallel=parallel,
    )


class TextFormat(Strict):
    """Words, as they come."""

    type: Literal["text"]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return None


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return JsonSchemaConstraint(schema='{"type": "object"}')


class JsonSchema(Strict):
    """A schema with the name that it goes by, which changes nothing here; without one, any object."""

    name: str
    schema_: Annotated[JsonObject | None, Field(alias="schema")] = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        schema = {"type": "object"} if self.json_schema.schema_ is None else self.json_schema.schema_
        return JsonSchemaConstraint(schema=json.dumps(schema), strict=self.json_schema.strict or False)


class RegexFormat(Strict):
    """Text that a regular expression matches as a whole. Not OpenAI's."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1)]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return RegexConstraint(pattern=self.pattern)


class GrammarFormat(Strict):
    """Text that a grammar derives. Not OpenAI's."""

    type: Literal["grammar"]
    grammar: Annotated[str, Field(min_length=1)]

    def form(self) -> Form | None:
        """Return what the answer is held to."""
        return GrammarConstraint(grammar=self.grammar)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Discriminator("type")
]
