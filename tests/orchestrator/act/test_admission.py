"""Turns are counted while they run, bounded, and waited for at a stop."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from models.clock import ManualClock
from models.errors import Overloaded
from orchestrator.act.admission import Admission


@pytest.fixture
def new_admission(clock: ManualClock) -> Callable[..., Admission]:
    return lambda **limits: Admission(clock, **{"turns": 512, "tenant_turns": 256, **limits})


def test_a_turn_is_counted_while_it_runs_however_it_ends(new_admission: Any) -> None:
    admission = new_admission()
    with admission.seat("a"), admission.seat("a"), admission.seat("b"):
        assert admission.turns == 3
    with pytest.raises(ZeroDivisionError), admission.seat("a"):
        raise ZeroDivisionError
    assert admission.turns == 0
    assert not admission._running


def test_more_turns_than_the_server_takes_are_refused_and_may_be_retried(new_admission: Any) -> None:
    admission = new_admission(turns=2)
    with admission.seat("a"), admission.seat("b"):
        with pytest.raises(Overloaded, match="2 turns are running") as refused, admission.seat("c"):
            pass
        assert (refused.value.code, refused.value.retryable) == ("overloaded", True)
    with admission.seat("c"):
        assert admission.turns == 1


def test_one_tenant_cannot_take_every_seat(new_admission: Any) -> None:
    admission = new_admission(turns=3, tenant_turns=2)
    with admission.seat("a"):
        with admission.seat("a"):
            with pytest.raises(Overloaded, match="2 turns of yours") as refused, admission.seat("a"):
                pass
            assert refused.value.code == "too_many_turns"
            with admission.seat("b"):
                assert admission.turns == 3
        with admission.seat("a"):
            assert admission.turns == 2


async def test_draining_takes_no_turn_and_waits_for_those_that_run(new_admission: Any, clock: ManualClock) -> None:
    admission = new_admission()
    with admission.seat("a"):
        with admission.seat("b"):
            draining = asyncio.create_task(admission.drain(clock.now_s() + 10.0))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused, admission.seat("c"):
                pass
            assert (refused.value.code, refused.value.retryable) == ("server_stopping", True)
        await asyncio.sleep(0)
        assert not draining.done()
    await draining


async def test_draining_ends_at_its_deadline_and_at_once_where_nothing_runs(
    new_admission: Any, clock: ManualClock
) -> None:
    admission = new_admission()
    with admission.seat("a"):
        draining = asyncio.create_task(admission.drain(clock.now_s() + 10.0))
        await asyncio.sleep(0)
        clock.advance(10.0)
        await draining
        assert admission.turns == 1
    await admission.drain(clock.now_s())


def test_one_tenant_cannot_take_every_slot_for_guesses_and_guesses_take_nobodys_seat(new_admission: Any) -> None:
    admission = new_admission(turns=3, tenant_turns=1, guesses=10)
    held = [admission.place("a", is_guess=True) for _ in range(9)]
    with pytest.raises(Overloaded) as refused:
        admission.place("a", is_guess=True)
    assert (refused.value.code, refused.value.retryable) == ("too_many_guesses", True)
    held.append(admission.place("b", is_guess=True))
    assert (admission.guesses, admission.turns) == (10, 0)
    held[0].take_seat(replaces=False)
    assert (admission.guesses, admission.turns) == (9, 1)
    for place in held:
        place.leave()
    assert (admission.guesses, admission.turns) == (0, 0)
