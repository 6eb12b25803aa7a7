"""Which answers are held back, what is done with one that does not fit, and what becomes of a check that hangs or dies."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from support.asking import asks, says, text_of
from support.planning import PlanningHere

from models.clock import SystemClock
from models.content import CallDelta, Delta, FinishDelta, FormReport, TextDelta, UsageDelta
from models.errors import BadInput, LimitExceeded
from models.language.forms.checking import Checker
from models.language.forms.holding import ATTEMPTS, Holding
from models.owner import Owner
from models.ports.generate import (
    Constraint,
    GenerateRequest,
    JsonSchemaConstraint,
    RegexConstraint,
    ToolConstraint,
    ToolSpec,
)

_SET = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
_LIST = {"type": "array", "items": {"type": "integer"}}

ADA = Owner("ada")


class _Scripted:
    """Writes one answer after the other, a character a delta; a pair is a call of a function with arguments."""

    def __init__(self, *answers: str | list[str | tuple[str, str]], end: str = "stop", refuses: str = "") -> None:
        self.requests: list[GenerateRequest] = []
        self._answers = list(answers)
        self._end = end
        self._refuses = refuses

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        if self._refuses and self._refuses in str(request.constraint):
            raise BadInput("The JSON schema cannot be enforced.", field="constraint.json_schema")
        answer = self._answers.pop(0)
        yield UsageDelta(input_tokens=10, output_tokens=0)
        calls = False
        for number, part in enumerate([answer] if isinstance(answer, str) else answer):
            name, text = ("", part) if isinstance(part, str) else part
            calls = calls or bool(name)
            for character in text:
                yield (
                    CallDelta(call_id=str(number), name=name, arguments=character)
                    if name
                    else TextDelta(text=character)
                )
        yield UsageDelta(input_tokens=0, output_tokens=5)
        yield FinishDelta(reason="calls" if calls else self._end)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        pass


_Make = Callable[..., Holding]


@pytest.fixture
async def make() -> AsyncIterator[_Make]:
    made: list[Holding] = []

    def build(engine: Any, *, remote: bool = False) -> Holding:
        made.append(
            Holding(engine, Checker(SystemClock()), PlanningHere(remote=remote), chance=random.Random(1), remote=remote)
        )
        return made[-1]

    yield build
    for each in made:
        await each.aclose()


def _form(schema: object, **fields: bool) -> JsonSchemaConstraint:
    return JsonSchemaConstraint(schema=json.dumps(schema), **fields)


def _tool(schema: object, *, strict: bool = False) -> ToolSpec:
    return ToolSpec(
        name="act",
        description="",
        parameters=json.dumps({"type": "object", "properties": {"a": schema}}),
        strict=strict,
    )


async def _answer(holding: Holding, constraint: Constraint | None, **fields: Any) -> list[Delta]:
    return [delta async for delta in holding.generate(asks("Hello", limit=100, constraint=constraint, **fields))]


def _used(deltas: list[Delta]) -> tuple[int, int]:
    used = [delta for delta in deltas if isinstance(delta, UsageDelta)]
    return sum(each.input_tokens for each in used), sum(each.output_tokens for each in used)


def _report(deltas: list[Delta]) -> FormReport | None:
    return next((delta.form for delta in deltas if isinstance(delta, UsageDelta) and delta.form), None)


@pytest.mark.parametrize(
    "constraint",
    [
        None,
        _form(_LIST),
        _form(_LIST, strict=True),
        RegexConstraint(pattern="a+"),
        ToolConstraint(tools=(_tool(_LIST),)),
    ],
)
async def test_what_the_engine_holds_streams_as_it_is_written(constraint: Constraint | None, make: _Make) -> None:
    deltas = await _answer(make(_Scripted("[1, 1]")), constraint)
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == list("[1, 1]")
    assert _report(deltas) is None


async def test_an_answer_that_fits_is_given_once_it_has_been_checked(make: _Make) -> None:
    seen: list[Delta] = []
    async for delta in make(_Scripted("[1, 2]")).generate(asks("Hello", constraint=_form(_SET))):
        if isinstance(delta, TextDelta) and not any(isinstance(each, TextDelta) for each in seen):
            assert _used(seen) == (10, 5), "nothing is said before it is whole"
        seen.append(delta)
    assert text_of(seen) == "[1, 2]"
    assert _report(seen) == FormReport(attempts=1, valid=True)
    assert seen[-1] == FinishDelta(reason="stop")


async def test_an_answer_that_does_not_fit_is_written_again_and_all_of_it_is_counted(make: _Make) -> None:
    engine = _Scripted("[1, 1]", "[2, 2]", "[1, 2]")
    deltas = await _answer(make(engine), _form(_SET), temperature=0.0, seed=5)
    assert text_of(deltas) == "[1, 2]"
    assert _report(deltas) == FormReport(attempts=3, valid=True)
    assert _used(deltas) == (30, 15)
    first, *others = [request.sampling for request in engine.requests]
    assert (first.temperature, first.seed) == (0.0, 5)
    assert all(each.temperature > 0 for each in others)
    assert len({each.seed for each in (first, *others)}) == 3
    assert [each.max_output_tokens for each in (first, *others)] == [100, 95, 90], "tokens are bounded all together"


async def test_an_answer_that_never_fits_fails_and_is_not_worth_asking_for_again(make: _Make) -> None:
    engine = _Scripted(*["[1, 1]"] * 9)
    with pytest.raises(BadInput, match="non-unique") as failed:
        await _answer(make(engine), _form(_SET))
    assert (failed.value.code, failed.value.retryable) == ("form_not_held", False)
    assert failed.value.field == "constraint.json_schema"
    assert len(engine.requests) == ATTEMPTS


async def test_what_goes_on_is_checked_together_with_what_it_goes_on_from(make: _Make) -> None:
    engine = _Scripted("1]", "2]")
    asked = asks(says("Hello"), says("[1, ", "assistant"), continues=True, limit=100)
    deltas = [delta async for delta in make(engine).generate(replace(asked, constraint=_form(_SET)))]
    assert (text_of(deltas), _report(deltas)) == ("2]", FormReport(attempts=2, valid=True))


async def test_no_attempt_is_made_without_tokens_for_it(make: _Make) -> None:
    engine = _Scripted(*["[1, 1]"] * 9)
    with pytest.raises(BadInput, match="did not fit"):
        async for _ in make(engine).generate(asks("Hello", limit=10, constraint=_form(_SET))):
            pass
    assert len(engine.requests) == 2


async def test_an_answer_that_was_cut_is_given_as_it_is_and_said_not_to_fit(make: _Make) -> None:
    deltas = await _answer(make(_Scripted("[1, 1", end="length")), _form(_SET))
    assert (text_of(deltas), deltas[-1]) == ("[1, 1", FinishDelta(reason="length"))
    assert _report(deltas) == FormReport(attempts=1, valid=False)


async def test_arguments_that_do_not_fit_are_written_again_and_words_are_said_once(make: _Make) -> None:
    engine = _Scripted(["Well. ", ("act", '{"a": [1, 1]}')], ["Again. ", ("act", '{"a": [1, 2]}')])
    deltas = await _answer(make(engine), ToolConstraint(tools=(_tool(_SET),)))
    assert text_of(deltas) == "Well. "
    assert "".join(delta.arguments for delta in deltas if isinstance(delta, CallDelta)) == '{"a": [1, 2]}'
    assert deltas[-1] == FinishDelta(reason="calls")
    assert _report(deltas) == FormReport(attempts=2, valid=True)
    assert [request.constraint.choice for request in engine.requests] == ["auto", "required"]  # type: ignore[union-attr]


async def test_arguments_that_never_fit_fail_at_the_place_of_their_function(make: _Make) -> None:
    tools = (ToolSpec(name="look", description="", parameters="{}"), _tool(_SET))
    engine = _Scripted(*[[("act", '{"a": [1, 1]}')]] * ATTEMPTS)
    with pytest.raises(BadInput, match="arguments of 'act'") as failed:
        await _answer(make(engine), ToolConstraint(tools=tools))
    assert (failed.value.code, failed.value.field) == ("form_not_held", "tools[1].parameters")


async def test_words_stream_where_only_calls_would_be_checked(make: _Make) -> None:
    deltas = await _answer(make(_Scripted("Hello.")), ToolConstraint(tools=(_tool(_SET),)))
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == list("Hello.")
    assert _report(deltas) is None


async def test_beside_functions_an_answer_is_checked_as_what_it_is(make: _Make) -> None:
    either = ToolConstraint(tools=(_tool(_SET),), form=_form(_SET))
    deltas = await _answer(make(_Scripted("[1, 1]", "[3]")), either)
    assert text_of(deltas) == "[3]"
    deltas = await _answer(make(_Scripted("[1, 1]", [("act", "{}")])), either)
    assert deltas[-1] == FinishDelta(reason="calls")


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        (_form(_SET, strict=True), "constraint.json_schema"),
        (ToolConstraint(tools=(_tool(_SET, strict=True),)), "tools[0].parameters"),
        (ToolConstraint(tools=(_tool(_LIST),), form=_form(_SET, strict=True)), "constraint.json_schema"),
    ],
)
async def test_what_is_strict_and_cannot_be_held_is_refused_by_name_and_place(
    constraint: Constraint, field: str, make: _Make
) -> None:
    engine = _Scripted("[]")
    with pytest.raises(BadInput, match=r"'uniqueItems' at .*strict") as refused:
        await _answer(make(engine), constraint)
    assert refused.value.field == field
    assert engine.requests == []


async def test_a_form_that_the_engine_refuses_is_held_in_outline_and_checked(make: _Make) -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 3}, "uniqueItems": True}
    engine = _Scripted("[1]", "[4]", refuses="minimum")
    assert text_of(await _answer(make(engine), _form(schema))) == "[4]"


async def test_a_remote_server_is_told_the_schema_as_it_is_and_checked(make: _Make) -> None:
    engine = _Scripted("[1, 1]", "[1, 2]")
    deltas = await _answer(make(engine, remote=True), _form(_SET))
    assert text_of(deltas) == "[1, 2]"
    assert engine.requests[0].constraint == _form(_SET, lenient=True)
    strict = _Scripted("[1, 1]")
    assert text_of(await _answer(make(strict, remote=True), _form(_SET, strict=True))) == "[1, 1]"
    assert strict.requests[0].constraint == _form(_SET, strict=True)


@pytest.mark.parametrize(
    "schema",
    [{**_SET, "$ref": "https://example.org/a"}, {**_SET, "$ref": "file:///etc/passwd"}, {**_SET, "pattern": "("}],
)
async def test_a_schema_that_cannot_be_checked_is_refused_before_anything_is_written(
    schema: object, make: _Make
) -> None:
    engine = _Scripted("[]")
    with pytest.raises(BadInput) as refused:
        await _answer(make(engine), _form(schema))
    assert refused.value.field == "constraint.json_schema"
    assert engine.requests == []


async def test_a_check_that_takes_too_long_or_dies_harms_nobody_else() -> None:
    checker = Checker(SystemClock())
    doubling: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(60)}
    doubling["d60"] = {"type": "null"}
    try:
        with pytest.raises(LimitExceeded, match="too long"):
            await checker.check(json.dumps({"$ref": "#/$defs/d0", "$defs": doubling}), ["1"], owner=ADA)
        assert await checker.check('{"type": "integer"}', ["1", '"a"', "1e999"], owner=ADA) == [
            None,
            '"a" is not of type "integer" (at the top)',
            "It is no JSON: 1e999 is beyond every float",
        ]
        process = checker._judge._process
        assert process is not None
        process.kill()
        await process.wait()
        assert await checker.check("true", ["1"], owner=ADA) == [None]  # whoever ended it, it was not this question
    finally:
        await checker.aclose()


async def test_a_check_that_is_left_does_not_answer_the_next_one() -> None:
    checker = Checker(SystemClock())
    try:
        await checker.check("true", ["1"], owner=ADA)
        left = asyncio.ensure_future(checker.check("false", ["1"], owner=ADA))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        assert await checker.check("true", ["1"], owner=ADA) == [None]
    finally:
        await checker.aclose()
