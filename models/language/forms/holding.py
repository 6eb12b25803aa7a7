"""Answers that are held back until they are known to fit: an engine around an engine.

What an engine holds while it writes streams as it does. Where a schema asks for more than that, and is not strict, the
engine is given what it can hold of it, and the answer, or the arguments of its calls, are held back until they are checked
against the whole. What does not fit is written again, up to `ATTEMPTS` times in all, each time by another seed and held
more narrowly, within the deadline and the tokens of the one request; every attempt is counted as used.
"""

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import assert_never

from models.content import (
    AudioDelta,
    CallDelta,
    Delta,
    FinishDelta,
    FormReport,
    PartDelta,
    ReasoningDelta,
    TextDelta,
    UsageDelta,
    text_of,
)
from models.errors import BadInput, Unsupported
from models.language.forms.checking import Checker
from models.language.forms.plan import Level, Plan, has_schema
from models.language.forms.planning import Planning
from models.owner import Owner
from models.ports.generate import Constraint, Engine, GenerateRequest, Keeping, ToolConstraint, stalled_s

ATTEMPTS = 4

_AGAIN_TEMPERATURE = 0.7
"""The least temperature of another attempt: a greedy one would write the same."""


@dataclass(slots=True)
class _Attempt:
    """What one attempt has written, and not yet said."""

    held: list[Delta] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    calls: dict[str, list[str]] = field(default_factory=dict)
    written: int = 0
    end: FinishDelta | None = None

    def take(self, delta: Delta, *, streams_words: bool) -> bool:
        """Take the next delta; return whether it may be said at once. Words before a call are said with the first attempt."""
        match delta:
            case UsageDelta():
                self.written += delta.output_tokens
                return True
            case TextDelta():
                self.text.append(delta.text)
                if streams_words:
                    return True
            case CallDelta():
                self.calls.setdefault(delta.call_id, [delta.name]).append(delta.arguments)
            case FinishDelta():
                self.end = delta
                return False
            case AudioDelta() | PartDelta():
                pass
            case ReasoningDelta():
                return True
            case _:
                assert_never(delta)
        self.held.append(delta)
        return False


class Holding:
    """Holds answers back where that is called for; see `models.ports.generate.Engine`."""

    def __init__(
        self,
        engine: Engine,
        checker: Checker,
        planning: Planning,
        *,
        chance: random.Random,
        remote: bool = False,
    ) -> None:
        """Take the engine, which is this one's from now on.

        Args:
            engine: writes.
            checker: checks; it is this one's from now on.
            planning: plans what the engine holds; likewise.
            chance: the seeds of further attempts.
            remote: the engine's server makes grammars of its own: it is given schemas as they are, and refuses for itself.
        """
        self._engine = engine
        self._checker = checker
        self._planning = planning
        self._chance = chance
        self._remote = remote

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        """Yield the answer; see the module.

        Raises:
            BadInput: a schema is none, or is strict and cannot be held.
            BadInput: `form_not_held`: no attempt fitted it. Asking for the same again is as vain.
        """
        constraint = request.constraint
        if constraint is None or request.reads_ahead or not has_schema(constraint):
            return self._engine.generate(request)
        return self._generate(request, constraint)

    async def forget(self, tenant: str, subject: str | None) -> None:
        """Have the engine let go of what it keeps of a tenant, or of one subject of it."""
        if isinstance(self._engine, Keeping):
            await self._engine.forget(tenant, subject)

    def stalled_s(self) -> float:
        """Return for how long the engine has been at the same step; see `models.ports.generate.Watched`."""
        return stalled_s(self._engine)

    async def aclose(self) -> None:
        """Close the engine, and end the checks."""
        await self._engine.aclose()
        await self._checker.aclose()
        await self._planning.aclose()

    async def _generate(self, request: GenerateRequest, constraint: Constraint) -> AsyncGenerator[Delta, None]:
        made = await self._planning.plan(constraint, "whole", request.owner)
        if not made.is_checked:
            async with aclosing(self._engine.generate(replace(request, constraint=made.constraint))) as deltas:
                async for delta in deltas:
                    yield delta
            return
        await self._check_schemas(made, request.owner)
        async with aclosing(self._attempts(request, constraint, made)) as deltas:
            async for delta in deltas:
                yield delta

    async def _attempts(
        self, request: GenerateRequest, constraint: Constraint, made: Plan
    ) -> AsyncGenerator[Delta, None]:
        left, fault = request.sampling.max_output_tokens, ("", _place_of(constraint))
        for number in range(1, ATTEMPTS + 1):
            if left < 1:
                break
            attempt = _Attempt()
            deltas = self._written(self._again(request, number, left), constraint, made, number)
            async with aclosing(deltas):
                async for delta in deltas:
                    if attempt.take(delta, streams_words=made.form is None and number == 1):
                        yield delta
            left -= attempt.written or len(attempt.text)
            if attempt.end is None:
                return  # the engine broke off, and whoever reads sees that it did
            is_whole = attempt.end.reason != "length"
            fault = await self._fault(attempt, made, request, before=fault)
            if not fault[0]:
                for delta in attempt.held:
                    if made.form is not None or not isinstance(delta, TextDelta):
                        yield delta
                if made.form is not None or attempt.calls:
                    report = FormReport(attempts=number, valid=is_whole)
                    yield UsageDelta(input_tokens=0, output_tokens=0, form=report)
                yield attempt.end
                return
        raise BadInput(
            f"The answer did not fit its JSON schema, in {ATTEMPTS} attempts or as many as the most tokens of an answer "
            f"allow: {fault[0]}. Make the schema simpler, allow more tokens, or choose a more capable model.",
            code="form_not_held",
            field=fault[1],
        )

    def _again(self, request: GenerateRequest, number: int, left: int) -> GenerateRequest:
        """Return what is asked at an attempt."""
        sampling = replace(request.sampling, max_output_tokens=left)
        if number > 1:
            warm = max(sampling.temperature, _AGAIN_TEMPERATURE)
            seed = (
                self._chance.getrandbits(62) if sampling.seed is None else (sampling.seed + number * 7919) % (1 << 62)
            )
            sampling = replace(sampling, temperature=warm, seed=seed)
        return replace(request, sampling=sampling, draft=request.draft if number == 1 else None)

    async def _written(
        self, request: GenerateRequest, constraint: Constraint, made: Plan, number: int
    ) -> AsyncGenerator[Delta, None]:
        """Yield one attempt, held as narrowly as it is to be, or else as far as the engine can."""
        levels: tuple[Level, ...] = (
            ("whole", "coarse", "bare") if number == 1 else ("narrow", "whole", "coarse", "bare")
        )
        for level in levels:
            current = made if level == "whole" else await self._planning.plan(constraint, level, request.owner)
            begun = False
            try:
                held = replace(request, constraint=self._again_held(current.constraint, number))
                async with aclosing(self._engine.generate(held)) as deltas:
                    async for delta in deltas:
                        begun = True
                        yield delta
                return
            except BadInput as exc:
                # It may be refused because of what makes it so only together. An answer that no grammar can derive is none.
                lasting = isinstance(exc, Unsupported) or (exc.code == "form_unsatisfiable" and level != "narrow")
                about_form = exc.field is not None and (exc.field.startswith(("tools", "constraint.")))
                if begun or lasting or not about_form or level == levels[-1] or self._remote:
                    raise

    @staticmethod
    def _again_held(constraint: Constraint, number: int) -> Constraint:
        """Return what an attempt is held to: who called once, and not rightly, calls again."""
        if not isinstance(constraint, ToolConstraint) or number == 1:
            return constraint
        is_free = constraint.choice == "auto" and constraint.form is None
        return replace(constraint, choice="required") if is_free else constraint

    async def _check_schemas(self, made: Plan, owner: Owner) -> None:
        """Raise what is wrong with the schemas themselves before anything is written.

        Raises:
            BadInput: one is none.
        """
        if made.form is not None:
            await self._checked("constraint.json_schema", made.form, (), owner)
        for name, schema in made.tools.items():
            assert isinstance(made.constraint, ToolConstraint)
            await self._checked(made.constraint.place_of(name), schema, (), owner)

    async def _fault(
        self, attempt: _Attempt, made: Plan, request: GenerateRequest, *, before: tuple[str, str]
    ) -> tuple[str, str]:
        """Return what is wrong with an attempt, and with the words that it goes on from, and the place of what it breaks.

        Nothing is wrong if it fits. Of one that was cut short nobody can tell: it is as the one before it was.
        """
        if attempt.end is not None and attempt.end.reason == "length":
            return ("it was cut short" if before[0] else "", before[1])
        owner = request.owner
        for name, *arguments in attempt.calls.values():
            if (schema := made.tools.get(name)) is None or not isinstance(made.constraint, ToolConstraint):
                continue
            place = made.constraint.place_of(name)
            (fault,) = await self._checked(place, schema, ["".join(arguments) or "{}"], owner)
            if fault is not None:
                return f"in the arguments of {name!r}: {fault}", place
        place = "constraint.json_schema"
        if made.form is None or attempt.calls:
            return "", _place_of(made.constraint)
        begun = text_of(request.messages[-1]) if request.continues else ""
        (fault,) = await self._checked(place, made.form, [begun + "".join(attempt.text)], owner)
        return fault or "", place

    async def _checked(self, field_name: str, schema: str, texts: Sequence[str], owner: Owner) -> list[str | None]:
        try:
            return await self._checker.check(schema, texts, owner=owner)
        except BadInput as exc:
            raise type(exc)(exc.message, code=exc.code, field=field_name) from exc


def _place_of(constraint: Constraint) -> str:
    return "tools" if isinstance(constraint, ToolConstraint) else "constraint.json_schema"
