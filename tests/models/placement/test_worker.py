"""A real worker process with the scripted engine: streaming, flow control, cancellation, death and restart."""

import asyncio
import gc
import json
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

import psutil
import pytest

from models.catalog import EngineSpec
from models.clock import ManualClock, SystemClock
from models.content import Delta, FinishDelta, Message, TextDelta, TextPart, UsageDelta
from models.errors import (
    BadInput,
    BatonError,
    DeadlineExceeded,
    Internal,
    LimitExceeded,
    NotFound,
    Overloaded,
    Unavailable,
    WorkerDied,
)
from models.placement import heartbeat
from models.placement.client import Worker
from models.placement.doors import Door
from models.placement.frames import WINDOW
from models.ports.generate import GenerateRequest, Sampling

_COUNT = {"pattern": r"^count to (\d+)$", "reply": "{n} ", "times": r"\1"}
_HANG = {"pattern": "^hang$", "reply": "never", "gap_s": 3600.0}
_EXIT = {"pattern": "^exit$", "reply": "last words", "fault": "exit"}
_DEFECT = {"pattern": "^defect$", "reply": "", "times": "not a number"}


def _worker(*rules: dict[str, object], clock: SystemClock | ManualClock | None = None, **bounds: float) -> Worker:
    script = EngineSpec(name="scripted", options=json.dumps({"rules": [*rules, _COUNT, _HANG, _EXIT, _DEFECT]}))
    return Worker({"script": script}, clock or SystemClock(), **bounds)


@asynccontextmanager
async def _running(worker: Worker) -> AsyncIterator[Worker]:
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _ask(
    worker: Worker, text: str, *, card: str = "script", deadline: float | None = None
) -> AsyncGenerator[Delta, None]:
    message = Message(item_id="item_1", role="user", parts=(TextPart(text=text),))
    request = GenerateRequest(
        messages=(message,), sampling=Sampling(max_output_tokens=10_000), tenant="local", deadline=deadline
    )
    return Door(worker, card).generate(request)


async def _collect(deltas: AsyncGenerator[Delta, None], into: list[Delta]) -> None:
    async for delta in deltas:
        into.append(delta)


async def _answer(worker: Worker, text: str, *, card: str = "script") -> str:
    deltas = [delta async for delta in _ask(worker, text, card=card)]
    assert isinstance(deltas[-1], FinishDelta)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def _count_to(n: int) -> str:
    return "".join(f"{i} " for i in range(1, n + 1))


async def test_a_request_streams_from_the_process():
    async with _running(_worker()) as worker:
        deltas = [delta async for delta in _ask(worker, "count to 3")]
        assert worker.pid not in (None, psutil.Process().pid)
        assert worker.requests == 0
    assert [type(delta) for delta in deltas] == [UsageDelta, *[TextDelta] * 3, UsageDelta, FinishDelta]


async def test_fifty_requests_at_once_all_arrive_whole_and_in_order():
    async with _running(_worker()) as worker:
        lengths = range(2 * WINDOW, 2 * WINDOW + 50)
        answers = await asyncio.gather(*(_answer(worker, f"count to {n}") for n in lengths))
    assert answers == [_count_to(n) for n in lengths]


async def test_a_request_that_came_before_the_process_waits_for_it():
    worker = _worker()
    early = asyncio.create_task(_answer(worker, "count to 2"))
    await asyncio.sleep(0)
    async with _running(worker):
        assert await early == "1 2 "


async def test_a_reader_that_stops_stops_the_engine_and_nothing_piles_up():
    async with _running(_worker()) as worker, aclosing(_ask(worker, "count to 5000")) as deltas:
        taken = [await anext(deltas)]
        (stream,) = worker._streams.values()
        # The child serves both in turn, one token each: while it writes these, the first could have written as many.
        await _answer(worker, f"count to {10 * WINDOW}")
        assert len(taken) + len(stream.outputs) == WINDOW
        async for delta in deltas:
            taken.append(delta)
            assert len(stream.outputs) <= WINDOW
    assert "".join(delta.text for delta in taken if isinstance(delta, TextDelta)) == _count_to(5000)


async def test_closing_the_iterator_stops_the_work_in_the_process():
    # If it were not stopped, the closed request would take the process down while the other one is being answered.
    doomed = {"pattern": "^doomed$", "reply": "x", "gap_s": 2.0, "fault": "exit"}
    longer = {"pattern": "^longer$", "reply": "done", "gap_s": 2.5}
    async with _running(_worker(doomed, longer)) as worker:
        async with aclosing(_ask(worker, "doomed")) as deltas:
            await anext(deltas)
        assert worker.requests == 0
        assert await _answer(worker, "longer") == "done"
        assert worker.restarts == 0


async def test_a_process_that_ends_fails_what_it_ran_and_is_started_again():
    async with _running(_worker()) as worker:
        neighbour = _ask(worker, "hang")
        await anext(neighbour)
        first_pid = worker.pid
        written: list[Delta] = []
        with pytest.raises(WorkerDied) as own:
            await _collect(_ask(worker, "exit"), written)
        with pytest.raises(WorkerDied) as others:
            await anext(neighbour)
        assert own.value.retryable
        assert others.value.retryable
        assert [delta.text for delta in written if isinstance(delta, TextDelta)] == ["last ", "words"]
        assert worker.requests == 0
        assert await _answer(worker, "count to 3") == "1 2 3 "
        assert worker.restarts == 1
        assert worker.pid != first_pid


async def test_a_request_that_failed_with_a_process_is_not_run_by_the_next_one():
    clock = ManualClock()
    worker = _worker(clock=clock)
    early = _ask(worker, "exit")
    waiting = asyncio.ensure_future(anext(early))
    async with _running(worker):
        while worker._writer is None:  # noqa: ASYNC110  # nobody is told before the process is ready
            await asyncio.sleep(0)
        (process,) = psutil.Process().children()
        process.kill()  # before it was ready, so that the request was never sent
        while not worker.restarts:  # noqa: ASYNC110  # nor of a restart
            await asyncio.sleep(0)
        clock.advance(1.0)
        with pytest.raises(WorkerDied):
            await waiting
        # Were it run, it would end the new process.
        assert await _answer(worker, "count to 2") == "1 2 "
        assert worker.restarts == 1


async def test_one_request_more_than_the_bound_is_refused_and_may_be_retried():
    async with _running(_worker(max_requests=2, max_tenant_requests=2)) as worker:
        first, second = _ask(worker, "hang"), _ask(worker, "hang")
        await anext(first)
        await anext(second)
        with pytest.raises(Overloaded) as refused:
            await anext(_ask(worker, "count to 1"))
        assert refused.value.retryable
        await first.aclose()
        assert await _answer(worker, "count to 1") == "1 "
        await second.aclose()


@pytest.mark.parametrize(
    ("card", "text", "kind"),
    [
        ("script", "no rule for this", BadInput),
        ("no-such-card", "count to 1", NotFound),
        ("script", "defect", Internal),
    ],
    ids=["refused", "unknown card", "defect"],
)
async def test_an_error_in_the_process_fails_one_request_and_arrives_as_it_was_raised(card, text, kind):
    async with _running(_worker()) as worker:
        neighbour = _ask(worker, "count to 500")
        counted = [await anext(neighbour)]
        with pytest.raises(BatonError) as caught:
            [delta async for delta in _ask(worker, text, card=card)]
        assert type(caught.value) is kind
        counted += [delta async for delta in neighbour]
        assert "".join(delta.text for delta in counted if isinstance(delta, TextDelta)) == _count_to(500)
        assert worker.restarts == 0


async def test_a_deadline_holds_in_the_process_too():
    async with _running(_worker()) as worker:
        await _answer(worker, "count to 1")
        with pytest.raises(DeadlineExceeded):
            [delta async for delta in _ask(worker, "hang", deadline=SystemClock().now_s() + 0.1)]


@pytest.mark.parametrize(
    ("deadline_after_s", "kind"), [(5.0, DeadlineExceeded), (None, WorkerDied), (60.0, DeadlineExceeded)]
)
async def test_waiting_for_a_model_ends_with_the_deadline_and_with_the_bound_if_there_is_none(deadline_after_s, kind):
    clock = ManualClock()
    worker = _worker(clock=clock, ready_timeout_s=20.0)
    deadline_s = None if deadline_after_s is None else clock.now_s() + deadline_after_s
    waiting = asyncio.ensure_future(anext(_ask(worker, "count to 1", deadline=deadline_s)))
    await asyncio.sleep(0)
    clock.advance(deadline_after_s or 20.0)
    with pytest.raises(BatonError) as caught:
        await waiting
    assert type(caught.value) is kind
    assert worker.requests == 0


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        (EngineSpec(name="scripted", options='{"gap_s": "soon"}'), BadInput, "gap_s"),
        (EngineSpec(name="nonesuch"), NotFound, "Known engines"),
    ],
)
async def test_an_engine_that_cannot_be_built_is_said_at_once_to_whoever_asks_for_it(spec, kind, said, caplog):
    async with _running(Worker({"script": spec}, SystemClock())) as worker:
        for _ in range(2):
            with pytest.raises(kind, match=said):
                await _answer(worker, "count to 3")
    assert said in caplog.text


# Several cards


def _script(reply: str) -> EngineSpec:
    return EngineSpec(name="scripted", options=json.dumps({"rules": [{"pattern": ".*", "reply": reply}]}))


_BROKEN = EngineSpec(name="scripted", options='{"gap_s": "soon"}')


async def test_each_card_is_answered_by_its_own_engine():
    async with _running(Worker({"one": _script("I am one"), "two": _script("I am two")}, SystemClock())) as worker:
        answers = await asyncio.gather(*(_answer(worker, "who?", card=card) for card in ("one", "two", "one")))
    assert answers == ["I am one", "I am two", "I am one"]


async def test_what_is_to_be_forgotten_is_answered_when_it_is_done_and_by_a_process_that_is_down_at_once():
    worker = _worker()
    async with asyncio.timeout(30):
        await worker.forget("acme")  # there is none yet
        async with _running(worker):
            await _answer(worker, "count to 2")
            await asyncio.gather(*(worker.forget("acme", f"subject {n}") for n in range(20)))
            assert worker.pid is not None
            psutil.Process(worker.pid).suspend()
            forgetting = asyncio.create_task(worker.forget("acme"))
            await asyncio.sleep(0.2)
            assert not forgetting.done()
            psutil.Process(worker.pid).kill()
            await forgetting  # with the process


async def test_a_card_may_be_loaded_while_another_is_served():
    async with _running(_worker()) as worker:
        neighbour = _ask(worker, "count to 2000")
        counted = [await anext(neighbour)]
        pid = worker.pid
        assert worker.status("late").state != "ready"
        worker.load("late", _script("better late"))
        await worker.until_settled("late")
        assert worker.status("late").state == "ready"
        assert await _answer(worker, "well?", card="late") == "better late"
        counted += [delta async for delta in neighbour]
        assert "".join(delta.text for delta in counted if isinstance(delta, TextDelta)) == _count_to(2000)
        assert (worker.pid, worker.restarts) == (pid, 0)


async def test_a_card_that_was_loaded_late_is_there_after_a_restart_too():
    async with _running(_worker()) as worker:
        worker.load("late", _script("better late"))
        await worker.until_settled("late")
        with pytest.raises(WorkerDied):
            await _answer(worker, "exit")
        assert await _answer(worker, "well?", card="late") == "better late"
        assert worker.restarts == 1


async def test_a_request_for_a_card_that_is_expected_waits_for_it():
    async with _running(_worker()) as worker:
        worker.door("late")
        asking = asyncio.create_task(_answer(worker, "well?", card="late"))
        assert await _answer(worker, "count to 3") == _count_to(3)
        assert not asking.done()
        worker.load("late", _script("better late"))
        assert await asking == "better late"


async def test_a_request_for_a_card_that_is_given_up_fails_as_all_later_ones_do():
    async with _running(_worker()) as worker:
        worker.door("late")
        asking = asyncio.create_task(_answer(worker, "well?", card="late"))
        await _answer(worker, "count to 1")
        await worker.settle("late", BadInput("There are no weights."))
        for request in (asking, _answer(worker, "well?", card="late"), worker.until_settled("late")):
            with pytest.raises(BadInput, match="no weights"):
                await request
        assert worker.status("late").state == "failed"
        assert worker.status("late").state != "ready"
        assert worker.requests == 0


async def test_a_card_that_was_given_up_is_not_loaded_by_the_next_process():
    async with _running(_worker()) as worker:
        worker.load("late", _script("better late"))
        await worker.until_settled("late")
        await worker.settle("late", BadInput("Its weights were removed."))
        with pytest.raises(WorkerDied):
            await _answer(worker, "exit")
        await _answer(worker, "count to 1")
        with pytest.raises(BadInput, match="were removed"):
            await _answer(worker, "well?", card="late")


async def test_a_card_that_cannot_be_loaded_leaves_the_process_and_the_other_cards_alone(caplog):
    async with _running(_worker()) as worker:
        neighbour = _ask(worker, "count to 500")
        counted = [await anext(neighbour)]
        pid = worker.pid
        worker.load("broken", _BROKEN)
        with pytest.raises(BadInput, match="gap_s"):
            await worker.until_settled("broken")
        counted += [delta async for delta in neighbour]
        assert "".join(delta.text for delta in counted if isinstance(delta, TextDelta)) == _count_to(500)
        assert (worker.pid, worker.restarts) == (pid, 0)
        # And a card that is put right is loaded.
        worker.load("broken", _script("mended"))
        assert await _answer(worker, "well?", card="broken") == "mended"
        assert worker.status("broken").state == "ready"
    assert "the model broken cannot be loaded" in caplog.text


async def test_each_caller_gets_an_error_of_its_own():
    # One that is raised twice would gather the frames of both.
    async with _running(_worker()) as worker:
        await worker.settle("late", BadInput("There are no weights."))
        caught = []
        for _ in range(2):
            with pytest.raises(BadInput) as refused:
                await _answer(worker, "well?", card="late")
            caught.append(refused.value)
        assert caught[0] is not caught[1]


async def test_a_card_is_loaded_only_while_there_is_a_process_that_has_it():
    worker = _worker()
    assert worker.status("script").state != "ready"
    assert worker.status("no-such-card").state == "loading"
    async with _running(worker):
        await worker.until_settled("script")
        assert worker.status("script").state == "ready"
        assert worker.status("script").state != "failed"
        with pytest.raises(WorkerDied):
            await _answer(worker, "exit")
        assert worker.status("script").state != "ready"
        await worker.until_settled("script")
        assert worker.status("script").state == "ready"


# The process


async def test_a_folder_named_as_the_package_in_the_working_directory_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    async with _running(_worker()) as worker, asyncio.timeout(20):
        await worker.until_settled("script")
        assert await _answer(worker, "count to 2") == "1 2 "


async def test_a_process_that_never_gets_ready_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr("models.placement.client._MIN_DELAY_S", 0.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with _running(_worker()) as worker, asyncio.timeout(20):
        with pytest.raises(Unavailable, match="ended 3 times before it had loaded 'script'"):
            await worker.until_settled("script")
        with pytest.raises(Unavailable, match="server's log"):
            await _answer(worker, "count to 1")


async def test_a_process_that_is_not_ready_in_time_is_ended_and_another_is_started(caplog):
    async with _running(_worker(ready_timeout_s=0.01)) as worker:
        with pytest.raises(WorkerDied):
            await _answer(worker, "count to 3")
        async with asyncio.timeout(20):
            while worker.restarts < 2:  # noqa: ASYNC110  # a supervisor tells nobody that it has restarted
                await asyncio.sleep(0)
    assert "not ready within" in caplog.text
    assert psutil.Process().children() == []


async def test_a_request_too_large_for_a_frame_is_refused_and_the_process_lives(monkeypatch):
    async with _running(_worker()) as worker:
        await _answer(worker, "count to 1")
        pid = worker.pid
        monkeypatch.setattr("models.placement.frames.MAX_FRAME_BYTES", 2_000)
        with pytest.raises(LimitExceeded):
            await _answer(worker, "x" * 3_000)
        assert await _answer(worker, "count to 3") == _count_to(3)
        assert worker.pid == pid


async def test_cancelling_run_ends_the_process_and_what_it_ran():
    worker = _worker()
    async with _running(worker):
        deltas = _ask(worker, "hang")
        await anext(deltas)
        pid = worker.pid
    assert pid is not None
    assert not psutil.pid_exists(pid)
    with pytest.raises(WorkerDied):
        await anext(deltas)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelling_run_while_the_process_is_being_started_leaves_nothing_behind(turns):
    async with _running(_worker()):
        for _ in range(turns):
            await asyncio.sleep(0)
    assert psutil.Process().children() == []
    gc.collect()  # a socket or a process left open warns here, and a warning is an error


_GATEWAY = """
import asyncio, sys
from models.clock import SystemClock
from models.content import Message, TextPart
from models.placement.engines import EngineSpec
from models.ports.generate import GenerateRequest
from models.placement import heartbeat
from models.placement.client import Worker
from models.placement.doors import Door

async def main():
    worker = Worker({"script": EngineSpec(name="scripted", options=sys.argv[1])}, SystemClock())
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        message = Message(item_id="item_1", role="user", parts=(TextPart(text="hang"),))
        async for _ in worker.door("script").generate(GenerateRequest(messages=(message,), tenant="local")):
            print(worker.pid, flush=True)

asyncio.run(main())
"""


def test_a_process_whose_gateway_was_killed_leaves_by_itself():
    with subprocess.Popen(
        [sys.executable, "-c", _GATEWAY, json.dumps({"rules": [_HANG]})], stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        child = psutil.Process(int(gateway.stdout.readline()))
        assert child.is_running()
        gateway.send_signal(signal.SIGKILL)
        try:
            # The pipe is the child's standard output too: it ends when the last of the two is gone.
            gateway.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            child.kill()
            raise


# A process that lives and does not answer


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a process for hung within half a second."""
    monkeypatch.setattr("models.placement.client.BEAT_S", 0.05)
    monkeypatch.setattr(heartbeat, "BEAT_S", 0.05)
    monkeypatch.setattr(heartbeat, "SILENCE_S", 0.5)
    monkeypatch.setattr(heartbeat, "LOADING_SILENCE_S", 0.5)


async def test_a_process_that_lives_and_does_not_answer_is_replaced(impatient, caplog):
    async with _running(_worker()) as worker, asyncio.timeout(30):
        running = _ask(worker, "hang")
        await anext(running)
        pid = worker.pid
        assert pid is not None
        psutil.Process(pid).suspend()
        with pytest.raises(WorkerDied):
            await anext(running)
        assert await _answer(worker, "count to 3") == "1 2 3 "
        assert worker.pid != pid
        assert not psutil.pid_exists(pid)
        assert worker.restarts == 1
    assert "has not answered" in caplog.text


async def test_more_than_a_stopped_process_takes_is_answered_at_its_deadline_all_the_same():
    async with _running(_worker()) as worker:
        await _answer(worker, "count to 1")
        assert worker.pid is not None
        process = psutil.Process(worker.pid)
        process.suspend()
        deadline_s = SystemClock().now_s() + 0.3
        long = [anext(_ask(worker, "x" * 300_000, deadline=deadline_s)) for _ in range(20)]
        ended = await asyncio.gather(*long, return_exceptions=True)
        assert [type(error) for error in ended] == [DeadlineExceeded] * 20
        assert SystemClock().now_s() < deadline_s + 1.0
        process.resume()
        assert await _answer(worker, "count to 2") == "1 2 "
        assert worker.restarts == 0


async def test_stopping_does_not_wait_for_a_process_that_hangs():
    worker = _worker()
    async with _running(worker), asyncio.timeout(5):
        await _answer(worker, "count to 1")
        assert worker.pid is not None
        psutil.Process(worker.pid).suspend()
    assert psutil.Process().children() == []


async def test_a_card_that_ends_its_process_each_time_rests_and_is_tried_again_for_ever(monkeypatch, tmp_path):
    monkeypatch.setattr("models.placement.client._MIN_DELAY_S", 0.0)
    monkeypatch.setattr("models.placement.client.BEAT_S", 0.05)
    monkeypatch.setattr("models.placement.cards._MIN_REST_S", 0.2)
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'models.placement.child' in sys.orig_argv:\n"
        "    import models.language.scripted as scripted\n"
        "    build = scripted.build\n"
        f"    there = lambda: os.path.exists({str(tmp_path / 'mended')!r})\n"
        "    scripted.build = lambda spec, clock: build(spec, clock) if there() else os._exit(9)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    async with _running(_worker()) as worker, asyncio.timeout(60):
        with pytest.raises(Unavailable, match="ended 3 times") as first:
            await worker.until_settled("script")
        assert first.value.retry_after_s == 0.2
        while worker.restarts < 5:  # noqa: ASYNC110  # a supervisor tells nobody that it has restarted
            await asyncio.sleep(0)
        (tmp_path / "mended").touch()
        while worker.status("script").state != "ready":  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert await _answer(worker, "count to 2") == "1 2 "
