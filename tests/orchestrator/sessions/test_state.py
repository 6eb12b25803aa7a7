"""Examples for the errors, limits and times of the pure session."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.sessions import Steps

from agents.events import AgentEvent, Fault, Origin, TaskFailed, TaskFinished, TaskOutput, TaskProgress, TaskStarted
from models.content import (
    AudioDelta,
    Call,
    CallDelta,
    CallResult,
    DraftUsage,
    FinishDelta,
    Message,
    OutputRole,
    Reasoning,
    ReasoningDelta,
    TextDelta,
    TextPart,
    UsageDelta,
    text_of,
)
from models.errors import Conflict, LimitExceeded, NotFound
from orchestrator.events import (
    ItemClosed,
    LogEvent,
    OnLeave,
    PlanMade,
    PlannedTask,
    PlanRevised,
    PlaybackHeard,
    TaskEnded,
    TurnAccepted,
    TurnEnded,
    TurnInput,
    Usage,
    done_with,
)
from orchestrator.sessions.open_turn import LiveTask, OpenItem


def answer(call_id: str, item_id: str = "item_answer") -> CallResult:
    return CallResult(item_id=item_id, call_id=call_id, parts=(TextPart(text="4", source="tool"),))


def sound(ms: int) -> AudioDelta:
    return AudioDelta(pcm=b"\0\0" * ms, rate_hz=1_000)


# Proposing and accepting


def test_a_turn_is_proposed_while_one_runs_and_refused_when_it_is_to_be_accepted(steps: Steps) -> None:
    steps.accept()
    generation = steps.propose(turn_id="turn_2")
    for interrupts in (None, "turn_other"):
        with pytest.raises(Conflict) as refused:
            steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s, interrupts=interrupts)
        assert refused.value.code == "turn_active"
        assert "turn_1" in refused.value.message
    assert steps.state.proposal is not None  # it may still be committed, once the other has ended or is interrupted
    steps.end()
    steps.write(steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s))


def test_what_is_proposed_while_a_turn_is_accepted_is_another_turn(steps: Steps) -> None:
    rows = steps.state.plan_accept("turn_1", steps.propose(), steps.decision, asked_s=steps.now_s)
    generation = steps.propose(turn_id="turn_2")
    for interrupts in (None, "turn_1"):  # which does not run yet
        with pytest.raises(Conflict) as refused:
            steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s, interrupts=interrupts)
        assert refused.value.code == "turn_active"
    steps.write(rows)
    assert steps.state.proposal is not None
    assert steps.state.proposal.turn_id == "turn_2"


def test_a_turn_that_interrupts_ends_the_other_with_the_rows_that_accept_it(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.accept(message("tell", "item_1"))
    steps.take(TextDelta(text="once upon a"))
    late = steps.progress(TextDelta(text=" time"))
    generation = steps.propose(message("stop", "item_2"), turn_id="turn_2")
    rows = steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s, interrupts="turn_1")
    assert [row.kind for row in rows] == ["item_closed", "task_ended", "turn_ended", "turn_accepted"]
    assert not steps.state.take(late, "item_x", steps.now_s)  # from the planning on
    assert steps.state.plan(late, "item_x", steps.now_s) == ()
    steps.write(rows)
    assert steps.state.turn is not None
    assert steps.state.turn.turn_id == "turn_2"
    assert not steps.state.take(late, "item_x", steps.now_s)
    assert [text_of(item) for item in steps.state.items] == ["tell", "once upon a", "stop"]


def test_a_turn_that_was_to_interrupt_one_that_has_ended_is_accepted(steps: Steps) -> None:
    steps.accept()
    generation = steps.propose(turn_id="turn_2")
    steps.end()
    rows = steps.state.plan_accept("turn_2", generation, steps.decision, asked_s=steps.now_s, interrupts="turn_1")
    assert [row.kind for row in rows] == ["turn_accepted"]


def test_what_is_proposed_while_a_turn_runs_is_an_answer_also_to_what_that_has_said(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.accept(message("tell", "item_1"))
    steps.take(TextDelta(text="once upon"))
    steps.add(message("hm", "item_2"))
    assert [text_of(item) for item in steps.state.context_now] == ["tell", "once upon", "hm"]
    assert [text_of(item) for item in steps.state.context] == ["tell", "hm"]
    steps.end()
    assert [text_of(item) for item in steps.state.context_now] == ["tell", "once upon", "hm"]


def test_a_turn_nobody_follows_is_overdue_also_while_another_is_proposed(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(detach_grace_s=20.0, proposal_s=60.0)
    steps.accept()
    steps.propose(turn_id="turn_2")
    assert (steps.state.next_due_s(), steps.state.overdue(120.0)) == (120.0, "detached")
    steps.state.attach()
    assert (steps.state.next_due_s(), steps.state.overdue(160.0)) == (160.0, "proposal")


def test_a_generation_is_accepted_only_while_it_is_proposed(steps: Steps) -> None:
    steps.propose()
    for turn_id, generation in (("turn_1", 2), ("turn_2", 1)):
        with pytest.raises(Conflict) as refused:
            steps.state.plan_accept(turn_id, generation, steps.decision, asked_s=steps.now_s)
        assert refused.value.code == "not_proposed"
    steps.state.discard("turn_1", 1)
    with pytest.raises(Conflict) as refused:
        steps.state.plan_accept("turn_1", 1, steps.decision, asked_s=steps.now_s)
    assert refused.value.code == "not_proposed"


def test_a_turn_cannot_be_accepted_while_one_runs(steps: Steps) -> None:
    steps.accept()
    with pytest.raises(Conflict) as refused:
        steps.state.plan_accept("turn_1", 1, steps.decision, asked_s=steps.now_s)
    assert refused.value.code == "turn_active"


def test_revisions_of_a_turn_share_its_id_and_count_up(steps: Steps) -> None:
    assert steps.propose() == 1
    assert steps.propose(turn_id="turn_other") == 2
    assert steps.state.proposal is not None
    assert steps.state.proposal.turn_id == "turn_1"


def test_the_oldest_of_too_many_candidates_is_dropped(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(candidates=2)
    steps.propose()
    steps.propose()
    assert steps.state.propose("turn_1", TurnInput(), steps.now_s) == (3, (1,))
    with pytest.raises(Conflict):
        steps.state.plan_accept("turn_1", 1, steps.decision, asked_s=steps.now_s)
    steps.state.plan_accept("turn_1", 2, steps.decision, asked_s=steps.now_s)


def test_discarding_the_last_candidate_drops_the_proposal(steps: Steps) -> None:
    steps.propose()
    steps.propose()
    steps.state.discard("turn_other", 1)
    steps.state.discard("turn_1", 1)
    assert steps.state.proposal is not None
    steps.state.discard("turn_1", 2)
    assert steps.state.proposal is None


def test_an_item_that_was_taken_between_proposal_and_commit_is_refused(
    steps: Steps, message: Callable[..., Message]
) -> None:
    steps.propose(message("one", "item_1"))
    steps.add(message("another", "item_1"))
    with pytest.raises(Conflict) as refused:
        steps.state.plan_accept("turn_1", 1, steps.decision, asked_s=steps.now_s)
    assert refused.value.code == "item_exists"
    assert steps.propose(message("one", "item_2")) == 2  # the proposal stands and may be revised


# Items


def test_an_item_id_is_taken_once(steps: Steps, message: Callable[..., Message]) -> None:
    steps.add(message("one", "item_1"))
    for refused_items in ((message("two", "item_1"),), (message("two", "item_2"), message("three", "item_2"))):
        with pytest.raises(Conflict) as refused:
            steps.state.plan_add(refused_items)
        assert refused.value.code == "item_exists"
        with pytest.raises(Conflict):
            steps.propose(*refused_items)
    assert steps.state.proposal is None


def test_a_result_needs_a_call(steps: Steps) -> None:
    with pytest.raises(NotFound) as refused:
        steps.state.plan_add((answer("call_1"),))
    assert refused.value.field == "call_id"


def test_a_call_is_answered_once(steps: Steps) -> None:
    steps.add(Call(item_id="item_1", call_id="call_1", name="add", arguments="{}"))
    with pytest.raises(Conflict) as refused:
        steps.state.plan_add((answer("call_1", "item_2"), answer("call_1", "item_3")))
    assert refused.value.code == "call_answered"
    steps.add(answer("call_1"))
    with pytest.raises(Conflict) as refused:
        steps.state.plan_add((answer("call_1", "item_4"),))
    assert refused.value.code == "call_answered"


def test_the_id_of_a_call_may_serve_again_once_that_has_its_result(steps: Steps) -> None:
    def call(item_id: str) -> Call:
        return Call(item_id=item_id, call_id="call_0", name="add", arguments="{}")

    steps.add(call("item_1"), answer("call_0", "item_2"), call("item_3"), answer("call_0", "item_4"))
    with pytest.raises(Conflict) as refused:
        steps.state.plan_add((answer("call_0", "item_5"),))
    assert refused.value.code == "call_answered"
    steps.add(call("item_5"))
    with pytest.raises(Conflict) as refused:
        steps.state.plan_add((call("item_6"),))
    assert refused.value.code == "call_exists"
    steps.add(answer("call_0", "item_6"))


def test_a_call_may_come_together_with_its_result(steps: Steps) -> None:
    steps.add(Call(item_id="item_1", call_id="call_1", name="add", arguments="{}"), answer("call_1"))
    with pytest.raises(NotFound):  # but not after it
        steps.state.plan_add(
            (answer("call_2", "item_2"), Call(item_id="item_3", call_id="call_2", name="add", arguments="{}"))
        )


def test_a_call_that_was_cut_short_has_no_result(steps: Steps) -> None:
    steps.accept()
    steps.take(CallDelta(call_id="call_1", name="add", arguments='{"a'))
    steps.end("length")
    assert steps.state.items[-1] == Call(
        item_id="item_reply", call_id="call_1", name="add", arguments='{"a', status="incomplete"
    )
    with pytest.raises(NotFound):
        steps.state.plan_add((answer("call_1"),))


def test_the_oldest_items_leave_while_a_turn_runs_and_the_reply_keeps_its_place(
    new_steps: Callable[..., Steps], message: Callable[..., Message]
) -> None:
    steps = new_steps(items=4)
    steps.add(message("old", "item_0"))
    steps.accept(message("question", "item_1"))
    steps.take(TextDelta(text="answer"))
    steps.add(*(message("meanwhile", f"item_{n}") for n in (2, 3, 4)))
    assert [item.item_id for item in steps.state.items] == ["item_1", "item_2", "item_3", "item_4"]
    steps.end()
    # Its place was right after the question, which has left by now.
    assert [item.item_id for item in steps.state.items] == ["item_reply", "item_2", "item_3", "item_4"][-4:]


def test_a_reply_whose_place_has_left_leaves_as_well(
    new_steps: Callable[..., Steps], message: Callable[..., Message]
) -> None:
    steps = new_steps(items=2)
    steps.accept(message("question", "item_1"))
    steps.take(TextDelta(text="answer"))
    steps.add(*(message("meanwhile", f"item_{n}") for n in (2, 3, 4)))
    steps.end()
    assert [item.item_id for item in steps.state.items] == ["item_3", "item_4"]


# Output


def test_deltas_of_another_kind_close_the_item_that_is_open(steps: Steps) -> None:
    steps.accept()
    assert steps.take(TextDelta(text="Let me see. "))
    call = CallDelta(call_id="call_1", name="add", arguments="{")
    assert not steps.take(call)
    (closed,) = steps.write(steps.state.plan(steps.progress(call), "item_unused", steps.now_s))
    assert isinstance(closed, ItemClosed)
    assert text_of(closed.item) == "Let me see. "
    assert steps.take(call, "item_call")
    assert steps.take(CallDelta(call_id="call_1", name="add", arguments="}"))
    assert not steps.take(CallDelta(call_id="call_2", name="add", arguments="{}"))
    closed, _, ended = steps.end("calls")
    assert isinstance(closed, ItemClosed)
    assert closed.item == Call(item_id="item_call", call_id="call_1", name="add", arguments="{}")
    assert isinstance(ended, TurnEnded)


def test_an_empty_delta_opens_an_item_and_an_item_may_close_empty(steps: Steps) -> None:
    steps.accept()
    assert steps.take(TextDelta(text=""))
    closed, *_ = steps.end()
    assert isinstance(closed, ItemClosed)
    assert closed.item == Message(item_id="item_reply", role="assistant", parts=())


def test_nothing_is_taken_from_a_generation_that_was_cancelled(steps: Steps) -> None:
    steps.accept()
    late = [
        steps.progress(TextDelta(text="late")),
        steps.progress(UsageDelta(input_tokens=1, output_tokens=1)),
        TaskStarted(origin=steps.origin(), card="scripted"),
        TaskFinished(origin=steps.origin(), reason="stop"),
        done_with(TaskFinished(origin=steps.origin(), reason="stop")),
        TaskOutput(origin=steps.origin(), name="sum", parts=()),
        PlanMade(turn_id="turn_1", generation=1, tasks=()),
    ]
    rows = steps.state.plan_cancel("turn_1", "client_cancelled", steps.now_s)

    def nothing_is_taken() -> None:
        for event in late:
            assert not steps.state.take(event, "item_late", steps.now_s)
            assert steps.state.plan(event, "item_late", steps.now_s) == ()

    nothing_is_taken()  # before the rows are written
    steps.write(rows)
    nothing_is_taken()
    steps.accept(turn_id="turn_2")
    nothing_is_taken()  # the next turn counts its generations from 1 again


def test_an_interruption_takes_a_generation_that_no_candidate_has_had(steps: Steps) -> None:
    for _ in range(3):
        steps.propose()
    steps.write(steps.state.plan_accept("turn_1", 1, steps.decision, asked_s=steps.now_s))
    (ended,) = steps.state.plan_cancel("turn_1", "client_cancelled", steps.now_s)
    assert isinstance(ended, TurnEnded)
    assert ended.generation == 4


def test_only_the_running_turn_is_cancelled(steps: Steps) -> None:
    with pytest.raises(Conflict) as none_runs:
        steps.state.plan_cancel("turn_1", "client_cancelled", steps.now_s)
    assert none_runs.value.code == "turn_not_active"
    steps.accept()
    with pytest.raises(Conflict) as another_runs:
        steps.state.plan_cancel("turn_2", "client_cancelled", steps.now_s)
    assert another_runs.value.code == "turn_not_active"
    assert steps.take(TextDelta(text="still taken"))


@pytest.mark.parametrize(
    ("reason", "status"), [("stop", "completed"), ("calls", "completed"), ("length", "incomplete")]
)
def test_how_a_task_finishes_says_whether_its_item_is_whole(steps: Steps, reason: str, status: str) -> None:
    steps.accept()
    steps.take(TextDelta(text="word"))
    closed, _, ended = steps.end(reason)
    assert isinstance(closed, ItemClosed)
    assert isinstance(closed.item, Message)
    assert closed.item.status == status
    assert isinstance(ended, TurnEnded)
    assert (ended.state, ended.reason, ended.fault) == ("finished", reason, None)


def test_a_failure_is_logged_with_its_fault_and_what_was_written(steps: Steps) -> None:
    steps.accept()
    steps.take(TextDelta(text="word"))
    fault = Fault(code="worker_died", message="It died.", retryable=True)
    done = done_with(TaskFailed(origin=steps.origin(), fault=fault))
    closed, task, ended = steps.write(steps.state.plan(done, "item_unused", steps.now_s))
    assert isinstance(task, TaskEnded)
    assert (task.state, task.fault) == ("failed", fault)
    assert isinstance(closed, ItemClosed)
    assert isinstance(closed.item, Message)
    assert closed.item.status == "incomplete"
    assert isinstance(ended, TurnEnded)
    assert (ended.state, ended.reason, ended.fault) == ("failed", None, fault)


def test_the_end_says_what_was_spent_and_how_long_it_took(steps: Steps) -> None:
    steps.accept()
    steps.take(UsageDelta(input_tokens=7, output_tokens=0))
    steps.now_s += 0.25
    steps.take(TextDelta(text="word"))
    steps.now_s += 0.5
    steps.take(UsageDelta(input_tokens=0, output_tokens=3))
    *_, ended = steps.end()
    assert isinstance(ended, TurnEnded)
    assert ended.usage == Usage(input_tokens=7, output_tokens=3)
    assert (ended.first_delta_ms, ended.duration_ms) == (250, 750)


def test_a_turn_without_a_delta_has_no_first_one(steps: Steps) -> None:
    steps.accept()
    *_, ended = steps.end()
    assert isinstance(ended, TurnEnded)
    assert ended.first_delta_ms is None


@pytest.mark.parametrize("what", ["delta", "started"])
def test_a_finish_delta_and_a_start_change_no_text(steps: Steps, what: str) -> None:
    steps.accept()
    event: AgentEvent = (
        TaskStarted(origin=steps.origin(), card="scripted")
        if what == "started"
        else steps.progress(FinishDelta(reason="stop"))
    )
    assert steps.state.take(event, "item_reply", steps.now_s) == (what == "started")
    assert steps.state.plan(event, "item_late", steps.now_s) == ()
    assert steps.state.turn is not None
    assert not steps.state.turn.open


def test_an_open_item_counts_characters_and_keeps_line_ends() -> None:
    task = LiveTask(task_id="t", agent="writer", role="answer")
    item = OpenItem(Message(item_id="item_1", role="assistant", parts=()), task, 0)
    for text in ("👩‍🎤", "", "\r\n", "é\r", "\n"):
        item.append(text)
    assert item.length == len("👩‍🎤\r\né\r\n")
    assert item.since(0) == "👩‍🎤\r\né\r\n"
    assert item.since(3) == "\r\né\r\n"
    item.append("end")  # reading moves no place of writing
    assert item.since(item.length - 4) == "\nend"
    assert item.since(item.length) == ""


# Tasks


def of_task(steps: Steps, number: int, role: OutputRole = "answer") -> Origin:
    return replace(steps.origin(), task_id=f"turn_1.{number}", role=role)


def planned(number: int) -> PlannedTask:
    return PlannedTask(task_id=f"turn_1.{number}", agent="writer", card="scripted", output=f"out_{number}")


def ends_of(rows: tuple[LogEvent, ...]) -> dict[str, str]:
    return {row.task_id: row.state for row in rows if isinstance(row, TaskEnded)}


def test_the_end_of_a_task_closes_its_items_and_ends_no_turn(steps: Steps) -> None:
    steps.accept()
    first, second = of_task(steps, 1), of_task(steps, 2)
    for origin, item_id in ((first, "item_1"), (second, "item_2")):
        assert steps.state.take(TaskProgress(origin=origin, delta=TextDelta(text="word")), item_id, steps.now_s)
    rows = steps.write(steps.state.plan(TaskFinished(origin=first, reason="stop"), "item_x", steps.now_s))
    assert [row.kind for row in rows] == ["item_closed", "task_ended"]
    assert steps.state.turn is not None
    assert [item.item_id for item in steps.state.turn.open.values()] == ["item_2"]
    assert not steps.state.take(TaskProgress(origin=first, delta=TextDelta(text="late")), "item_3", steps.now_s)
    assert steps.state.take(TaskProgress(origin=second, delta=TextDelta(text=" more")), "item_3", steps.now_s)


def test_items_have_their_places_in_the_order_in_which_they_were_begun(steps: Steps) -> None:
    steps.accept()
    for number in (1, 2, 3):
        delta = TaskProgress(origin=of_task(steps, number), delta=TextDelta(text=str(number)))
        steps.state.take(delta, f"item_{number}", steps.now_s)
    for number in (3, 1):
        end = TaskFinished(origin=of_task(steps, number), reason="stop")
        steps.write(steps.state.plan(end, "item_x", steps.now_s))
    done = done_with(TaskFinished(origin=of_task(steps, 2), reason="stop"))
    steps.write(steps.state.plan(done, "item_x", steps.now_s))
    assert [item.item_id for item in steps.state.items] == ["item_1", "item_2", "item_3"]


def test_work_and_thoughts_are_logged_and_no_model_is_shown_them(steps: Steps) -> None:
    steps.accept()
    work = TaskProgress(origin=of_task(steps, 2, "work"), delta=TextDelta(text="17.5 %"))
    steps.state.take(work, "item_work", steps.now_s)
    steps.take(ReasoningDelta(text="hm"), "item_thought")
    (thought,) = steps.write(steps.state.plan(steps.progress(TextDelta(text="It is 40.")), "item_x", steps.now_s))
    assert isinstance(thought, ItemClosed)
    assert thought.item == Reasoning(item_id="item_thought", text="hm")
    steps.take(TextDelta(text="It is 40."), "item_answer")
    rows = steps.end()
    assert [text_of(row.item) for row in rows if isinstance(row, ItemClosed)] == ["It is 40.", "17.5 %"]
    assert [item.item_id for item in steps.state.context] == ["item_answer"]


def test_the_usage_of_a_turn_is_that_of_its_tasks_also_of_those_that_told_none(steps: Steps) -> None:
    steps.accept()
    drafts = (DraftUsage(drafter="suffix", drafted=4, accepted=2),)
    for number in (1, 2):
        used = UsageDelta(input_tokens=3, output_tokens=5, drafts=drafts)
        steps.state.take(TaskProgress(origin=of_task(steps, number), delta=used), "item_x", steps.now_s)
    cut = TaskProgress(origin=of_task(steps, 3), delta=TextDelta(text="seven", written=7))
    steps.state.take(cut, "item_3", steps.now_s)
    *_, ended = steps.state.plan_cancel("turn_1", "client_cancelled", steps.now_s)
    assert isinstance(ended, TurnEnded)
    both = DraftUsage(drafter="suffix", drafted=8, accepted=4)
    assert ended.usage == Usage(input_tokens=6, output_tokens=17, drafts=(both,))


def test_the_effect_of_a_call_is_known_by_turn_task_and_ordinal_if_the_task_is_done_again(steps: Steps) -> None:
    def keys_of(call_ids: tuple[str, ...]) -> list[str]:
        again = Steps(steps.decision)
        again.accept()
        rows: tuple[LogEvent, ...] = ()
        for number, call_id in enumerate(call_ids):
            event = again.progress(CallDelta(call_id=call_id, name="pay", arguments="{}"))
            if not again.state.take(event, f"item_{number}", again.now_s):
                rows += again.write(again.state.plan(event, "item_x", again.now_s))
                assert again.state.take(event, f"item_{number}", again.now_s)
        rows += again.end("calls")
        return [row.effect.key for row in rows if isinstance(row, ItemClosed) and row.effect is not None]

    assert keys_of(("call_a", "call_b")) == keys_of(("call_c", "call_d"))
    assert len(set(keys_of(("call_a", "call_b")))) == 2


def test_calls_whose_fragments_come_in_turn_are_open_side_by_side(steps: Steps) -> None:
    steps.accept()
    for call_id, arguments in (("call_a", '{"a"'), ("call_b", '{"b"'), ("call_a", ":1}"), ("call_b", ":2}")):
        assert steps.take(CallDelta(call_id=call_id, name="add", arguments=arguments), f"item_{call_id}")
    rows = steps.end("calls")
    assert [row.item.arguments for row in rows if isinstance(row, ItemClosed)] == ['{"a":1}', '{"b":2}']


def test_tasks_that_were_planned_and_had_no_end_are_cancelled_with_their_turn(steps: Steps) -> None:
    steps.accept()
    at = {"turn_id": "turn_1", "generation": 1}
    steps.write((PlanMade(**at, tasks=(planned(1), planned(2), planned(3))),))
    steps.state.take(TaskStarted(origin=of_task(steps, 1), card="scripted"), "item_x", steps.now_s)
    steps.write((PlanRevised(**at, revision=1, reason="no need", added=(planned(4),), dropped=("turn_1.2",)),))
    done = done_with(TaskFinished(origin=of_task(steps, 1), reason="stop"))
    rows = steps.write(steps.state.plan(done, "item_x", steps.now_s))
    assert ends_of(rows) == {"turn_1.1": "finished", "turn_1.3": "cancelled", "turn_1.4": "cancelled"}


def test_a_turn_that_was_cut_off_reports_which_of_its_tasks_have_no_end(steps: Steps) -> None:
    steps.accept()
    first = of_task(steps, 1)
    log = [*steps.write((PlanMade(turn_id="turn_1", generation=1, tasks=(planned(1), planned(2), planned(3))),))]
    steps.state.take(TaskProgress(origin=first, delta=TextDelta(text="40")), "item_1", steps.now_s)
    log += steps.write(steps.state.plan(TaskFinished(origin=first, reason="stop"), "item_x", steps.now_s))
    folded = Steps(steps.decision)  # as a restart finds it
    folded.accept()
    folded.write(tuple(log))
    *ends, ended = folded.state.plan_recover("server_restarted")
    assert ends_of(tuple(ends)) == {"turn_1.2": "cancelled", "turn_1.3": "cancelled"}
    assert all(end.ended_ms is None for end in ends)
    assert isinstance(ended, TurnEnded)
    assert (ended.state, ended.reason) == ("interrupted", "server_restarted")


@pytest.mark.parametrize(("on_leave", "due_s"), [("cancel", 0.0), ("grace", 60.0), ("background", None)])
def test_what_becomes_of_a_turn_that_nobody_follows_is_its_own_to_say(
    steps: Steps, on_leave: OnLeave, due_s: float | None
) -> None:
    turn_input = TurnInput(on_leave=on_leave)
    generation, _ = steps.state.propose("turn_1", turn_input, steps.now_s)
    steps.write(steps.state.plan_accept("turn_1", generation, steps.decision, asked_s=steps.now_s))
    due = steps.state.next_due_s()
    assert due == (None if due_s is None else steps.now_s + due_s)


# Playback


def test_of_a_written_item_nothing_can_be_heard(steps: Steps, message: Callable[..., Message]) -> None:
    steps.add(message("hello", "item_1"))
    steps.state.heard("item_1", 0)
    for ms in (1, -1):
        with pytest.raises(LimitExceeded) as refused:
            steps.state.heard("item_1", ms)
        assert refused.value.field == "ms"
    with pytest.raises(NotFound) as unknown:
        steps.state.heard("item_2", 0)
    assert unknown.value.field == "item_id"


def test_playback_is_bounded_by_the_sound_and_logged_with_the_next_transaction(steps: Steps) -> None:
    steps.accept()
    steps.take(sound(300))
    steps.take(sound(200))
    for ms in (100, 500, 250):  # what comes late is known already
        steps.state.heard("item_reply", ms)
    with pytest.raises(LimitExceeded):
        steps.state.heard("item_reply", 501)
    closed, _, heard, ended = steps.end()
    assert isinstance(closed, ItemClosed)
    assert closed.audio_ms == 500
    assert heard == PlaybackHeard(item_id="item_reply", heard_ms=500, heard_characters=0)
    assert isinstance(ended, TurnEnded)
    steps.state.heard("item_reply", 500)  # nothing new
    steps.propose(turn_id="turn_2")
    assert len(steps.state.plan_accept("turn_2", 1, steps.decision, asked_s=steps.now_s)) == 1


def test_what_is_heard_while_a_row_is_being_written_is_logged_with_the_next(steps: Steps) -> None:
    steps.accept()
    steps.take(sound(500))
    steps.state.heard("item_reply", 100)
    rows = steps.state.plan(done_with(TaskFinished(origin=steps.origin(), reason="stop")), "item_x", steps.now_s)
    steps.state.heard("item_reply", 400)
    steps.write(rows)
    steps.propose(turn_id="turn_2")
    heard, accepted = steps.state.plan_accept("turn_2", 1, steps.decision, asked_s=steps.now_s)
    assert heard == PlaybackHeard(item_id="item_reply", heard_ms=400, heard_characters=0)
    assert isinstance(accepted, TurnAccepted)


def test_playback_of_an_item_that_has_left_is_not_logged(
    new_steps: Callable[..., Steps], message: Callable[..., Message]
) -> None:
    steps = new_steps(items=1)
    steps.add(message("one", "item_1"))
    steps.state.heard("item_1", 0)
    steps.add(message("two", "item_2"))
    with pytest.raises(NotFound):
        steps.state.heard("item_1", 0)
    steps.accept(turn_id="turn_1")
    assert steps.state.turn is not None


# Times


def test_a_proposal_is_overdue_after_its_time_and_a_revision_starts_it_anew(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(proposal_s=30.0)
    steps.state.attach()  # readers or not
    steps.propose()
    assert steps.state.next_due_s() == 130.0
    steps.now_s = 120.0
    steps.propose()
    assert steps.state.overdue(149.9) is None
    assert steps.state.overdue(150.0) == "proposal"


def test_a_turn_without_a_reader_is_overdue_after_the_grace_time(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(detach_grace_s=60.0, idle_s=300.0)
    steps.state.attach()
    steps.state.attach()
    steps.accept()
    assert steps.state.next_due_s() is None
    steps.state.detach(200.0)
    assert steps.state.overdue(1_000.0) is None
    steps.state.detach(300.0)
    assert steps.state.overdue(359.9) is None
    assert steps.state.overdue(360.0) == "detached"
    steps.state.attach()
    assert steps.state.overdue(1_000.0) is None


def test_a_turn_that_nobody_ever_read_has_the_grace_time_from_its_acceptance(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(detach_grace_s=60.0)
    steps.state.touch(0.0)
    steps.accept()
    assert steps.state.overdue(159.9) is None
    assert steps.state.overdue(160.0) == "detached"


def test_a_session_without_reader_or_turn_is_idle_after_its_time(new_steps: Callable[..., Steps]) -> None:
    steps = new_steps(idle_s=300.0)
    steps.state.touch(100.0)
    assert steps.state.overdue(399.9) is None
    assert steps.state.overdue(400.0) == "idle"
    steps.accept()
    steps.now_s = 150.0
    steps.end()
    assert steps.state.overdue(449.9) is None
    assert steps.state.overdue(450.0) == "idle"


def test_nothing_is_overdue_while_an_acceptance_is_being_written(steps: Steps) -> None:
    rows = steps.state.plan_accept("turn_1", steps.propose(), steps.decision, asked_s=steps.now_s)
    assert steps.state.overdue(1e9) is None
    steps.write(rows)
    assert steps.state.overdue(1e9) == "detached"


# Recovery


def test_a_fold_that_ends_within_a_turn_is_reported_once(steps: Steps) -> None:
    assert steps.state.plan_recover("server_restarted") == ()
    steps.accept()
    (ended,) = steps.write(steps.state.plan_recover("server_restarted"))
    assert isinstance(ended, TurnEnded)
    assert (ended.turn_id, ended.generation, ended.state, ended.reason, ended.duration_ms) == (
        "turn_1",
        2,
        "interrupted",
        "server_restarted",
        None,
    )
    assert steps.state.plan_recover("server_restarted") == ()
