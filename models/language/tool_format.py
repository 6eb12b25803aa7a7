"""Calls of functions: how they are offered to a model, which answers are calls, and how a call is read as it is written.

Models write calls as JSON between marks. Two forms are known, and the chat template tells which:

```
TAGGED    <tool_call>              templates that offer functions themselves: Qwen 2.5 and 3, SmolLM3, Hermes
          {"name": "f", "arguments": {…}}
          </tool_call>             as often as there are calls
LISTED    <tool_call>[{"name": "f", "arguments": {…}}, …]</tool_call>
                                   all others, who are told so; SmolLM2-Instruct was taught it
```

Pure, and without torch.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, assert_never

from models.content import CallDelta
from models.errors import BadInput
from models.ids import new_id
from models.ports.generate import (
    Form,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    ToolConstraint,
    ToolSpec,
)

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"

_MOST_CALLS = 16
"""In one answer. A small model that may go on calling goes on until its answer is cut."""

JSON_STYLE: dict[str, Any] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "lenient": False,
}
"""How JSON is written: as `json.dumps` and nearly all training data have it, on one line.

Nothing is left to choose between two values: a small model cannot write white space for ever, and what a schema forces
is forced for whole runs of tokens, which then are drafts that cost nothing. The names are llguidance's.
"""


_OPENS = frozenset(
    {"additionalProperties", "patternProperties", "minProperties", "propertyNames", "allOf", "anyOf", "oneOf", "$ref"}
)
"""Keywords by which a schema names further properties, here or elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a model writes calls.

    Attributes:
        native: its chat template takes `tools`, and says itself how they are called.
        listed: all calls are one list between one pair of marks, instead of each having its own.
    """

    native: bool
    listed: bool

    def write(self, name: str, arguments: object) -> str:
        """Return a call as the model would have written it; `arguments` are JSON's values, or text that is no JSON."""
        said = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        call = f'{{"name": {json.dumps(name)}, "arguments": {said}}}'
        return f"{_OPEN}[{call}]{_CLOSE}" if self.listed else f"{_OPEN}\n{call}\n{_CLOSE}"


TAGGED = CallFormat(native=True, listed=False)
LISTED = CallFormat(native=False, listed=True)


WORDS_ONLY = r"""start: WORDS
WORDS: /(?s:.*)/ & ~/(?s:.*<tool_c.*)/"""
"""An answer that calls nothing, nor begins to, as a grammar in llguidance's variant of Lark."""


def format_of(chat_template: str) -> CallFormat:
    """Return how calls are written by the model that `chat_template` belongs to."""
    return TAGGED if re.search(r"\btools\b", chat_template) and _OPEN in chat_template else LISTED


def offered(constraint: ToolConstraint) -> tuple[ToolSpec, ...]:
    """Return the functions that may be called."""
    if constraint.choice == "none":
        return ()
    return tuple(tool for tool in constraint.tools if constraint.function in {None, tool.name})


def tools_for_template(constraint: ToolConstraint) -> list[dict[str, Any]]:
    """Return the functions that may be called, as chat templates take `tools`.

    Raises:
        BadInput: the parameters of a function are not an object's schema.
    """
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": _schema(tool, constraint.place_of(tool.name)),
            },
        }
        for tool in offered(constraint)
    ]


def offer_in_words(constraint: ToolConstraint, tools: list[dict[str, Any]]) -> str:
    """Return what the system message says of `tools` to a model whose chat template does not."""
    lines = [
        "You can call functions. These are there, with the JSON Schema of their parameters:",
        f"<tools>{json.dumps([tool['function'] for tool in tools], ensure_ascii=False)}</tools>",
        "A call is written like this, and nothing else with it:",
        f'{_OPEN}[{{"name": "function_name", "arguments": {{"parameter": "value"}}}}]{_CLOSE}',
    ]
    if constraint.choice == "auto" and constraint.function is None:
        lines.append("If no function helps with what is asked, answer in words.")
    return "\n".join(lines)


def grammar(
    constraint: ToolConstraint, form: CallFormat, tokens: Mapping[str, int] = MappingProxyType({})
) -> str | None:
    """Return the answers that `constraint` admits, as a grammar in llguidance's variant of Lark; None if any is.

    Args:
        constraint: the functions on offer.
        form: how the model writes calls.
        tokens: the vocabulary's added tokens; a mark that is one is written as that, and not spelled.

    Raises:
        BadInput: a name is offered twice, or the parameters of a function are not an object's schema.
    """
    tools = offered(constraint)
    if not tools:
        return None
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        last = max(at for at, tool in enumerate(constraint.tools) if tool.name == twice[0])
        raise BadInput(f"The function {twice[0]!r} is offered twice. Offer it once.", field=f"tools[{last}].name")
    more = _MOST_CALLS - 1 if constraint.parallel and constraint.function is None else 0
    if form.listed:
        again = f' (", " call){{0,{more}}}' if more else ""
        rest = f'rest: "[" call{again} "]" close'
    else:
        again = f' ("\\n" open "\\n" call "\\n" close){{0,{more}}}' if more else ""
        rest = f'rest: "\\n" call "\\n" close{again}'
    if constraint.choice == "required" or constraint.function is not None:
        start = "start: open rest"
    elif constraint.form is not None:
        start = "start: open rest | form"
    else:
        # Lazy: the first mark ends the words, spelled or not. What turns out to be none, such as `<tool>`, is words, too.
        start = f"start: WORDS | spelled rest{' | WORDS open rest' if _OPEN in tokens else ''}"
        start += f"\nspelled[lazy]: WORDS {json.dumps(_OPEN)}"
    lines = [
        start,
        *(["WORDS: /(?s:.*)/"] if "WORDS" in start else []),
        *([f"form: {_of_form(constraint.form)}"] if constraint.form is not None and "form" in start else []),
        rest,
        *(
            f"{name}: <[{tokens[mark]}]>" if mark in tokens else f"{name}: {json.dumps(mark)}"
            for name, mark in (("open", _OPEN), ("close", _CLOSE))
        ),
        "call: " + " | ".join(f"call{n}" for n in range(len(tools))),
    ]
    for n, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name)}, "arguments": '
        # Each schema is a document of its own, so that the `$ref`s in it lead where they led.
        schema = json.dumps(arguments_schema(tool, constraint.place_of(tool.name)))
        lines += [f'call{n}: {json.dumps(head)} arguments{n} "}}"', f"arguments{n}: %json {schema}"]
    return "\n".join(lines)


def _of_form(form: Form) -> str:
    """Return a form as what a rule of Lark derives. Each is a document of its own, whose names are not those around it."""
    match form:
        case JsonSchemaConstraint(schema=text):
            return f"%json {json.dumps({**form_schema(text), 'x-guidance': JSON_STYLE})}"
        case RegexConstraint(pattern=pattern):
            return "%lark {\nstart: FORM\nFORM: " + _expression(pattern) + "\n}"
        case GrammarConstraint(grammar=text):
            return "%lark {\n" + text + "\n}"
        case _:
            assert_never(form)


def json_object(text: str) -> dict[str, Any]:
    """Return the schema that `text` is, as an object.

    Raises:
        BadInput: it is no JSON, or neither an object nor a boolean.
    """
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"The JSON schema is no JSON: {exc}.", field="constraint.json_schema") from exc
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if not isinstance(schema, dict):
        raise BadInput("The JSON schema has to be an object.", field="constraint.json_schema")
    return schema


def form_schema(text: str) -> dict[str, Any]:
    """Return the schema that an answer in words fits: an object at the top that names members has no others, see `closed`.

    Raises:
        BadInput: it is no JSON, or neither an object nor a boolean.
    """
    schema = json_object(text)
    return closed(schema) if schema.get("properties") else schema


def _expression(pattern: str) -> str:
    """Return a regular expression as Lark writes it: between slashes, on one line."""
    written = re.sub(
        r"\\.|/|\n", lambda found: {"/": "\\/", "\n": "\\n"}.get(found[0], found[0]), pattern, flags=re.DOTALL
    )
    return f"/{written}/"


def _schema(tool: ToolSpec, field: str, *, held: bool = False) -> dict[str, Any]:
    """Return the schema of a function's arguments as it was given at `field`, or what is held of it."""
    try:
        schema = json.loads(tool.held if held and tool.held is not None else tool.parameters)
    except ValueError as exc:
        raise BadInput(f"The parameters of the function {tool.name!r} are no JSON: {exc}.", field=field) from exc
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise BadInput(
            f"The parameters of the function {tool.name!r} are not an object's schema. Write "
            '{"type": "object", "properties": …}.',
            field=field,
        )
    return schema


def arguments_schema(tool: ToolSpec, field: str = "tools") -> dict[str, Any]:
    """Return the schema that a call's arguments fit; `field` is the place of the function's parameters.

    A function takes what it names: unless its own schema says otherwise, there is nothing else in them.

    Raises:
        BadInput: the parameters are not an object's schema.
    """
    return {**closed({"type": "object", **_schema(tool, field, held=True)}), "x-guidance": JSON_STYLE}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object that has no members but those it names, unless it says otherwise.

    What it does not forbid it admits, but a small model that may invent members goes on until its answer is cut.
    """
    named = schema.get("properties", {})
    required = schema.get("required", [])
    is_closed = (
        not schema.keys() & _OPENS
        and isinstance(named, dict)
        and isinstance(required, list)
        and set(required) <= set(named)
    )
    return {**schema, "additionalProperties": False} if is_closed else schema


_HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL = re.compile(r"\s*\}\s*(?:(,)|\]?\s*" + re.escape(_CLOSE) + ")")
_BRACKETS = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


def begins_call(words: str) -> bool:
    """Return whether a call has begun in `words`, or its mark may have at their end."""
    return _OPEN in words or _overlap(words) > 0


def _overlap(words: str) -> int:
    """Return the length of the longest end of `words` that a mark may begin with."""
    return next((n for n in range(len(_OPEN) - 1, 0, -1) if words.endswith(_OPEN[:n])), 0)


class CallReader:
    """Parts the words of an answer from its calls, as it is written. The answer is one that `grammar` admits.

    Attributes:
        called: whether a call has begun.
    """

    def __init__(self, *, either: bool = False) -> None:
        """Begin; `either` says that an answer is calls from its beginning, or words to its end, whatever they are."""
        self.called = False
        self._either = either
        self._state: Literal["words", "head", "arguments", "tail"] = "words"
        self._held = ""
        self._said = False
        self._call = ("", "")
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> tuple[str, list[CallDelta]]:
        """Take the next piece of the answer; return the words that are certain now, and what comes of calls after them.

        The first delta of a call has its name and no arguments.
        """
        self._held += text
        words, deltas = "", []
        while True:
            before = self._state, len(self._held)
            match self._state:
                case "words":
                    words += self._words()
                case "head":
                    deltas += self._head()
                case "arguments":
                    deltas += self._arguments()
                case "tail":
                    self._tail()
                case _:
                    assert_never(self._state)
            if before == (self._state, len(self._held)) or not self._held:
                return words, deltas

    def finish(self, reason: Literal["stop", "length"]) -> tuple[str, Literal["stop", "length", "calls"]]:
        """Return the words that were held back, and why the answer ended; a call that was cut short is no call.

        What may have become a mark, had the answer not been cut, is no word.
        """
        rest, self._held = self._held if self._state == "words" and not self.called else "", ""
        if reason == "length" and not (self._either and self._said):
            rest = rest[: len(rest) - _overlap(rest)]
        if self._state != "words":
            return rest, "length"
        return rest, "calls" if self.called and reason == "stop" else reason

    def _words(self) -> str:
        if self._either and self._said:
            words, self._held = self._held, ""
            return words
        words, mark, rest = self._held.partition(_OPEN)
        if self._either and words.strip():  # so it does not begin with the mark
            words, mark, rest = self._held, "", ""
            if not (_OPEN.startswith(words.lstrip()) and not self.called):
                self._said, self._held = True, ""
                return words
        if mark:
            self._held, self._state = rest, "head"
        else:
            keep = _overlap(words)
            words, self._held = words[: len(words) - keep], words[len(words) - keep :]
        if self.called:  # between calls there are line breaks and nothing else
            return ""
        if not self._said and not words.strip():  # so are there before the first, and they are no message
            if not mark:
                self._held = words + self._held
            return ""
        self._said = True
        return words

    def _head(self) -> list[CallDelta]:
        found = _HEAD.match(self._held)
        if found is None:
            return []
        self._held = self._held[found.end() :]
        self._call = (new_id("call"), json.loads(found[1]))
        self._state, self._depth, self.called = "arguments", 0, True
        return [CallDelta(call_id=self._call[0], name=self._call[1], arguments="")]

    def _arguments(self) -> list[CallDelta]:
        end = self._end_of_arguments()
        arguments, self._held = self._held[:end], self._held[end:]
        call_id, name = self._call
        return [CallDelta(call_id=call_id, name=name, arguments=arguments)] if arguments else []

    def _end_of_arguments(self) -> int:
        """Follow the brackets; return where the arguments end, or what is held of them."""
        at = 0
        if self._escaped and self._held:
            at, self._escaped = 1, False
        while found := (_IN_STRING if self._quoted else _BRACKETS).search(self._held, at):
            at = found.end()
            match found[0]:
                case '"':
                    self._quoted = not self._quoted
                case "\\":
                    self._escaped = at == len(self._held)
                    at += 1
                case "{" | "[":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    if self._depth == 0:
                        self._state = "tail"
                        return at
        return len(self._held)

    def _tail(self) -> None:
        found = _TAIL.match(self._held)
        if found is not None:
            self._held = self._held[found.end() :]
            self._state = "head" if found[1] else "words"
