"""What of a JSON Schema a grammar can hold: the same schema without the rest, and what that rest is.

Each keyword is of one of three kinds: the grammar *holds* it, as it is or written otherwise; it *says nothing* about which
values fit (annotations, and keywords that the standard does not know); or it is *loosened*, which is to leave it out, so
that more is admitted than fits. Nothing is ever held back in silence: what was loosened is told by name and place.

A schema may be *narrowed* as well: of what it admits, only a part whose values fit what was loosened, where there is a
simple one, such as lists of one member for `uniqueItems`. It is for answers that did not fit at the first attempt.

Source: JSON Schema 2020-12, and drafts 4 to 2019-09 where they differ. What grammars hold was found by trying llguidance 1.9
(`tests/models/language/forms/test_loosen.py`).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from models.errors import BadInput, LimitExceeded
from models.language.forms.apart import (
    MOST_DEPTH,
    SAYING,
    TYPES,
    admits_strings,
    are_apart,
    is_plain,
    is_same,
    kinds_of,
    listed_values,
)
from models.language.forms.bounds import EXACT, bound_inside, has_few_remainders, number_of, width_between
from models.language.forms.expressions import pattern_of_names, without_look_ahead
from models.language.forms.formats import FORMATS
from models.language.forms.pointers import SchemaPath, pointer_of, resolve, steps

Schema = dict[str, Any] | bool
Node = dict[str, Any]
More = list[dict[str, Any]]

_MOST_NODES = 20_000
_MOST_TRIED = 500
_MOST_REPEATS = 1 << 20  # no answer is so long: a bound above it bounds nothing

_LOOSENED = (
    "$dynamicRef",
    "$recursiveRef",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedItems",
    "unevaluatedProperties",
)
"""Keywords that no grammar holds, whatever their value; the others have a method each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A keyword that was loosened; `pointer` leads to the schema that has it (RFC 6901)."""

    keyword: str
    pointer: str

    def __str__(self) -> str:
        """Return it in words."""
        return f"'{self.keyword}' at {self.pointer or 'the top'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loosened:
    """A schema that a grammar holds.

    Attributes:
        schema: in the words of 2020-12, with its references to its own `$defs`.
        dropped: what it does not hold of what was given; the rest is held exactly.
    """

    schema: Schema
    dropped: tuple[Dropped, ...]


def loosen(
    schema: object,
    *,
    holds: Callable[[dict[str, Any]], bool],
    narrow: bool = False,
    strict: bool = False,
    coarse: bool = False,
) -> Loosened:
    """Return `schema` as far as a grammar holds it.

    Args:
        schema: as it was given; it stays as it is.
        holds: whether a grammar can be made of a small schema: of an expression, of bounds.
        narrow: admit, of what is loosened, only what surely fits, where that is simple to say.
        strict: a format that is not known is loosened, not an annotation.
        coarse: hold nothing but what an answer is made of: types, properties, items, choices.

    Raises:
        BadInput: it is no schema.
        LimitExceeded: it is nested too deep, or too large.
    """
    return _Walk(schema, holds=holds, narrow=narrow, strict=strict, coarse=coarse).run()


class _Walk:
    def __init__(
        self,
        root: object,
        *,
        holds: Callable[[dict[str, Any]], bool],
        narrow: bool,
        strict: bool,
        coarse: bool,
    ) -> None:
        self._root = root
        self._makes = holds
        self._tried: dict[str, bool] = {}
        self._narrow = narrow
        self._strict = strict
        self._coarse = coarse
        self._dropped: dict[Dropped, None] = {}
        self._open = 0  # how often something was loosened that narrowing does not make good
        self._names: dict[str, str] = {}
        self._nodes = 0

    def run(self) -> Loosened:
        root = self._schema(self._root, ())
        defs: dict[str, Schema] = {}
        while len(defs) < len(self._names):
            for pointer, name in list(self._names.items()):
                if name not in defs:
                    path = steps(pointer)
                    defs[name] = self._schema(resolve(self._root, path), path)
        if defs:
            root = {**(root if isinstance(root, dict) else {"allOf": [root]}), "$defs": defs}
        return Loosened(schema=root, dropped=tuple(self._dropped))

    def _holds(self, small: dict[str, Any]) -> bool:
        key = json.dumps(small)
        if key not in self._tried:
            if len(self._tried) >= _MOST_TRIED:
                raise LimitExceeded(f"The schema has more than {_MOST_TRIED} expressions and bounds. Make it simpler.")
            self._tried[key] = self._makes(small)
        return self._tried[key]

    # One schema

    def _schema(self, node: object, path: SchemaPath) -> Schema:
        self._nodes += 1
        if len(path) > 2 * MOST_DEPTH or self._nodes > _MOST_NODES:
            raise LimitExceeded(f"The schema is nested deeper than {MOST_DEPTH}, or too large. Make it simpler.")
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise BadInput(f"What is at {pointer_of(path) or 'the top'} is no schema: write an object or a boolean.")
        if node.get("not") is True or node == {"not": {}}:
            return False
        if self._coarse:
            node = self._coarsened(node, path)
        out: dict[str, Any] = {}
        also: list[dict[str, Any]] = []
        for step in (
            self._reference,
            self._type,
            self._values,
            self._numbers,
            self._strings,
            self._arrays,
            self._objects,
            self._branches,
            self._conditions,
            self._others,
        ):
            step(node, path, out, also)
        if len(also) == 1 and not out.keys() & also[0].keys():
            out |= also[0]
        elif also:
            out["allOf"] = [*out.get("allOf", ()), *also]
        return out

    def _coarsened(self, node: Node, path: SchemaPath) -> dict[str, Any]:
        for keyword in sorted(node.keys() & _FINER):
            self._loosen(keyword, path)
        return {keyword: value for keyword, value in node.items() if keyword not in _FINER}

    def _others(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        for keyword in _LOOSENED:
            if keyword in node and node[keyword] not in ({}, True):
                self._loosen(keyword, path, made_good=self._dependencies(keyword, node, out))

    def _loosen(self, keyword: str, path: SchemaPath, *, made_good: bool = False) -> None:
        self._dropped.setdefault(Dropped(keyword=keyword, pointer=pointer_of(path)))
        self._open += not made_good

    def _reference(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        if "$ref" not in node:
            return
        pointer = self._local(node["$ref"])
        if pointer is None:
            self._loosen("$ref", path)
            return
        name = self._names.setdefault(pointer, f"d{len(self._names)}")
        out["$ref"] = f"#/$defs/{name}"

    def _local(self, ref: object) -> str | None:
        """Return the pointer that a reference within the document is; None if it leads elsewhere, or nowhere."""
        if not isinstance(ref, str):
            return None
        base, mark, pointer = ref.partition("#")
        own = self._root.get("$id", self._root.get("id")) if isinstance(self._root, dict) else None
        if (base and base != str(own).rstrip("#")) or not (mark or base) or (pointer and pointer[0] != "/"):
            return None
        target = resolve(self._root, steps(pointer))
        return pointer if isinstance(target, dict | bool) else None

    def _type(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        if "type" not in node:
            return
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        if unknown := [kind for kind in kinds if not isinstance(kind, str) or kind not in TYPES]:
            raise BadInput(f"Invalid type: {str(unknown[0])[:60]} at {pointer_of(path) or 'the top'} of the schema.")
        out["type"] = node["type"]
        if node.get("nullable") is True and "null" not in kinds:  # OpenAPI 3.0
            out["type"] = [*kinds, "null"]

    def _values(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        if "const" in node:
            if is_plain(node["const"], path):
                out["const"] = node["const"]
            else:
                self._loosen("const", path)
        if "enum" in node:
            if not isinstance(node["enum"], list):
                raise BadInput(f"'enum' at {pointer_of(path) or 'the top'} of the schema is no list.")
            plain = [value for value in node["enum"] if is_plain(value, path)]
            if plain or not node["enum"]:
                out["enum"] = plain
            else:
                self._loosen("enum", path)

    # Numbers

    def _numbers(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        whole = node.get("type") == "integer"
        low, high = self._bound(node, "inimum", path), self._bound(node, "aximum", path)
        for (value, exclusive), keyword, sign in ((low, "minimum", 1), (high, "maximum", -1)):
            if value is None:
                continue
            bound = bound_inside(
                value, exclusive=exclusive, whole=whole, sign=sign, width=width_between(low[0], high[0])
            )
            if bound is None:
                self._loosen(keyword if keyword in node else f"exclusive{keyword.capitalize()}", path)
            else:
                out[keyword] = bound
        bounds = _of(out, "minimum", "maximum")
        is_plain = whole and all(abs(bound) <= EXACT for bound in bounds.values())
        if bounds and not is_plain and not self._holds({"type": "integer" if whole else "number", **bounds}):
            for keyword in bounds:
                del out[keyword]
                self._loosen(keyword, path)
        if "multipleOf" in node or "divisibleBy" in node:
            step = number_of(node.get("multipleOf", node.get("divisibleBy")), "multipleOf", path)
            small: dict[str, Any] = {"type": "integer" if whole else "number", "multipleOf": step}
            small |= _of(out, "minimum", "maximum")
            if step > 0 and has_few_remainders(step) and self._holds(small):
                out["multipleOf"] = step
            else:
                self._loosen("multipleOf", path)

    @staticmethod
    def _bound(node: Node, name: str, path: SchemaPath) -> tuple[int | float | None, bool]:
        """Return the tighter of two bounds, and whether it is itself excluded."""
        inclusive, exclusive = f"m{name}", f"exclusiveM{name}"
        value = None if node.get(inclusive) is None else number_of(node[inclusive], inclusive, path)
        beyond = node.get(exclusive)
        if isinstance(beyond, bool) or beyond is None:  # draft 4 has it so
            return value, beyond is True
        bound = number_of(beyond, exclusive, path)
        tighter = value is None or (bound >= value if name == "inimum" else bound <= value)
        return (bound, True) if tighter else (value, False)

    # Strings

    def _strings(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        self._counts(node, "Length", path, out)
        pattern, name = node.get("pattern"), node.get("format")
        if pattern is not None:
            if not isinstance(pattern, str):
                raise BadInput(f"'pattern' at {pointer_of(path) or 'the top'} of the schema is no string.")
            parts = [] if pattern == "" else without_look_ahead(pattern)
            small = {"type": "string", "allOf": [{"pattern": part} for part in parts]}
            if parts and not self._holds({**small, **_of(out, "minLength", "maxLength")}):
                self._loosen("pattern", path)
            else:
                also += [{"pattern": part} for part in parts]
        if not isinstance(name, str):
            return
        if name not in FORMATS:
            if self._strict:
                self._loosen(f"format: {name[:40]}", path)
            return
        held = {"pattern": f"^(?:{FORMATS[name]})$"}
        together = {"type": "string", **_of(out, "minLength", "maxLength"), "allOf": [*also, held]}
        if self._holds(together):
            also.append(held)
        elif self._strict:
            self._loosen(f"format: {name}", path)
        # Else what else is asked of the string says how it is written, and the format is what it annotates.

    def _counts(self, node: Node, name: str, path: SchemaPath, out: Node) -> None:
        """Take over `minName` and `maxName`."""
        for keyword in (f"min{name}", f"max{name}"):
            value = node.get(keyword)
            if value is None:
                continue
            count = number_of(value, keyword, path)
            if count < 0 or count != int(count):
                raise BadInput(f"'{keyword}' at {pointer_of(path) or 'the top'} of the schema is no count.")
            if count <= _MOST_REPEATS:
                out[keyword] = int(count)
            elif keyword.startswith("min"):
                self._loosen(keyword, path)

    # Arrays

    def _arrays(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        first, rest, keyword = node.get("prefixItems"), node.get("items"), "items"
        if isinstance(rest, list):  # up to 2019-09
            first, rest, keyword = rest, node.get("additionalItems"), "additionalItems"
            out["prefixItems"] = [self._schema(each, (*path, "items", str(at))) for at, each in enumerate(first)]
        elif first is not None:
            if not isinstance(first, list):
                raise BadInput(f"'prefixItems' at {pointer_of(path) or 'the top'} of the schema is no list.")
            out["prefixItems"] = [self._schema(each, (*path, "prefixItems", str(at))) for at, each in enumerate(first)]
        if rest is not None:
            out["items"] = self._schema(rest, (*path, keyword))
        self._counts(node, "Items", path, out)
        if node.get("uniqueItems") is True and out.get("maxItems", 2) > 1:
            narrowed = self._narrow and out.get("minItems", 0) <= 1
            if narrowed:
                out["maxItems"] = 1
            self._loosen("uniqueItems", path, made_good=narrowed)
        if "contains" in node:
            self._contains(node, path, out)

    def _contains(self, node: Node, path: SchemaPath, out: Node) -> None:
        least, most = node.get("minContains", 1), node.get("maxContains")
        if least == 0 and most is None:
            return  # nothing is asked
        if self._narrow and isinstance(least, int) and "prefixItems" not in out:
            inner = self._schema(node["contains"], (*path, "contains"))
            out["items"] = {"allOf": [out["items"], inner]} if "items" in out else inner
            out["minItems"] = max(out.get("minItems", 0), least)
            if isinstance(most, int):
                out["maxItems"] = min(out.get("maxItems", most), most)
        self._loosen("contains", path, made_good=self._narrow)

    # Objects

    def _objects(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        properties = _mapping(node, "properties", path)
        if "properties" in node:
            out["properties"] = {
                name: self._schema(each, (*path, "properties", name)) for name, each in properties.items()
            }
        required = node.get("required")
        if isinstance(required, list) and all(isinstance(name, str) for name in required):
            out["required"] = list(dict.fromkeys(required))
        if "additionalProperties" in node:
            out["additionalProperties"] = self._schema(node["additionalProperties"], (*path, "additionalProperties"))
        self._patterned(node, path, out)
        if "propertyNames" in node:
            self._named(node, path, out)
        self._counts(node, "Properties", path, out)
        if "minProperties" in out or "maxProperties" in out:
            self._sized(path, out)

    def _patterned(self, node: Node, path: SchemaPath, out: Node) -> None:
        patterned = _mapping(node, "patternProperties", path)
        if not patterned:
            return
        if self._holds({"type": "object", "patternProperties": dict.fromkeys(patterned, True)}):
            out["patternProperties"] = {
                pattern: self._schema(each, (*path, "patternProperties", pattern))
                for pattern, each in patterned.items()
            }
            return
        # Without them, what they would have admitted must not be forbidden; to be sure that it fits, none is written.
        out["additionalProperties"] = not self._narrow
        self._loosen("patternProperties", path, made_good=self._narrow)

    def _named(self, node: Node, path: SchemaPath, out: Node) -> None:
        """Say `propertyNames` by other keywords, where the object has no others that name properties."""
        names = self._target(node["propertyNames"])
        said = names.keys() & SAYING if isinstance(names, dict) else set()
        if names is True or (isinstance(names, dict) and (not said or said == {"type"}) and admits_strings(names)):
            return  # every name is a string
        if not isinstance(names, dict):
            out["additionalProperties"] = False
            return
        others = out.get("properties", {}).keys() | out.get("patternProperties", {}).keys()
        required, rest = set(out.get("required", ())), out.get("additionalProperties", True)
        if not others and said <= {"type", "enum", "const"} and said & {"enum", "const"}:
            listed = names.get("enum", [names.get("const")])
            if all(isinstance(name, str) for name in listed) and required <= set(listed) and admits_strings(names):
                out["properties"], out["additionalProperties"] = dict.fromkeys(listed, rest), False
                return
        pattern = pattern_of_names(names) if not others | required else None
        if pattern is not None and self._holds({"type": "object", "patternProperties": {pattern: True}}):
            out["patternProperties"], out["additionalProperties"] = {pattern: rest}, False
            return
        if self._narrow:
            out["additionalProperties"] = False
            out.pop("patternProperties", None)
        self._loosen("propertyNames", path, made_good=self._narrow)

    def _sized(self, path: SchemaPath, out: Node) -> None:
        """See that an object's size can be held, as far as it can: free names may be written twice, and count once then."""
        listed, required = out.get("properties", {}), set(out.get("required", ()))
        least = out.get("minProperties", 0)
        small = {
            "type": "object",
            **_of(out, "required", "minProperties", "maxProperties"),
            "properties": {name: each is not False for name, each in listed.items()},
            "patternProperties": dict.fromkeys(out.get("patternProperties", {}), True),
            "additionalProperties": out.get("additionalProperties", True) is not False,
        }
        if self._holds(small):
            if least - len(required & listed.keys()) > 1:
                self._loosen("minProperties", path)
            return
        optional = [name for name, each in listed.items() if name not in required and each is not False]
        most = out.get("maxProperties", len(listed) + least)
        for keyword in ("minProperties", "maxProperties"):
            if out.pop(keyword, None) is not None:
                self._loosen(keyword, path, made_good=self._narrow and len(required) + len(optional) >= least)
        if self._narrow and len(required) + len(optional) >= least:
            wanted = optional[: max(0, least - len(required))]
            out["required"] = [*out.get("required", ()), *wanted]
            spare = max(0, most - len(out["required"]))
            for name in [name for name in optional if name not in wanted][spare:]:
                out["properties"][name] = False
            out["additionalProperties"] = False
            out.pop("patternProperties", None)

    def _dependencies(self, keyword: str, node: Node, out: Node) -> bool:
        """Leave out, to be sure, the properties that others depend on; return whether that is all there is to it."""
        asked = node[keyword]
        if not self._narrow or not keyword.startswith("depend") or not isinstance(asked, dict):
            return False
        if out.keys() & {"$ref", "allOf", "anyOf", "patternProperties"} or set(asked) & set(out.get("required", ())):
            return False
        out["properties"] = {**out.get("properties", {}), **dict.fromkeys(asked, False)}
        return True

    # Several schemas at once

    def _branches(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        for keyword in ("allOf", "anyOf", "oneOf"):
            if keyword not in node:
                continue
            branches = node[keyword]
            if not isinstance(branches, list):
                raise BadInput(f"'{keyword}' at {pointer_of(path) or 'the top'} of the schema is no list.")
            walked, sure = [], []
            for at, branch in enumerate(branches):
                before = self._open
                walked.append(self._schema(branch, (*path, keyword, str(at))))
                if self._open == before:
                    sure.append(walked[-1])
            if self._narrow and keyword != "allOf" and sure:
                walked = sure
            if keyword == "oneOf" and not self._disjoint(branches):
                name = self._discriminator(branches)
                if name is None:
                    self._loosen("oneOf", path)
                else:
                    walked = [{"allOf": [branch, {"required": [name]}]} for branch in walked]
            if keyword == "oneOf" and "anyOf" in out:
                also.append({"anyOf": walked})
            else:
                out["allOf" if keyword == "allOf" else "anyOf"] = walked

    def _discriminator(self, branches: list[Any]) -> str | None:
        """Return a property by which branches are told from one another once it is there: they list other values of it."""
        targets = [self._target(branch) for branch in branches]
        if not 0 < len(targets) <= 64 or not all(isinstance(target, dict) for target in targets):
            return None
        properties = [target.get("properties") or {} for target in targets if isinstance(target, dict)]
        if any(kinds_of(target) != {"object"} for target in targets if isinstance(target, dict)):
            return None
        for name in properties[0]:
            listed = [listed_values(self._target(each.get(name))) for each in properties]
            sure = [values for values in listed if values is not None]
            if len(sure) == len(listed) and all(
                not any(is_same(a, b) for a in one for b in other) for one, other in combinations(sure, 2)
            ):
                return str(name)
        return None

    def _disjoint(self, branches: list[Any]) -> bool:
        """Return whether no value fits two of the branches, as far as that is seen at once."""
        if len(branches) > 64:
            return False
        targets = [self._target(branch) for branch in branches]
        return all(are_apart(one, other, self._target) for one, other in combinations(targets, 2))

    def _target(self, node: object) -> object:
        """Follow a schema's reference, if it has one and hardly anything else."""
        for _ in range(8):
            if not isinstance(node, dict) or "$ref" not in node or node.keys() & (SAYING - {"$ref"}):
                break
            pointer = self._local(node["$ref"])
            if pointer is None:
                break
            node = resolve(self._root, steps(pointer))
        return node

    def _conditions(self, node: Node, path: SchemaPath, out: Node, also: More) -> None:
        if "if" in node and node.keys() & {"then", "else"}:
            before = self._open
            if self._narrow and "allOf" not in out:
                both = [self._schema(node[part], (*path, part)) for part in ("if", "then") if part in node]
                also.append({"allOf": both})
            self._loosen("if", path, made_good=self._narrow and self._open == before)
        if "not" in node and node["not"] is not False:
            self._loosen("not", path)


_FINER = frozenset(
    {
        *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "divisibleBy"),
        *("pattern", "format", "minLength", "maxLength", "patternProperties", "propertyNames", "allOf", "not", "if"),
        *("minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems", "contains"),
    }
)
"""What is left out if a schema cannot be held with it."""


def _of(out: Mapping[str, Any], *keywords: str) -> dict[str, Any]:
    return {keyword: out[keyword] for keyword in keywords if keyword in out}


def _mapping(node: dict[str, Any], keyword: str, path: tuple[str, ...]) -> dict[str, Any]:
    value = node.get(keyword, {})
    if not isinstance(value, dict):
        raise BadInput(f"'{keyword}' at {pointer_of(path) or 'the top'} of the schema is no object.")
    return value
