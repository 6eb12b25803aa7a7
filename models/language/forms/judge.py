"""The judge: a process that checks whether JSON fits a schema, and may die of it.

Whoever asks chooses the schema, and with it the work: a few lines of references take for ever, or more stack than there is.
So it is checked here, where nobody else works: `models.language.forms.checking` starts this, waits for as long as it wants, and ends
it. A line of JSON comes in, `{"schema": TEXT, "texts": [TEXT, …]}`, and one goes out: `{"faults": [TEXT or null, …]}`, or
`{"wrong": TEXT}` if the schema is none. Nothing is fetched: a reference that leads out of the schema is a fault of it.
"""

import json
from functools import lru_cache
from typing import Any

import jsonschema_rs as rs

from models.language.forms.answering import serve

_MESSAGE_CHARACTERS = 300

_DRAFTS = frozenset(
    f"{address}{mark}"
    for address in (
        *(f"http://json-schema.org/draft-0{n}/schema" for n in (4, 6, 7)),
        *(f"https://json-schema.org/draft/{year}/schema" for year in ("2019-09", "2020-12")),
    )
    for mark in ("", "#")
)

Validator = rs.Draft202012Validator | rs.Draft7Validator | rs.Draft4Validator | Any


def _pointer(path: list[str | int]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def told(error: Any) -> str:
    """Return what is wrong, and where."""
    said = str(error.message)
    said = said if len(said) <= _MESSAGE_CHARACTERS else said[:_MESSAGE_CHARACTERS] + "…"
    return f"{said} (at {_pointer(error.instance_path) or 'the top'})"


@lru_cache(64)
def validator_of(text: str, *, newest: bool = False, owner: tuple[str | None, ...] = ()) -> Validator:
    """Return what checks values against a schema, JSON text; one that does not say its draft is of any, or of the `newest`.

    It is remembered for its `owner` alone: how long an answer takes tells nobody what another has asked.

    Raises:
        ValidationError: the library's: it is no schema of any draft.
        ReferencingError: the library's: it refers to what is not in it.
    """
    schema = json.loads(text)
    options: dict[str, Any] = {
        "validate_formats": False,  # the grammar holds those that are promised; the others are annotations
        "offline": True,
        "pattern_options": rs.FancyRegexOptions(backtrack_limit=100_000),
    }
    if isinstance(schema, dict) and schema.get("$schema") in _DRAFTS:
        return rs.validator_for(schema, **options)
    if isinstance(schema, dict):
        schema.pop("$schema", None)  # of nobody that is known here
    # A schema that does not say its draft is one of the newest, unless only an older one takes it.
    first: Exception | None = None
    for draft in (
        (rs.Draft202012Validator,) if newest else (rs.Draft202012Validator, rs.Draft7Validator, rs.Draft4Validator)
    ):
        try:
            return draft(schema, **options)
        except rs.ValidationError as exc:
            first = first or exc
    raise first or AssertionError


def _fraction(text: str) -> float:
    value = float(text)
    if abs(value) == float("inf"):
        raise ValueError(f"{text[:40]} is beyond every float")
    return value


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _fault(validator: Validator, text: str) -> str | None:
    try:
        value = json.loads(text, parse_float=_fraction, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        return f"It is no JSON: {exc}"
    try:
        validator.validate(value)
    except rs.ValidationError as exc:
        return told(exc)
    except (ValueError, RecursionError) as exc:
        return str(exc)[:_MESSAGE_CHARACTERS]
    return None


def answer(asked: Any) -> dict[str, Any]:
    """Return what is answered to a question."""
    try:
        validator = validator_of(asked["schema"], owner=tuple(asked["owner"]))
    except rs.ValidationError as exc:
        return {"wrong": told(exc)}
    except (rs.ReferencingError, ValueError, RecursionError) as exc:
        return {"wrong": str(exc)[:_MESSAGE_CHARACTERS]}
    return {"faults": [_fault(validator, text) for text in asked["texts"]]}


if __name__ == "__main__":
    serve(answer)
