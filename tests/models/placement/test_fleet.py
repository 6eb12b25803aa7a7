"""Cards are brought up one after another, over a real worker process and a real store; each says how it stands."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.weights import SAFETENSORS

from models.catalog import Card, EngineSpec, Price
from models.clock import Clock, SystemClock
from models.content import FinishDelta, Message, TextDelta, TextPart
from models.errors import BatonError, Unavailable, WorkerDied
from models.language.tokens import CountedTokens, EstimatedTokens
from models.placement.client import Worker
from models.placement.fleet import CardStatus, ServedCards
from models.ports.generate import GenerateRequest
from models.sources import FileSource, HubSource
from models.supply.fetch import FetchFailed, Progress
from models.supply.store import Store

_READY = CardStatus(state="ready")
_REPLY = json.dumps({"rules": [{"pattern": "exit", "reply": "", "fault": "exit"}, {"pattern": ".*", "reply": "yes"}]})
_REMOTE = EngineSpec(name="openai", options='{"base_url": "http://127.0.0.1:9/v1", "model": "remote"}')


def new_card(name: str, engine: EngineSpec | None = None, **more: Any) -> Card:
    return Card(
        name=name,
        engine=engine or EngineSpec(name="scripted", options=_REPLY),
        reads=frozenset({"text"}),
        writes=frozenset({"text"}),
        calls_tools=True,
        context_tokens=1_000,
        price=Price.flat(0.0),
        **more,
    )


class HeldStore:
    """Stands in for a store whose source is on the network: tells its progress step by step, when it is let."""

    def __init__(self, folder: Path, *steps: Progress | Exception) -> None:
        self._folder = folder
        self._steps = steps
        self.go_on = threading.Semaphore(0)
        self.fetched = False
        self.closed = threading.Event()

    def folder(self, card: Card) -> Path | None:
        return self._folder if self.fetched else None

    def pull(self, card: Card) -> Generator[Progress, None, None]:
        try:
            for step in self._steps:
                if isinstance(step, Exception):
                    raise step
                yield step
                assert self.go_on.acquire(timeout=20)
            self.fetched = True
        finally:
            self.closed.set()


class House:
    """A fleet whose worker runs."""

    def __init__(self, cards: Sequence[Card], store: Any, **aliases: str) -> None:
        self.clock: Clock = SystemClock()
        self.worker = Worker({}, self.clock)
        self.fleet = ServedCards(cards, aliases, store, {"decoding": self.worker}, self.clock)
        self.fleet.build()
        self.bringing_up: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator["House"]:
        tasks = [asyncio.create_task(self.worker.run()), asyncio.create_task(self.fleet.run())]
        self.bringing_up = tasks[1]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.fleet.aclose()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110  # neither a fleet nor a worker tells anybody
                await asyncio.sleep(0)

    async def until_state(self, card: str, *states: str) -> CardStatus:
        await self.until(lambda: self.fleet.standing(card).state in states)
        return self.fleet.standing(card)

    async def ask(self, card: str, text: str = "well?", *, within_s: float = 20.0) -> str:
        message = Message(item_id="item_1", role="user", parts=(TextPart(text=text),))
        request = GenerateRequest(messages=(message,), tenant="local", deadline=self.clock.now_s() + within_s)
        deltas = [delta async for delta in self.fleet.engines[card].generate(request)]
        assert isinstance(deltas[-1], FinishDelta)
        return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def weights(tmp_path: Path) -> FileSource:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(SAFETENSORS)
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return FileSource(path=folder)


async def test_before_it_runs_everything_that_has_to_be_loaded_waits(store: Store) -> None:
    house = House([new_card("one"), new_card("two")], store)
    assert [house.fleet.standing(name) for name in ("one", "two")] == [CardStatus(state="waiting")] * 2


async def test_a_card_that_needs_no_weights_comes_up_and_answers(store: Store) -> None:
    async with House([new_card("one")], store).running() as house:
        assert await house.until_state("one", "ready") == _READY
        assert await house.ask("one") == "yes"
        assert isinstance(house.fleet.counter("one"), EstimatedTokens)


async def test_weights_are_fetched_and_their_tokenizer_counts(store: Store, weights: FileSource) -> None:
    card = new_card("one", sources=(weights,))
    async with House([card], store).running() as house:
        await house.until_state("one", "ready")
        assert await house.ask("one") == "yes"
        folder = store.folder(card)
        assert folder is not None
        spec = house.worker._cards["one"].spec
        assert spec == replace(card.engine, folder=str(folder))
        counter = house.fleet.counter("one")
        assert isinstance(counter, CountedTokens)
        assert counter.count("a") == 1


async def test_what_runs_in_this_process_is_ready_before_anything_runs(store: Store) -> None:
    house = House([new_card("far", _REMOTE), new_card("near")], store)
    assert house.fleet.standing("far") == _READY
    assert house.fleet.standing("near").state == "waiting"
    await house.fleet.aclose()


async def test_how_far_fetching_is_can_be_watched(tmp_path: Path) -> None:
    steps = (
        Progress(stage="waiting"),
        Progress(stage="fetching", done_bytes=1, total_bytes=9),
        Progress(stage="checking", done_bytes=9, total_bytes=9),
        Progress(stage="converting", done_bytes=5),
    )
    store = HeldStore(tmp_path, *steps)
    source = HubSource(repository="acme/tiny")
    async with House([new_card("one", sources=(source,)), new_card("two")], store).running() as house:
        for expected in (
            CardStatus(state="fetching"),
            CardStatus(state="fetching", done_bytes=1, total_bytes=9),
            CardStatus(state="fetching", done_bytes=9, total_bytes=9),
            CardStatus(state="converting", done_bytes=5),
        ):
            await house.until(lambda expected=expected: house.fleet.standing("one") == expected)
            assert house.fleet.standing("two").state == "waiting"
            store.go_on.release()
        assert await house.until_state("one", "ready") == _READY
        await house.until_state("two", "ready")


async def test_a_card_that_cannot_be_fetched_says_why_and_holds_up_no_other(tmp_path: Path, caplog: Any) -> None:
    store = HeldStore(tmp_path, FetchFailed("The model hub cannot be reached. Check the network."))
    source = HubSource(repository="acme/tiny")
    async with House([new_card("one", sources=(source,)), new_card("two")], store).running() as house:
        await house.until_state("two", "ready")
        assert house.fleet.standing("one") == CardStatus(
            state="failed", message="The model hub cannot be reached. Check the network."
        )
        with pytest.raises(FetchFailed, match="cannot be reached"):
            await house.ask("one")
        assert await house.ask("two") == "yes"
    assert "the model one is not served: The model hub cannot be reached" in caplog.text


async def test_a_card_that_cannot_be_loaded_says_why_and_holds_up_no_other(store: Store, caplog: Any) -> None:
    broken = new_card("one", EngineSpec(name="scripted", options='{"gap_s": "soon"}'))
    async with House([broken, new_card("two")], store).running() as house:
        await house.until_state("two", "ready")
        standing = house.fleet.standing("one")
        assert standing.state == "failed"
        assert standing.message is not None
        assert "gap_s" in standing.message
        assert house.worker.restarts == 0
    assert "the model one is not served" in caplog.text


async def test_a_defect_while_one_is_brought_up_keeps_its_cause_and_the_others(tmp_path: Path, caplog: Any) -> None:
    store = HeldStore(tmp_path, ZeroDivisionError("a secret path"))
    source = HubSource(repository="acme/tiny")
    async with House([new_card("one", sources=(source,)), new_card("two")], store).running() as house:
        await house.until_state("two", "ready")
        message = house.fleet.standing("one").message
        assert message is not None
        assert "secret" not in message
    assert "secret" in caplog.text


async def test_a_fleet_that_is_stopped_while_it_fetches_ends_the_fetching(tmp_path: Path) -> None:
    store = HeldStore(tmp_path, *[Progress(stage="fetching", done_bytes=n) for n in range(1_000)])
    async with House([new_card("one", sources=(HubSource(repository="acme/tiny"),))], store).running() as house:
        await house.until_state("one", "fetching")
        assert not store.closed.is_set()
        assert house.bringing_up is not None
        house.bringing_up.cancel()
        await asyncio.gather(house.bringing_up, return_exceptions=True)
        store.go_on.release()  # the step that was under way ends
        assert await asyncio.to_thread(store.closed.wait, 20)
        assert not store.fetched


async def test_a_request_that_comes_too_early_waits_for_its_card(tmp_path: Path) -> None:
    store = HeldStore(tmp_path, Progress(stage="fetching"))
    async with House([new_card("one", sources=(HubSource(repository="acme/tiny"),))], store).running() as house:
        asking = asyncio.create_task(house.ask("one"))
        await house.until_state("one", "fetching")
        assert not asking.done()
        store.go_on.release()
        assert await asking == "yes"


async def test_a_card_loads_again_when_its_worker_was_restarted(store: Store) -> None:
    async with House([new_card("one")], store).running() as house:
        await house.until_state("one", "ready")
        assert house.worker.pid is not None
        psutil.Process(house.worker.pid).kill()
        await house.until_state("one", "loading")
        assert await house.until_state("one", "ready") == _READY
        assert await house.ask("one") == "yes"
        assert house.worker.restarts == 1


async def test_a_card_that_does_not_come_up_again_after_a_restart_says_so(store: Store) -> None:
    async with House([new_card("one")], store).running() as house:
        await house.until_state("one", "ready")
        spec = EngineSpec(name="scripted", options='{"gap_s": "soon"}')
        house.worker._cards["one"].spec = spec  # as if its weights had been taken away meanwhile
        with pytest.raises(WorkerDied):
            await house.ask("one", "exit")
        standing = await house.until_state("one", "failed")
        assert standing.message is not None
        assert "gap_s" in standing.message


async def test_a_card_whose_loading_ends_the_process_rests_and_holds_up_no_other(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An engine as large as no memory is: the process dies of it each time.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'models.placement.child' in sys.orig_argv:\n"
        "    import models.language.scripted as scripted\n"
        "    build = scripted.build\n"
        "    scripted.build = lambda spec, clock: os._exit(9) if 'huge' in spec.options else build(spec, clock)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    huge = new_card("huge", EngineSpec(name="scripted", options='{"rules": [{"pattern": "huge", "reply": ""}]}'))
    async with House([new_card("first"), huge, new_card("last")], store).running() as house:
        await house.until_state("last", "ready")
        standing = house.fleet.standing("huge")
        assert standing.state == "failed"
        assert standing.message is not None
        assert "memory" in standing.message
        assert house.worker.restarts == 3
        assert [await house.ask(name) for name in ("first", "last")] == ["yes", "yes"]
        with pytest.raises(Unavailable, match="'huge'"):
            await house.ask("huge")


async def test_a_card_is_served_under_its_name_and_its_aliases(store: Store) -> None:
    fleet = House([new_card("one"), new_card("two")], store, default="one", other="not served").fleet
    assert fleet.names == {"one", "two", "default"}
    assert fleet.aliases == {"default": "one"}
    assert [card.name for card in fleet.cards] == ["one", "two"]
    assert set(fleet.engines) == {"one", "two"}


async def test_options_that_do_not_fit_an_engine_of_this_process_are_said_before_anything_runs(store: Store) -> None:
    with pytest.raises(BatonError):
        House([new_card("far", EngineSpec(name="openai", options='{"base_url": 7}'))], store)


async def test_weights_that_could_not_be_fetched_are_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("models.placement.fleet._MIN_PAUSE_S", 0.05)

    class Recovering(HeldStore):
        failures = 2

        def pull(self, card: Card) -> Generator[Progress, None, None]:
            if self.failures:
                self.failures -= 1
                raise FetchFailed("The model hub cannot be reached.")
            self.fetched = True
            yield Progress(stage="fetching")

    store = Recovering(tmp_path)
    async with House([new_card("one", sources=(HubSource(repository="acme/tiny"),))], store).running() as house:
        await house.until_state("one", "failed")
        with pytest.raises(Unavailable):
            await house.ask("one")
        again = await house.until_state("one", "fetching")
        assert again.message == "The model hub cannot be reached."  # which it says until it is up
        store.go_on.release()
        assert await house.until_state("one", "ready") == _READY
        assert await house.ask("one") == "yes"
    assert "cannot be reached" in caplog.text


async def test_a_card_that_is_not_up_fails_its_requests_as_an_outage_of_ours(store: Store) -> None:
    broken = new_card("one", EngineSpec(name="scripted", options='{"gap_s": "soon"}'))
    async with House([broken], store).running() as house:
        await house.until_state("one", "failed")
        with pytest.raises(Unavailable, match="gap_s"):
            await house.ask("one")


async def test_a_card_whose_process_does_not_answer_is_not_ready(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.placement.client.BEAT_S", 0.05)
    monkeypatch.setattr("models.placement.client.UNSURE_S", 0.2)
    async with House([new_card("one")], store).running() as house:
        await house.until_state("one", "ready")
        assert house.worker.pid is not None
        process = psutil.Process(house.worker.pid)
        process.suspend()
        standing = await house.until_state("one", "loading")
        assert standing.message is not None
        assert "does not answer" in standing.message
        process.resume()
        assert await house.until_state("one", "ready") == _READY
        assert house.worker.restarts == 0
