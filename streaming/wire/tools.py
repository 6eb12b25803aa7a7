"""Functions on offer, as every surface takes them, and what an engine is told of them."""

import json
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from models.ports.generate import ToolConstraint, ToolSpec
from streaming.wire.shapes import ID, JsonObject, Sparse, Typed

FunctionName = Annotated[str, Field(pattern=ID)]

ToolMode = Literal["auto", "none", "required"]
"""Whether a function has to be called, where none is named."""


class FunctionOnOffer(Typed):
    """A function that the client runs."""

    name: FunctionName
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ServerTool(Sparse):
    """A tool that this server runs, by its name. What it does, the server knows."""

    type: Literal["server"]
    name: FunctionName


def on_offer(
    functions: Iterable[FunctionOnOffer | ToolSpec],
    choice: ToolMode | None,
    *,
    named: str | None,
    parallel: bool | None,
) -> ToolConstraint:
    """Return what an engine is told of functions.

    Args:
        functions: those on offer, at least one; what the server runs as it is known here.
        choice: whether one has to be called; None is `auto`.
        named: the one that has to be called, if it is named.
        parallel: whether one answer may hold several calls; None is that it may.
    """
    return ToolConstraint(
        tools=tuple(
            function
            if isinstance(function, ToolSpec)
            else ToolSpec(
                name=function.name,
                description=function.description or "",
                parameters=json.dumps(function.parameters or {}),
                strict=function.strict or False,
            )
            for function in functions
        ),
        choice="required" if named is not None else choice or "auto",
        function=named,
        parallel=parallel is not False,
    )
