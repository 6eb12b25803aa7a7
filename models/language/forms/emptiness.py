"""Whether a JSON Schema admits no value at all, found without any: what nobody can write need not be tried.

What is said is sure, and not all that could be said: a schema of which nothing is said here may still admit nothing. Keywords
that are not looked at only narrow what others admit, so leaving them out errs on the side of an answer. A schema, and what
`$ref` and `allOf` join to it, is looked at as one list of *parts*, all of which a value has to fit; `anyOf` and `oneOf` add
one of their branches at a time. Where a schema needs itself within itself, as an object does that requires another of its kind,
there is no smallest value and so none.

Source: JSON Schema 2020-12. Of older drafts less is said, where they mean other things by the same words. Pure.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from models.language.forms.apart import TYPES, is_same
from models.language.forms.pointers import SchemaPath, pointer_of, resolve, steps

_MOST_LOOKED_AT = 20_000
"""Parts that are looked at before nothing is said, a fifth of a second's work; what people write needs some hundreds."""

_MOST_COMPARED = 512

_MOST_DEPTH = 60
_MOST_POSITIONS = 64


@dataclass(frozen=True, slots=True)
class _Part:
    """A schema that a value has to fit, beside others."""

    node: object
    path: SchemaPath

    def inner(self, *way: str) -> "_Part":
        """Return what is within it."""
        return _Part(resolve(self.node, way), (*self.path, *way))

    def __str__(self) -> str:
        """Return where it is."""
        return pointer_of(self.path) or "the top"


class _Unknown(Exception):
    """It would take too long to find out."""


def why_empty(schema: object, *, is_object: bool = False, is_newest: bool = True) -> str | None:
    """Return why no value fits `schema`, in words that name the place; None if one may.

    Args:
        schema: what it is about; only what is within it is followed.
        is_object: only objects count.
        is_newest: it is of 2020-12 or says nothing that was meant otherwise before.
    """
    parts = [_Part(schema, ())]
    if is_object:
        parts.append(_Part({"type": "object"}, ()))
    try:
        return _Search(schema, is_newest=is_newest).why(parts)
    except (_Unknown, RecursionError):
        return None


class _Search:
    def __init__(self, root: object, *, is_newest: bool) -> None:
        self._root = root
        self._newest = is_newest
        self._follows = not _has_inner_ids(root)
        self._left = _MOST_LOOKED_AT
        self._within: set[frozenset[int]] = set()
        self._may_be: set[frozenset[int]] = set()
        self._twice: dict[int, list[bool]] = {}
        self._kept: list[object] = []  # nodes made here: an `id` of theirs is not to be given to another

    def why(self, parts: Sequence[_Part]) -> str | None:
        """Return why nothing fits all of `parts`."""
        key = frozenset(id(part.node) for part in parts if isinstance(part.node, dict | bool) and part.node is not True)
        if not key or key in self._may_be:
            return None
        if key in self._within:  # a smallest value would have a smaller one within it
            return f"the schema at {parts[0]} requires itself within itself, without end"
        if len(self._within) >= _MOST_DEPTH:
            raise _Unknown
        self._within.add(key)
        try:
            found = self._joined(self._flat(parts, set()), frozenset())
        finally:
            self._within.discard(key)
        if found is None:
            self._may_be.add(key)
        return found

    def _made(self, node: dict[str, Any], path: SchemaPath) -> _Part:
        self._kept.append(node)
        return _Part(node, path)

    def _flat(self, parts: Sequence[_Part], seen: set[str]) -> list[_Part]:
        """Return `parts` with what they refer to and what they join, each once."""
        flat: list[_Part] = []
        waiting = list(reversed(parts))
        while waiting:
            part = waiting.pop()
            self._left -= 1
            if self._left < 0:
                raise _Unknown
            if part.node is False:
                flat.append(part)
            if not isinstance(part.node, dict):
                continue
            reference = part.node.get("$ref")
            if isinstance(reference, str):
                if self._newest:
                    flat.append(part)
                pointer = reference.removeprefix("#")
                if self._follows and reference[:1] == "#" and pointer[:1] in {"", "/"} and pointer not in seen:
                    seen.add(pointer)
                    path = steps(pointer)
                    waiting.append(_Part(resolve(self._root, path), path))
                if not self._newest:
                    continue  # before 2019-09 nothing counts beside it
            else:
                flat.append(part)
            joined = part.node.get("allOf")
            if isinstance(joined, list):
                waiting += [part.inner("allOf", str(at)) for at in reversed(range(len(joined)))]
        return flat

    def _joined(self, flat: list[_Part], chosen: frozenset[tuple[int, str]]) -> str | None:
        """Return why nothing fits a flat list, of which the branches of `chosen` were taken already."""
        if (found := self._plainly(flat)) is not None:
            return found
        for part in flat:
            for keyword in ("anyOf", "oneOf"):
                branches = part.node.get(keyword) if isinstance(part.node, dict) else None
                if not isinstance(branches, list) or not branches or (id(part.node), keyword) in chosen:
                    continue
                taken = chosen | {(id(part.node), keyword)}
                twice = self._is_twice(part.node, branches) if keyword == "oneOf" else [False] * len(branches)
                for at, is_twice in enumerate(twice):
                    if is_twice:
                        continue  # what fits it fits two
                    more = self._flat([part.inner(keyword, str(at))], self._pointers(flat))
                    if self._joined([*flat, *more], taken) is None:
                        return None
                return f"none of '{keyword}' at {part} can be fitted"
        return None

    def _is_twice(self, node: object, branches: list[object]) -> list[bool]:
        """Return for each branch whether there is the same again."""
        key = id(node)
        if key not in self._twice:
            said = [json.dumps(branch, sort_keys=True) for branch in branches]
            count = Counter(said)
            self._twice[key] = [count[text] > 1 for text in said]
        return self._twice[key]

    @staticmethod
    def _pointers(flat: list[_Part]) -> set[str]:
        return {
            part.node["$ref"].removeprefix("#")
            for part in flat
            if isinstance(part.node, dict) and isinstance(part.node.get("$ref"), str)
        }

    def _plainly(self, flat: list[_Part]) -> str | None:
        """Return why nothing fits, choices aside."""
        self._left -= len(flat)
        for part in flat:
            if part.node is False or (isinstance(part.node, dict) and part.node.get("not") in (True, {})):
                return f"{part} admits nothing"
        nodes = _Nodes(flat)
        kinds, whole = nodes.kinds()
        listed = nodes.listed()
        if listed is not None:
            if not any(_fits(value, nodes, kinds, whole) for value in listed):
                return (
                    f"no value of 'enum' or 'const' at {nodes.place_of('enum', 'const')} fits what is asked beside it"
                )
            return None
        whys: list[str] = []
        if not kinds:
            return f"what 'type' at {nodes.place_of('type')} asks for contradicts what is asked beside it"
        for kind in sorted(kinds):
            why = self._why_none(kind, nodes, whole=whole)
            if why is None:
                return None
            whys.append(why)
        return whys[0]

    def _why_none(self, kind: str, nodes: "_Nodes", *, whole: bool) -> str | None:
        """Return why no value of a type fits."""
        match kind:
            case "number":
                return _why_no_number(nodes, whole=whole)
            case "string":
                return nodes.crossed("minLength", "maxLength")
            case "array":
                return self._why_no_array(nodes)
            case "object":
                return self._why_no_object(nodes)
            case _:
                return None

    # Arrays

    def _why_no_array(self, nodes: "_Nodes") -> str | None:
        if (crossed := nodes.crossed("minItems", "maxItems")) is not None:
            return crossed
        if not self._newest:
            return None
        least, most = nodes.largest("minItems"), nodes.smallest("maxItems")
        for part, node in nodes:
            count = node.get("minContains", 1)
            if "contains" in node and _is_number(count) and count > 0:
                if most < count:
                    return f"'contains' at {part} asks for more elements than 'maxItems' admits"
                if (why := self.why([part.inner("contains")])) is not None:
                    return why
                least = max(least, 1)
        # Beyond what is listed by position, all are alike.
        for at in range(min(int(least), _MOST_POSITIONS)):
            if (why := self.why([*_elements(nodes, at)])) is not None:
                return why
        return None

    # Objects

    def _why_no_object(self, nodes: "_Nodes") -> str | None:
        if (crossed := nodes.crossed("minProperties", "maxProperties")) is not None:
            return crossed
        least, most = nodes.largest("minProperties"), nodes.smallest("maxProperties")
        required = nodes.required(depends=self._newest)
        if len(required) > most:
            return f"more is 'required' than 'maxProperties' at {nodes.place_of('maxProperties')} admits"
        for name, place in required.items():
            asked = [*_members(nodes, name)]
            if (why := self.why(asked)) is not None:
                return f"{name[:60]!r} is required at {place}, and {why}"
            names = [part.inner("propertyNames") for part, node in nodes if "propertyNames" in node]
            if names and self.why([*names, self._made({"const": name}, ())]) is not None:
                return f"{name[:60]!r} is required at {place}, and 'propertyNames' does not admit it"
        for part, node in nodes:
            listed = node.get("properties", {})
            is_closed = node.get("additionalProperties") is False and not node.get("patternProperties")
            if not is_closed or not isinstance(listed, dict):
                continue
            if len(listed) >= least > 0:
                open_ = sum(self.why([*_members(nodes, name)]) is None for name in listed)
            else:
                open_ = len(listed)
            if open_ < least:
                return f"'minProperties' at {nodes.place_of('minProperties')} asks for more than {part} admits"
        return None


class _Nodes:
    """The parts that are objects, in a flat list."""

    def __init__(self, flat: Sequence[_Part]) -> None:
        self._all = [(part, part.node) for part in flat if isinstance(part.node, dict)]

    def __iter__(self) -> Iterator[tuple[_Part, dict[str, Any]]]:
        return iter(self._all)

    def place_of(self, *keywords: str) -> str:
        """Return where the first that has one of `keywords` is."""
        return str(next((part for part, node in self._all if node.keys() & set(keywords)), "the top"))

    def kinds(self) -> tuple[set[str], bool]:
        """Return the types that all admit, with integers among numbers; and whether numbers are integers only."""
        kinds, whole = set(TYPES) - {"integer"}, False
        for _, node in self._all:
            named = node.get("type")
            given = set(named) if isinstance(named, list) else {named} if isinstance(named, str) else set(TYPES)
            if node.get("nullable") is True:  # OpenAPI 3.0
                given |= {"null"}
            whole = whole or ("integer" in given and "number" not in given)
            kinds &= {"number" if kind == "integer" else kind for kind in given}
            refused = node.get("not")
            if isinstance(refused, dict) and refused.keys() == {"type"} and isinstance(refused["type"], str):
                kinds -= {refused["type"]}
                if whole and refused["type"] == "integer":
                    kinds -= {"number"}
        return kinds, whole

    def listed(self) -> list[Any] | None:
        """Return the values that all list, as far as any does."""
        lists = [[node["const"]] for _, node in self._all if "const" in node]
        lists += [node["enum"] for _, node in self._all if isinstance(node.get("enum"), list)]
        if not lists:
            return None
        if len(lists) > 1 and sum(map(len, lists)) > _MOST_COMPARED:
            raise _Unknown
        first, *others = sorted(lists, key=len)
        return [value for value in first if all(any(is_same(value, one) for one in each) for each in others)]

    def largest(self, keyword: str) -> float:
        """Return the largest of what all say of a least count."""
        return max((node[keyword] for _, node in self._all if _is_number(node.get(keyword))), default=0)

    def smallest(self, keyword: str) -> float:
        """Return the smallest of what all say of a greatest count."""
        return min((node[keyword] for _, node in self._all if _is_number(node.get(keyword))), default=math.inf)

    def crossed(self, least: str, most: str) -> str | None:
        """Return that a least count is above the greatest, if so."""
        if self.largest(least) > self.smallest(most):
            return f"'{least}' at {self.place_of(least)} is above '{most}' at {self.place_of(most)}"
        return None

    def required(self, *, depends: bool) -> dict[str, str]:
        """Return the names that an object has to have, with where that is said."""
        found: dict[str, str] = {}
        for part, node in self._all:
            for name in node["required"] if isinstance(node.get("required"), list) else ():
                if isinstance(name, str):
                    found.setdefault(name, str(part))
        waiting = list(found) if depends else []
        while waiting:
            name = waiting.pop()
            for part, node in self._all:
                asked = node.get("dependentRequired")
                more = asked.get(name) if isinstance(asked, dict) else None
                for other in more if isinstance(more, list) else ():
                    if isinstance(other, str) and other not in found:
                        found[other] = str(part)
                        waiting.append(other)
        return found


def _is_number(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _elements(nodes: _Nodes, at: int) -> Iterator[_Part]:
    """Yield what the element at a place has to fit."""
    for part, node in nodes:
        first = node.get("prefixItems")
        count = len(first) if isinstance(first, list) else 0
        if at < count:
            yield part.inner("prefixItems", str(at))
        elif isinstance(node.get("items"), dict | bool):
            yield part.inner("items")


def _members(nodes: _Nodes, name: str) -> Iterator[_Part]:
    """Yield what the member of a name has to fit, as far as no expression has to be tried."""
    for part, node in nodes:
        listed = node.get("properties")
        if isinstance(listed, dict) and name in listed:
            yield _Part(listed[name], (*part.path, "properties", name))
        elif isinstance(node.get("additionalProperties"), dict | bool) and not node.get("patternProperties"):
            yield part.inner("additionalProperties")


def _why_no_number(nodes: _Nodes, *, whole: bool) -> str | None:
    lows = [
        (node[key], key) for _, node in nodes for key in ("minimum", "exclusiveMinimum") if _is_number(node.get(key))
    ]
    highs = [
        (node[key], key) for _, node in nodes for key in ("maximum", "exclusiveMaximum") if _is_number(node.get(key))
    ]
    if not lows or not highs:
        return None
    (low, below), (high, above) = max(lows), min(highs)
    is_open = any(bound == low and key == "exclusiveMinimum" for bound, key in lows) or any(
        bound == high and key == "exclusiveMaximum" for bound, key in highs
    )
    if whole:
        least = math.floor(low) + 1 if (low, "exclusiveMinimum") in lows else math.ceil(low)
        most = math.ceil(high) - 1 if (high, "exclusiveMaximum") in highs else math.floor(high)
        is_empty = least > most
    else:
        is_empty = low > high or (low == high and is_open)
    return f"'{below}' at {nodes.place_of(below)} leaves nothing up to '{above}'" if is_empty else None


def _fits(value: object, nodes: _Nodes, kinds: set[str], whole: bool) -> bool:
    """Return whether a listed value fits what is plain to see."""
    match value:
        case None:
            return "null" in kinds
        case bool():
            return "boolean" in kinds
        case int() | float():
            if "number" not in kinds or (whole and isinstance(value, float) and not value.is_integer()):
                return False
            itself = _Part({"minimum": value, "maximum": value}, ())
            return _why_no_number(_Nodes([*(part for part, _ in nodes), itself]), whole=False) is None
        case str():
            return "string" in kinds and nodes.largest("minLength") <= len(value) <= nodes.smallest("maxLength")
        case list():
            return "array" in kinds and nodes.largest("minItems") <= len(value) <= nodes.smallest("maxItems")
        case dict():
            return (
                "object" in kinds
                and nodes.largest("minProperties") <= len(value) <= nodes.smallest("maxProperties")
                and value.keys() >= nodes.required(depends=False).keys()
            )
        case _:
            return True


def _has_inner_ids(root: object) -> bool:
    """Return whether a schema within has a name of its own: references there lead elsewhere than they look."""
    waiting = [*root.values()] if isinstance(root, dict) else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if isinstance(node.get("$id", node.get("id")), str):
                return True
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return False
