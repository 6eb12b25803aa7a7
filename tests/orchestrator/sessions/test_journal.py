"""Events, turns and effects change together, in one transaction."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from memory import effects, log
from memory.database import Database
from models.clock import ManualClock
from models.content import Call, CallResult, Message, TextPart
from models.errors import Internal, NotFound
from orchestrator.events import (
    CallEffect,
    Decision,
    ItemClosed,
    ItemsAdded,
    ItemsRemoved,
    LogEvent,
    PlaybackHeard,
    SessionSettings,
    SettingsChanged,
    TurnAccepted,
    TurnEnded,
    TurnInput,
)
from orchestrator.sessions.journal import Journal

CALL = Call(item_id="item_call", call_id="call_1", name="pay", arguments='{"sum":1}')
RESULT = CallResult(item_id="item_result", call_id="call_1", parts=(TextPart(text="paid", source="tool"),))


@pytest.fixture
async def journal(database: Database, clock: ManualClock) -> Journal:
    return Journal(database, clock, "local", "sess_1", new=True)


@pytest.fixture
def accepted(decision: Decision) -> TurnAccepted:
    return TurnAccepted(turn_id="turn_1", generation=1, input=TurnInput(), decision=decision)


async def open_effects(database: Database) -> list[str]:
    return [effect.key for effect in await database.read(lambda c: effects.open_effects(c, "local", "sess_1"))]


def closed(item: Any) -> ItemClosed:
    effect = None
    if isinstance(item, Call) and item.status == "completed":
        effect = CallEffect(key="turn_1/1/0", effect="effectful")
    return ItemClosed(turn_id="turn_1", generation=1, item=item, effect=effect)


async def test_rows_are_numbered_without_gaps_and_read_back_as_they_were(
    journal: Journal, accepted: TurnAccepted, message: Callable[..., Message], clock: ManualClock
) -> None:
    first: tuple[LogEvent, ...] = (ItemsAdded(items=(message("é🎻\r\n", "item_1"),)), accepted)
    second: tuple[LogEvent, ...] = (
        closed(CALL),
        PlaybackHeard(item_id="item_1", heard_ms=0),
        TurnEnded(turn_id="turn_1", generation=1, state="finished", reason="calls"),
    )
    written = await journal.write(first)
    clock.advance(1.5)
    written += await journal.write(second)
    assert [row.seq for row in written] == [1, 2, 3, 4, 5]
    assert [row.event for row in written] == [*first, *second]
    assert written[2].at_ms - written[1].at_ms == 1_500
    assert await journal.read(0, 100) == written
    assert await journal.read(1, 2) == written[1:3]
    assert await journal.read(5, 10) == ()
    assert (await journal.record()).last_seq == 5


async def test_a_turn_is_open_from_its_acceptance_to_its_end(
    journal: Journal, accepted: TurnAccepted, database: Database
) -> None:
    assert await database.read(log.open_turns) == ()
    await journal.write((accepted,))
    (opened,) = await database.read(log.open_turns)
    assert (opened.owner.tenant, opened.session_id, opened.turn_id) == ("local", "sess_1", "turn_1")
    await journal.write((TurnEnded(turn_id="turn_1", generation=1, state="failed"),))
    assert await database.read(log.open_turns) == ()


async def test_a_whole_call_opens_an_effect_and_its_result_completes_it(
    journal: Journal, accepted: TurnAccepted, database: Database
) -> None:
    await journal.write((accepted, closed(CALL)))
    assert await open_effects(database) == ["turn_1/1/0"]
    await journal.write((ItemsAdded(items=(RESULT,)),))
    assert await open_effects(database) == []


async def test_a_result_within_a_turns_input_completes_its_effect(
    journal: Journal, accepted: TurnAccepted, database: Database, decision: Decision
) -> None:
    await journal.write((accepted, closed(CALL)))
    await journal.write(
        (TurnAccepted(turn_id="turn_2", generation=1, input=TurnInput(items=(RESULT,)), decision=decision),)
    )
    assert await open_effects(database) == []


@pytest.mark.parametrize("runner", ["client", "server", "mcp:weather"])
async def test_a_result_completes_the_ledger_whoever_ran_the_call(
    journal: Journal, accepted: TurnAccepted, database: Database, runner: str
) -> None:
    effect = CallEffect(key="turn_1/1/0", effect="idempotent", runner=runner)
    await journal.write((accepted, replace(closed(CALL), effect=effect)))
    assert await open_effects(database) == ["turn_1/1/0"]
    # A client's comes with what it says next; one that was run here is an item of the reply.
    by_client = ItemsAdded(items=(RESULT,))
    await journal.write((by_client if runner == "client" else closed(RESULT),))
    assert await open_effects(database) == []


async def test_a_call_that_changes_nothing_needs_no_row_in_the_ledger(
    journal: Journal, accepted: TurnAccepted, database: Database
) -> None:
    effect = CallEffect(key="turn_1/1/0", effect="pure", runner="server")
    await journal.write((accepted, replace(closed(CALL), effect=effect), closed(RESULT)))
    assert await open_effects(database) == []


async def test_a_call_that_is_made_again_by_its_task_is_the_same_effect(
    journal: Journal, accepted: TurnAccepted, database: Database
) -> None:
    await journal.write((accepted, closed(CALL)))
    again = replace(CALL, item_id="item_again", call_id="call_again")
    await journal.write((closed(again),))
    assert await open_effects(database) == ["turn_1/1/0"]
    await journal.write((ItemsAdded(items=(replace(RESULT, call_id="call_again"),)),))
    assert await open_effects(database) == []


async def test_a_call_that_was_cut_short_opens_no_effect(
    journal: Journal, accepted: TurnAccepted, database: Database
) -> None:
    cut = Call(item_id="item_call", call_id="call_1", name="pay", arguments="{", status="incomplete")
    await journal.write((accepted, closed(cut)))
    assert await open_effects(database) == []


async def test_a_call_that_the_client_brought_needs_no_effect(journal: Journal, database: Database) -> None:
    await journal.write((ItemsAdded(items=(CALL, RESULT)),))
    assert await open_effects(database) == []
    assert (await journal.record()).last_seq == 1


async def test_a_transaction_that_fails_leaves_nothing(
    journal: Journal, accepted: TurnAccepted, database: Database, message: Callable[..., Message]
) -> None:
    await journal.write((accepted,))
    with pytest.raises(Internal):  # the second acceptance breaks a key, after the item was written
        await journal.write((ItemsAdded(items=(message("hello", "item_1"),)), closed(CALL), accepted))
    assert (await journal.record()).last_seq == 1
    assert await open_effects(database) == []
    (row,) = await journal.write((ItemsAdded(items=(message("hello", "item_1"),)),))
    assert row.seq == 2


async def test_a_session_is_found_by_its_own_tenant_only(
    journal: Journal, database: Database, clock: ManualClock, message: Callable[..., Message]
) -> None:
    await journal.write((ItemsAdded(items=(message("hello", "item_0"),)),))
    other = Journal(database, clock, "somebody", "sess_1")
    with pytest.raises(NotFound):
        await other.read(0, 1)
    with pytest.raises(NotFound):
        await other.record()
    with pytest.raises(NotFound):
        await other.write((ItemsAdded(items=(message("hello", "item_1"),)),))
    assert (await journal.record()).last_seq == 1


# What is kept beside the log


async def test_a_session_is_named_after_its_first_message_and_only_once(
    journal: Journal, accepted: TurnAccepted, message: Callable[..., Message]
) -> None:
    await journal.write((accepted,))
    assert (await journal.record()).title is None
    await journal.write((ItemsAdded(items=(RESULT, message("Hello,\n world", "item_1"))),))
    assert (await journal.record()).title == "Hello, world"
    await journal.write((ItemsAdded(items=(message("And now?", "item_2"),)),))
    assert (await journal.record()).title == "Hello, world"


async def test_the_input_of_a_turn_names_a_session_too(
    journal: Journal, decision: Decision, message: Callable[..., Message]
) -> None:
    turn_input = TurnInput(items=(message("Hello", "item_1"),))
    await journal.write((TurnAccepted(turn_id="turn_1", generation=1, input=turn_input, decision=decision),))
    assert (await journal.record()).title == "Hello"


async def test_a_name_that_was_given_stays_also_for_another_journal_of_the_session(
    journal: Journal, database: Database, clock: ManualClock, message: Callable[..., Message]
) -> None:
    settings = SessionSettings(title="Plans", instructions="Be brief.", model="small")
    await journal.write((SettingsChanged(settings=settings),))
    again = Journal(database, clock, "local", "sess_1")
    for one in (journal, again):
        await one.write((ItemsAdded(items=(message("Hello", f"item_{id(one)}"),)),))
        record = await one.record()
        assert (record.title, record.instructions, record.model) == ("Plans", "Be brief.", "small")


async def test_a_session_whose_name_was_taken_away_is_named_after_its_next_message(
    journal: Journal, message: Callable[..., Message]
) -> None:
    await journal.write((ItemsAdded(items=(message("One", "item_1"),)),))
    await journal.write((SettingsChanged(settings=SessionSettings()),))
    assert (await journal.record()).title is None
    await journal.write((ItemsAdded(items=(message("Two", "item_2"),)),))
    assert (await journal.record()).title == "Two"


async def test_a_name_whose_transaction_failed_is_given_by_the_next_one(
    journal: Journal, accepted: TurnAccepted, message: Callable[..., Message]
) -> None:
    await journal.write((accepted,))
    with pytest.raises(Internal):
        await journal.write((ItemsAdded(items=(message("lost", "item_1"),)), accepted))
    assert (await journal.record()).title is None
    await journal.write((ItemsAdded(items=(message("kept", "item_1"),)),))
    assert (await journal.record()).title == "kept"


async def test_the_answer_of_a_model_names_nothing(journal: Journal, accepted: TurnAccepted) -> None:
    said = Message(item_id="item_1", role="assistant", parts=(TextPart(text="Hello"),))
    await journal.write((accepted, closed(said), ItemsRemoved(item_ids=("item_1",))))
    assert (await journal.record()).title is None


async def test_a_record_says_when_its_session_began_and_when_its_log_last_grew(
    journal: Journal, clock: ManualClock, message: Callable[..., Message]
) -> None:
    await journal.write((ItemsAdded(items=(message("One", "item_1"),)),))
    clock.advance(2.0)
    (row,) = await journal.write((ItemsRemoved(item_ids=("item_1",)),))
    record = await journal.record()
    assert (record.updated_ms, record.updated_ms - record.created_ms, record.last_seq) == (row.at_ms, 2_000, 2)


async def test_a_session_that_is_not_begun_has_no_record(journal: Journal) -> None:
    with pytest.raises(NotFound) as refused:
        await journal.record()
    assert refused.value.code == "session_not_found"
    assert await journal.read(0, 10) == ()
