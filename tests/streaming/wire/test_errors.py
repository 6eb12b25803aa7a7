"""Every error keeps its status, type, code and message through a turn, on every surface, by one table."""

import ast
import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
import pytest_asyncio
import websockets
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from support.app import Served, serving_app
from support.openai_server import Reply, chunk, openai_server, refuse, says, sse, stream
from support.rules import RULES
from support.sse import parse

from agents.events import Fault
from memory.log import LogRow
from models.content import Delta, TextDelta
from models.errors import CLASSES, BatonError, ErrorKind
from models.ports.generate import GenerateRequest
from orchestrator.events import TurnEnded
from orchestrator.sessions import codec
from streaming.limits import SurfaceLimits
from streaming.wire.errors import OURS_TO_END, STATUS, STATUS_BY_CODE, WIRE_CODES, failure, told

_PATH = "/v1/chat/completions"

_CODES = sorted({*STATUS_BY_CODE, *WIRE_CODES, *(each.code for each in CLASSES.values()), "content_filter"})

on_one_loop = pytest.mark.asyncio(loop_scope="module")


@dataclass
class _Failing:
    """An engine that says some words and fails."""

    error: BatonError
    words: tuple[str, ...] = ()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta, None]:
        for word in self.words:
            yield TextDelta(text=word)
        raise self.error

    async def aclose(self) -> None:
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), rules=RULES) as running:
        yield running


# The table


def test_every_class_of_error_has_a_name_and_a_status() -> None:
    assert set(STATUS) == set(CLASSES) == set(get_args(ErrorKind))


@given(
    kind=st.sampled_from(sorted(CLASSES)),
    code=st.none() | st.sampled_from(_CODES) | st.from_regex(r"[a-z_]{1,20}", fullmatch=True),
    message=st.text(),
    field=st.none() | st.text(),
    retryable=st.none() | st.booleans(),
    retry_after_s=st.none() | st.floats(min_value=0, max_value=1e6),
)
def test_a_logged_error_is_told_as_it_was_raised(
    kind: ErrorKind,
    code: str | None,
    message: str,
    field: str | None,
    retryable: bool | None,
    retry_after_s: float | None,
) -> None:
    error = CLASSES[kind](message, code=code, field=field, retryable=retryable, retry_after_s=retry_after_s)
    entry, _ = codec.encode(TurnEnded(turn_id="turn_1", generation=1, state="failed", fault=Fault.of(error)))
    ended = codec.parse(LogRow(seq=1, turn_id="turn_1", kind=entry.kind, v=entry.v, body=entry.body, at_ms=1)).event
    assert isinstance(ended, TurnEnded)
    again = failure(ended)
    assert again is not None
    assert type(again) is type(error)
    assert told(again) == told(error)


@pytest.mark.parametrize(("retryable", "status"), [(True, 500), (False, 400)])
def test_a_row_of_before_faults_kept_their_class_still_says_whether_to_try_again(retryable: bool, status: int) -> None:
    fault = json.dumps({"code": "x", "message": "It broke.", "retryable": retryable, "field": None})
    row = f'{{"kind": "turn_ended", "turn_id": "t", "generation": 1, "state": "failed", "fault": {fault}}}'
    ended = codec.parse(LogRow(seq=1, turn_id="t", kind="turn_ended", v=1, body=row, at_ms=1)).event
    assert isinstance(ended, TurnEnded)
    error = failure(ended)
    assert error is not None
    assert (told(error).status, told(error).headers["x-should-retry"]) == (status, str(retryable).lower())


def test_a_turn_cut_off_by_the_server_may_be_asked_again_and_one_that_was_stopped_is_not() -> None:
    for reason in OURS_TO_END:
        error = failure(TurnEnded(turn_id="t", generation=1, state="interrupted", reason=reason))
        assert error is not None
        assert (told(error).status, told(error).code) == (503, reason)
        assert told(error).headers["x-should-retry"] == "true"
    error = failure(TurnEnded(turn_id="t", generation=1, state="interrupted", reason="client_cancelled"))
    assert error is not None
    assert (told(error).status, told(error).code) == (409, "interrupted")
    assert told(error).headers["x-should-retry"] == "false"


# The documents

_ROOT = Path(__file__).parents[3]
_PACKAGES = ("models", "agents", "memory", "orchestrator", "streaming")
# What the command line says before there is a server, or without one.
_NOT_SERVED = ("memory/home.py", "memory/backup.py", "streaming/commands/", "streaming/terminal/")


def _trees() -> list[ast.Module]:
    paths = [path for package in _PACKAGES for path in (_ROOT / package).rglob("*.py")]
    served = [path for path in paths if not str(path.relative_to(_ROOT)).startswith(_NOT_SERVED)]
    return [ast.parse(path.read_text()) for path in served]


def _constants(trees: list[ast.Module]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in (node for tree in trees for node in tree.body):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(value))):
                found[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(value))):
                found[name] = value
    return found


def _raised() -> dict[str, set[tuple[int, str]]]:
    """Return the codes that the code gives to errors, with the status and the type that each is told with."""
    classes = {each.__name__: each for each in CLASSES.values()} | {"Shares": CLASSES["overloaded"]}
    trees = _trees()
    constants = _constants(trees)
    errors = [each("") for each in CLASSES.values()]
    errors += [CLASSES["unavailable"]("", code=reason) for reason in OURS_TO_END]
    for node in (node for tree in trees for node in ast.walk(tree)):
        match node:
            case ast.Call(func=ast.Name(id=name), keywords=keywords) if name in classes:
                given = {keyword.arg: keyword.value for keyword in keywords}
                match given.get("code"):
                    case ast.Constant(value=str(code)):
                        errors.append(classes[name]("", code=code))
                    case ast.Name(id=constant) if constant in constants:
                        errors.append(classes[name]("", code=constants[constant]))
    found: dict[str, set[tuple[int, str]]] = {}
    for error in errors:
        found.setdefault(told(error).code, set()).add((told(error).status, told(error).type))
    return found


def test_the_documents_have_every_code_with_its_status_and_type() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \| (.*) \|$", (_ROOT / "docs/rest.md").read_text(), re.MULTILINE)
    documented = {code: {(int(status), kind)} for status, kind, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    of_the_websocket = {
        code: {(400, "invalid_request_error")} for code in ("invalid_json", "invalid_value", "unknown_event")
    }
    realtime = (_ROOT / "docs/realtime.md").read_text()
    assert all(f"`{code}`" in realtime for code in of_the_websocket)
    raised = {code: seen for code, seen in _raised().items() if code not in of_the_websocket}
    raised["method_not_allowed"] = {(405, "invalid_request_error")}  # the framework says so
    assert documented == raised


# Through a turn

_ERRORS = [
    *(each("It is so.", field="model") for each in CLASSES.values()),
    *(each("It is so.", retryable=not each.retryable) for each in CLASSES.values()),
    *(CLASSES["internal"]("It is so.", code=code) for code in _CODES),
    *(CLASSES["bad_input"]("It is so.", code=code, retry_after_s=7.5) for code in _CODES),
]


def _named(error: BatonError) -> str:
    return f"{error.kind}-{error.code}-{error.retryable}"


@on_one_loop
@pytest.mark.parametrize("words", [(), ("I was ", "about to ")], ids=["at once", "after words"])
@pytest.mark.parametrize("error", _ERRORS, ids=_named)
async def test_an_error_of_a_turn_is_the_same_on_every_surface(
    served: Served, error: BatonError, words: tuple[str, ...]
) -> None:
    whole = served.engine.engine
    served.engine.engine = _Failing(error, words)
    try:
        expected = told(error)
        async with served.http() as client:
            for store in (False, True):
                body = {"messages": [{"role": "user", "content": "Hello"}], "store": store}
                answer = await client.post(_PATH, json=body)
                _check_response(answer, error)
                answer = await client.post(_PATH, json={**body, "stream": True})
                if words:
                    assert answer.status_code == 200
                    *_, last = parse(answer.content)
                    assert last.json() == expected.body
                else:
                    _check_response(answer, error)
        assert await _over_websocket(served) == {
            "type": "failed",
            "error": {"type": expected.type, "code": expected.code, "message": expected.message},
        }
    finally:
        served.engine.engine = whole


def _check_response(answer: httpx.Response, error: BatonError) -> None:
    expected = told(error)
    assert (answer.status_code, answer.json()) == (expected.status, expected.body)
    assert answer.headers["x-should-retry"] == str(error.retryable).lower()
    if expected.status in {429, 503}:
        assert answer.headers["retry-after"] == ("8" if error.retry_after_s else "1")
    else:
        assert "retry-after" not in answer.headers


async def _over_websocket(served: Served) -> Any:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
    async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket, asyncio.timeout(10):
        await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
        await socket.send('{"type": "response.create"}')
        while (event := json.loads(await socket.recv()))["type"] != "response.done":
            assert event["type"] != "error", event
        assert event["response"]["status"] == "failed"
        return event["response"]["status_details"]


# What is too long

_TOO_LONG = ["🎻" * 25_000, "x" * 100_001]


@on_one_loop
@pytest.mark.parametrize("text", _TOO_LONG, ids=["for the window", "for the server"])
async def test_what_is_too_long_is_told_in_clients_words_on_every_surface(served: Served, text: str) -> None:
    seen = []
    async with served.http() as client:
        for store in (False, True):
            for streamed in (False, True):
                body = {"messages": [{"role": "user", "content": text}], "store": store, "stream": streamed}
                answer = await client.post(_PATH, json=body)
                assert answer.status_code == 400
                seen.append(answer.json()["error"])
    asked = {"type": "response.create", "event_id": "ask"}
    for together in (True, False):
        async with websockets.connect(f"ws://{served.address}/v1/realtime") as socket, asyncio.timeout(10):
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            if together:
                await socket.send(json.dumps(asked))
            while (event := json.loads(await socket.recv()))["type"] not in {"conversation.item.done", "error"}:
                pass
            if not together:
                await socket.send(json.dumps(asked))
            while event["type"] != "error" or event["error"]["event_id"] != "ask":
                event = json.loads(await socket.recv())
            seen.append(event["error"])
    for error in seen:
        assert (error["type"], error["code"]) == ("invalid_request_error", "context_length_exceeded")
        assert "prompt is too long" in error["message"]
        assert "reduce the length of the messages" in error["message"]
        if text is _TOO_LONG[0]:
            assert "maximum context length is 32768 tokens. However, your messages resulted in 3" in error["message"]


# From another server, to the official client

_FILTERED = stream(sse(chunk({}, finish_reason="content_filter")), b"data: [DONE]\n\n")
_FILTERED_LATE = stream(sse(says("I ")), sse(chunk({}, finish_reason="content_filter")), b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("reply", "error", "status", "code", "asked"),
    [
        pytest.param(_FILTERED, openai.BadRequestError, 400, "content_filter", 1, id="content filter"),
        pytest.param(_FILTERED_LATE, openai.BadRequestError, 400, "content_filter", 1, id="content filter after words"),
        pytest.param(
            refuse(400, {"message": "No.", "code": "content_filter"}),
            *(openai.BadRequestError, 400, "content_filter", 1),
            id="content filter at once",
        ),
        pytest.param(refuse(401), openai.InternalServerError, 502, "upstream_refused", 1, id="401"),
        pytest.param(refuse(403), openai.InternalServerError, 502, "upstream_refused", 1, id="403"),
        pytest.param(refuse(402), openai.InternalServerError, 502, "upstream_refused", 1, id="402"),
        pytest.param(refuse(404), openai.NotFoundError, 404, "model_not_found", 1, id="404"),
        pytest.param(refuse(422), openai.BadRequestError, 400, "invalid_input", 1, id="422"),
        pytest.param(refuse(429, retry_after="1"), openai.RateLimitError, 429, "upstream_rate_limited", 2, id="429"),
        pytest.param(refuse(500), openai.InternalServerError, 502, "upstream_unavailable", 2, id="500"),
        pytest.param(refuse(503), openai.InternalServerError, 502, "upstream_unavailable", 2, id="503"),
    ],
)
async def test_the_official_client_asks_again_only_where_that_may_help(
    tmp_path: Any, reply: Reply, error: type[openai.APIStatusError], status: int, code: str, asked: int
) -> None:
    async with openai_server() as upstream:
        upstream.replies.extend([reply] * 5)
        catalog = tmp_path / "catalog.toml"
        catalog.write_text(
            "[cards.far]\nengine = 'openai'\ncontext_tokens = 4096\ncost_per_million_tokens = 0.1\n"
            f"options = {{ base_url = '{upstream.base_url}', model = 'm', max_retries = 0 }}\n"
        )
        async with (
            serving_app(
                tmp_path, limits=SurfaceLimits(drain_s=1), rules=RULES, catalog=catalog, models="scripted,far"
            ) as served,
            AsyncOpenAI(base_url=f"http://{served.address}/v1", api_key="none", max_retries=1) as client,
        ):
            with pytest.raises(error) as refused:
                await client.chat.completions.create(model="far", messages=[{"role": "user", "content": "Hello"}])
        assert (refused.value.status_code, refused.value.code) == (status, code)
        assert len(upstream.exchanges) == asked
