"""Functions as tools: what a model is shown of them, what is refused before they run, and what comes of running them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from agents.tools.python import ToolCall, Tools, load_tools
from models.clock import ManualClock, SystemClock
from models.content import BlobRef, ImagePart, TextPart
from models.errors import BadInput, DeadlineExceeded, Internal, NotFound

CALL = ToolCall(key="turn_1.1.1", tenant="local", turn_id="turn_1")
PICTURE = ImagePart(blob=BlobRef(sha256="0" * 64, media_type="image/png", size_bytes=1), width_px=1, height_px=1)


class Address(BaseModel):
    street: str
    number: int = 1


@pytest.fixture
def tools() -> Iterator[Tools]:
    tools = Tools()
    yield tools
    tools.close()


async def run(tools: Tools, name: str, arguments: str = "{}", deadline_s: float = 1e9) -> Any:
    return await tools.run(name, arguments, CALL, SystemClock(), deadline_s)


def test_a_model_is_shown_name_docstring_and_a_schema_of_the_signature(tools: Tools) -> None:
    @tools.register(effect="idempotent")
    def book(to: Address, size: Literal["s", "m"], note: Annotated[str, Field(max_length=9)] = "") -> None:
        """Book a room."""

    spec = tools.get("book").spec  # type: ignore[union-attr]
    assert (spec.name, spec.description, spec.runner, spec.effect) == ("book", "Book a room.", "server", "idempotent")
    schema = json.loads(spec.parameters)
    assert schema["required"] == ["to", "size"]
    assert schema["properties"]["size"]["enum"] == ["s", "m"]
    assert schema["properties"]["note"]["maxLength"] == 9
    assert schema["$defs"]["Address"]["properties"]["street"] == {"title": "Street", "type": "string"}
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("effect", "asked", "needed"),
    [("pure", None, False), ("idempotent", None, False), ("effectful", None, True), ("effectful", False, False)],
)
def test_what_does_something_each_time_has_to_be_allowed_unless_it_says_otherwise(
    tools: Tools, effect: Any, asked: bool | None, needed: bool
) -> None:
    tools.register(effect=effect, needs_approval=asked, name="it")(lambda: None)
    assert [tool.needs_approval for tool in tools] == [needed]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("[]", "the whole"),
        ("{", "the whole"),
        ('{"a": 1}', "b: Field required"),
        ('{"a": "x", "b": 2}', "a: Input should be a valid integer"),
        ('{"a": 1, "b": 2, "c": 3}', "c: Extra inputs are not permitted"),
    ],
)
async def test_what_does_not_fit_is_refused_in_words_before_anything_runs(
    tools: Tools, arguments: str, match: str
) -> None:
    @tools.register(effect="pure")
    def add(a: int, b: int) -> int:
        raise AssertionError

    assert match in str(tools.get("add").fault(arguments))  # type: ignore[union-attr]
    with pytest.raises(BadInput, match=match):
        await run(tools, "add", arguments)
    assert tools.get("add").fault('{"a": 1, "b": 2}') is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("returned", "parts"),
    [
        ("żółw", (TextPart(text="żółw", source="tool"),)),
        (3, (TextPart(text="3", source="tool"),)),
        (None, (TextPart(text="null", source="tool"),)),
        ({"a": [1, 2.5]}, (TextPart(text='{"a":[1,2.5]}', source="tool"),)),
        (Address(street="x"), (TextPart(text='{"street":"x","number":1}', source="tool"),)),
        (PICTURE, (PICTURE,)),
        ((TextPart(text="mine", source="typed"), PICTURE), (TextPart(text="mine", source="tool"), PICTURE)),
    ],
)
async def test_what_is_returned_is_data_whatever_it_is(tools: Tools, returned: Any, parts: Any) -> None:
    @tools.register(effect="pure")
    def plain() -> Any:
        return returned

    @tools.register(effect="pure")
    async def waits() -> Any:
        await asyncio.sleep(0)
        return returned

    assert await run(tools, "plain") == parts
    assert await run(tools, "waits") == parts


async def test_a_function_may_ask_of_its_call_and_no_model_is_shown_that(tools: Tools) -> None:
    @tools.register(effect="effectful")
    def pay(amount: int, call: ToolCall) -> str:
        return f"{amount} {call.key} {call.tenant}"

    assert list(json.loads(tools.get("pay").spec.parameters)["properties"]) == ["amount"]  # type: ignore[union-attr]
    assert await run(tools, "pay", '{"amount": 5}') == (TextPart(text="5 turn_1.1.1 local", source="tool"),)
    assert tools.get("pay").fault('{"amount": 5, "call": {"key": "mine"}}') is not None  # type: ignore[union-attr]


async def test_one_that_fails_says_nothing_of_how_and_one_that_explains_is_heard(tools: Tools) -> None:
    @tools.register(effect="pure")
    def broken() -> None:
        raise RuntimeError("the password is swordfish")

    @tools.register(effect="pure")
    def explains() -> None:
        raise NotFound("There is no customer 7.")

    with pytest.raises(Internal, match="broken failed") as failed:
        await run(tools, "broken")
    assert "swordfish" not in failed.value.message
    with pytest.raises(NotFound, match="no customer 7"):
        await run(tools, "explains")
    with pytest.raises(BadInput, match="no tool 'nonesuch'"):
        await run(tools, "nonesuch")


@pytest.mark.parametrize("own", [True, False])
async def test_none_takes_longer_than_it_or_its_turn_may_and_a_thread_holds_up_nobody(own: bool) -> None:
    tools, clock, held, began = Tools(), ManualClock(), threading.Event(), threading.Event()

    @tools.register(effect="effectful", timeout_s=5.0 if own else 1_000.0)
    def hangs() -> None:
        began.set()
        held.wait(20)

    running = asyncio.create_task(tools.run("hangs", "{}", CALL, clock, clock.now_s() + (1_000.0 if own else 5.0)))
    await asyncio.to_thread(began.wait, 20)
    clock.advance(4.9)
    await asyncio.sleep(0)
    assert not running.done()
    clock.advance(0.2)
    with pytest.raises(DeadlineExceeded, match="may have been done"):
        await running
    held.set()
    tools.close()


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("tools = 1", "has no 'tools'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(a): ...\nfrom agents.tools.python import Tools\nTools().register(effect='pure')(f)", "'a' has no type"),
        (
            "def f(*a: int): ...\nfrom agents.tools.python import Tools\nTools().register(effect='pure')(f)",
            "'a' cannot be given by name",
        ),
        (
            "from threading import Lock\ndef f(a: Lock): ...\n"
            "from agents.tools.python import Tools\nTools().register(effect='pure')(f)",
            "JSON Schema",
        ),
        (None, "cannot be loaded"),
    ],
)
def test_a_file_that_has_no_tools_says_why(tmp_path: Path, source: str | None, match: str) -> None:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(BadInput, match=match) as refused:
        load_tools(path)
    assert refused.value.field == "tools"


def test_a_file_of_tools_is_read_and_a_name_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from agents.tools.python import Tools\ntools = Tools()\n"
        "@tools.register(effect='pure')\ndef add(a: int, b: int) -> int:\n    return a + b\n"
    )
    tools = load_tools(path)
    assert [tool.spec.name for tool in tools] == ["add"]
    with pytest.raises(ValueError, match="a tool 'add' already"):
        tools.register(effect="pure", name="add")(lambda: None)
    with pytest.raises(ValueError, match="letters, digits"):
        tools.register(effect="pure", name="two words")(lambda: None)
