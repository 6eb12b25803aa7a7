"""Tools that this server runs: functions of Python, each registered under its name with what a call of it does to the world.

    tools = Tools()

    @tools.register(effect="pure")
    def add(a: int, b: int) -> int:
        "Add two numbers."
        return a + b

A model is shown the name, the docstring and a JSON Schema made from the signature; what it writes is validated against the
same signature before anything runs. A coroutine runs in the loop; any other function in one of a few threads of its own, where
it cannot be stopped: once its time is over, nobody waits for it any more, and its outcome is unknown.
"""

import asyncio
import importlib.util
import inspect
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, PydanticUserError, ValidationError, create_model
from pydantic_core import to_json

from models.clock import Clock
from models.content import Part, TextPart
from models.errors import BadInput, BatonError, DeadlineExceeded, Internal
from models.ports.generate import EffectKind, ToolSpec

_log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_THREADS = 8
"""Functions that are no coroutines and run at a time; the next waits, until its deadline."""

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """What a function may want to know of its call: annotate a parameter with this type, and it is given one.

    Attributes:
        key: of turn, task and ordinal; the same if the call is made again. Hand it on where an effect must not happen twice.
        tenant: for whom.
        subject: for which end user of the tenant's, as the tenant's application names it; None if it names none.
        turn_id: in which turn.
    """

    key: str
    tenant: str
    turn_id: str
    subject: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonTool:
    """A function that may be called.

    Attributes:
        spec: what a model is shown of it.
        needs_approval: whether somebody has to allow each call.
        timeout_s: how long a call may take.
    """

    spec: ToolSpec
    needs_approval: bool
    timeout_s: float
    function: Callable[..., Any]
    arguments: type[BaseModel]
    told: str | None

    def fault(self, arguments: str) -> str | None:
        """Return what is wrong with arguments that a model has written, in words for it; None if nothing is."""
        try:
            self._validated(arguments)
        except BadInput as exc:
            return exc.message
        return None

    def _validated(self, arguments: str) -> dict[str, Any]:
        try:
            validated = self.arguments.model_validate_json(arguments or "{}")
        except ValidationError as exc:
            raise BadInput(f"The arguments of {self.spec.name} do not fit: {_complaints(exc)}.") from exc
        return {name: getattr(validated, name) for name in type(validated).model_fields}


class Tools:
    """Those that a server has; the names are unique."""

    def __init__(self) -> None:
        """Begin with none."""
        self._tools: dict[str, PythonTool] = {}
        self._threads: ThreadPoolExecutor | None = None

    def register(
        self,
        *,
        effect: EffectKind,
        needs_approval: bool | None = None,
        name: str | None = None,
        timeout_s: float = 30.0,
    ) -> Callable[[F], F]:
        """Return what registers a function, which stays as it is.

        Args:
            effect: what a call does to the world: nothing (`pure`), the same however often (`idempotent`), or something each time.
            needs_approval: whether somebody has to allow each call; by default if it is `effectful`.
            name: under which name; by default the function's.
            timeout_s: how long a call may take.

        Raises:
            ValueError: the name is taken or none that can be called, or the signature cannot be put as a JSON Schema.
        """

        def register(function: F) -> F:
            called = function.__name__ if name is None else name
            if not _NAME.fullmatch(called):
                raise ValueError(f"a tool's name has 1 to 64 letters, digits, '_' and '-'; {called!r} has not")
            if called in self._tools:
                raise ValueError(f"there is a tool {called!r} already")
            arguments, told = _signature(function, called)
            parameters = arguments.model_json_schema()
            parameters.pop("title", None)
            self._tools[called] = PythonTool(
                spec=ToolSpec(
                    name=called,
                    description=inspect.getdoc(function) or "",
                    parameters=json.dumps(parameters),
                    runner="server",
                    effect=effect,
                ),
                needs_approval=effect == "effectful" if needs_approval is None else needs_approval,
                timeout_s=timeout_s,
                function=function,
                arguments=arguments,
                told=told,
            )
            return function

        return register

    def __iter__(self) -> Iterator[PythonTool]:
        """Iterate over the tools by name."""
        return iter(sorted(self._tools.values(), key=lambda tool: tool.spec.name))

    def get(self, name: str) -> PythonTool | None:
        """Return a tool, or None if there is none of that name."""
        return self._tools.get(name)

    async def run(self, name: str, arguments: str, call: ToolCall, clock: Clock, deadline_s: float) -> tuple[Part, ...]:
        """Run a tool. What it returns is data, tagged as such: text as it is, parts as they are, anything else as JSON.

        Raises:
            BadInput: there is no such tool, or the arguments do not fit.
            DeadlineExceeded: it took longer than it, or the turn, may. Whatever it does may have been done.
            BatonError: the function raised it.
            Internal: the function failed; the log says how.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise BadInput(f"There is no tool {name!r} here.", code="unknown_tool")
        given = tool._validated(arguments)  # noqa: SLF001  # the registry is its maker
        if tool.told is not None:
            given[tool.told] = call
        try:
            async with clock.timeout_at(min(deadline_s, clock.now_s() + tool.timeout_s)):
                returned = await self._call(tool.function, given)
        except TimeoutError as exc:
            raise DeadlineExceeded(
                f"{name} took longer than it may. Whatever it does may have been done.", code="tool_timeout"
            ) from exc
        except BatonError:
            raise
        except Exception as exc:
            _log.exception("the tool %s failed", name)
            raise Internal(f"{name} failed. It may have done a part of its work.", code="tool_failed") from exc
        return _parts(returned)

    async def _call(self, function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(**given)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tools")
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(**given))

    def close(self) -> None:
        """Wait for nothing that still runs, and begin nothing any more."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


def load_tools(path: Path) -> Tools:
    """Return the tools of a file of Python: its `tools`.

    Raises:
        BadInput: it cannot be read or run, or has none.
    """
    try:
        spec = importlib.util.spec_from_file_location("baton_tools", path)
        if spec is None or spec.loader is None:
            raise BadInput(f"{path} is no file of Python.", field="tools")
        module: ModuleType = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except BatonError:
        raise
    except Exception as exc:
        raise BadInput(f"The tools of {path} cannot be loaded: {type(exc).__name__}: {exc}.", field="tools") from exc
    tools = getattr(module, "tools", None)
    if not isinstance(tools, Tools):
        raise BadInput(f"{path} has no 'tools' that is an agents.tools.python.Tools.", field="tools")
    return tools


def _signature(function: Callable[..., Any], name: str) -> tuple[type[BaseModel], str | None]:
    """Return the arguments of a function as a model, and the parameter that takes the `ToolCall`, if one does."""
    fields: dict[str, Any] = {}
    told = None
    try:
        hints = get_type_hints(function, include_extras=True)
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
                raise ValueError(f"{name}: the parameter {parameter.name!r} cannot be given by name")
            if parameter.name not in hints:
                raise ValueError(f"{name}: the parameter {parameter.name!r} has no type")
            if hints[parameter.name] is ToolCall:
                told = parameter.name
                continue
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
        model = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
        model.model_json_schema()
    except (PydanticUserError, NameError) as exc:
        raise ValueError(f"{name}: its signature cannot be put as a JSON Schema: {exc}") from exc
    return model, told


def _complaints(exc: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, error['loc'])) or 'the whole'}: {error['msg']}"
        for error in exc.errors(include_url=False, include_input=False)[:5]
    )


def _parts(returned: Any) -> tuple[Part, ...]:
    if isinstance(returned, get_args(Part)):
        returned = (returned,)
    if isinstance(returned, tuple) and returned and all(isinstance(part, get_args(Part)) for part in returned):
        # Whatever it says of itself, it was a tool that said it.
        return tuple(replace(part, source="tool") if isinstance(part, TextPart) else part for part in returned)
    text = returned if isinstance(returned, str) else to_json(returned).decode()
    return (TextPart(text=text, source="tool"),)
