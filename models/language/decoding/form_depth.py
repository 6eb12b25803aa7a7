"""How deep a form refers and nests, found without recursion, before native code that recurses is given it.

llguidance follows references and rules by calls of its own, a frame or more each: with eight mebibytes of stack it dies of
`$ref` chains of 2,400, of objects and references of 900, of rules of 2,600. What is followed here is followed as it does: each
place once, the first time that it is met. Pure.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from models.errors import LimitExceeded
from models.language.tool_format import offered
from models.ports.generate import Constraint, GrammarConstraint, JsonSchemaConstraint, RegexConstraint, ToolConstraint

MOST_DEPTH = 500
"""Steps from the top of a schema, along members, elements and references; and rules that follow from one another."""

_MOST_NODES = 50_000

_MOST_NESTED = 150
"""Members and elements within one another: what writes a prompt of them recurses, too."""

_MOST_CHARACTERS = 200_000
_MOST_BRACKETS = 200


def check_depth(constraint: Constraint) -> None:
    """Check that a form neither refers nor nests deeper than native code can follow.

    Raises:
        LimitExceeded: it does, or it is too large to be looked through.
    """
    match constraint:
        case JsonSchemaConstraint(schema=schema):
            _check_schema(schema, "JSON schema", "constraint.json_schema")
        case RegexConstraint(pattern=pattern):
            _check_text(pattern, "regular expression", "constraint.regex")
        case GrammarConstraint(grammar=grammar):
            _check_text(grammar, "grammar", "constraint.grammar")
            rules = _rules(grammar)
            if _is_deeper(rules, rules, MOST_DEPTH):
                raise _too_deep(
                    "grammar", f"its rules follow from one another more than {MOST_DEPTH} times", "constraint.grammar"
                )
        case ToolConstraint():
            for tool in offered(constraint):
                what = f"JSON schema of the function {tool.name!r}"
                _check_schema(tool.parameters, what, constraint.place_of(tool.name))
            if constraint.form is not None:
                check_depth(constraint.form)


def _check_schema(text: str, what: str, field: str) -> None:
    try:
        root = json.loads(text)
    except RecursionError as exc:
        raise _too_deep(what, "it is nested too deep", field) from exc
    except ValueError:
        return  # whoever reads it says what is wrong
    edges = _Places(root)
    if _is_deeper(edges, [()], MOST_DEPTH):
        raise _too_deep(what, f"it refers and nests more than {MOST_DEPTH} deep", field)
    if edges.are_too_many:
        raise _too_deep(what, f"it has more than {_MOST_NODES} places, or nests more than {_MOST_NESTED} deep", field)


def _check_text(text: str, what: str, field: str) -> None:
    if len(text) > _MOST_CHARACTERS:
        raise _too_deep(what, f"it has more than {_MOST_CHARACTERS} characters", field)
    depth = deepest = 0
    for bracket in re.findall(r"\\.|[()\[\]{}]", text, re.DOTALL):
        depth += 1 if bracket in "([{" else -1 if bracket in ")]}" else 0
        depth = max(depth, 0)
        deepest = max(deepest, depth)
    if deepest > _MOST_BRACKETS:
        raise _too_deep(what, f"its brackets are nested more than {_MOST_BRACKETS} deep", field)


class _Places:
    """Where one comes to from each place of a JSON value: its members or elements, and what it refers to."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[tuple[str | int, ...], Any] = {(): root}
        self.are_too_many = False

    def __getitem__(self, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        value = self._known[place]
        steps: Iterable[tuple[str | int, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for step, inner in steps:
            if step in {"$ref", "$dynamicRef", "$recursiveRef"} and isinstance(inner, str) and inner.startswith("#"):
                target = self._referred(inner)
                if target is not None:
                    yield target
            elif isinstance(inner, dict | list):
                if len(self._known) >= _MOST_NODES or len(place) >= _MOST_NESTED:
                    self.are_too_many = True
                    return
                self._known[(*place, step)] = inner
                yield (*place, step)

    def _referred(self, reference: str) -> tuple[str | int, ...] | None:
        place: tuple[str | int, ...] = ()
        value = self._root
        for raw in reference.removeprefix("#").split("/")[1:]:
            step: str | int = unquote(raw).replace("~1", "/").replace("~0", "~")
            if isinstance(value, list):
                step = int(step) if str(step).isascii() and str(step).isdecimal() else -1
                if not 0 <= step < len(value):
                    return None
                value = value[step]
            elif isinstance(value, dict) and step in value:
                value = value[str(step)]
            else:
                return None
            place = (*place, step)
        self._known[place] = value
        return place


_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_]\w*)[^:\n]*:(?!:)", re.MULTILINE)
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*|#[^\n]*')
_NAME = re.compile(r"[A-Za-z_]\w*")


def _rules(grammar: str) -> dict[str, list[str]]:
    """Return the names in the body of each rule of a grammar in Lark's notation."""
    plain = _QUOTED.sub('""', grammar)
    heads = list(_RULE.finditer(plain))
    ends = [head.start() for head in heads[1:]] + [len(plain)]
    return {head[1]: _NAME.findall(plain[head.end() : end]) for head, end in zip(heads, ends, strict=True)}


def _is_deeper(edges: Mapping[Any, Iterable[Any]] | _Places, starts: Iterable[Any], most: int) -> bool:
    """Return whether following `edges`, each place once, goes more than `most` steps deep."""
    seen: set[Any] = set()
    for start in starts:
        if start in seen:
            continue
        seen.add(start)
        path = [iter(edges[start])]
        while path:
            following = next((place for place in path[-1] if place not in seen and _leads_on(edges, place)), None)
            if following is None:
                path.pop()
                continue
            seen.add(following)
            path.append(iter(edges[following]))
            if len(path) > most + 1:
                return True
    return False


def _leads_on(edges: Mapping[Any, Iterable[Any]] | _Places, place: Any) -> bool:
    return isinstance(edges, _Places) or place in edges


def _too_deep(what: str, why: str, field: str) -> LimitExceeded:
    return LimitExceeded(f"The {what} cannot be followed: {why}. Make it simpler.", field=field)
