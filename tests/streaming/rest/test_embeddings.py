"""`POST /v1/embeddings`, as the official client has it: by MiniLM, and by the scripted embedder."""

import base64
import json
import math
from array import array
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai.types import CreateEmbeddingResponse
from support.app import Served, serving_app
from support.ports import spec_of

from streaming.limits import SurfaceLimits
from streaming.rest.embeddings import MOST_TEXTS

pytestmark = pytest.mark.asyncio(loop_scope="module")

_CARDS = """
[cards.words]
engine = "scripted-embed"
writes = []
context_tokens = 256
cost_per_million_tokens = 0

[cards.slow]
engine = "scripted-embed"
options = { gap_s = 3600 }
writes = []
context_tokens = 256
cost_per_million_tokens = 0

[cards.fragile]
engine = "scripted-embed"
options = { exit_on = "die" }
writes = []
context_tokens = 256
cost_per_million_tokens = 0

[aliases]
vectors = "words"
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    catalog = folder / "cards.toml"
    catalog.write_text(_CARDS)
    models = ("scripted", "words", "slow", "fragile")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), catalog=catalog, models=models) as running:
        yield running


def _client(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://{served.address}/v1", api_key="none", max_retries=0)


async def _asked(served: Served, **fields: Any) -> CreateEmbeddingResponse:
    async with _client(served) as client:
        return await client.embeddings.create(**{"model": "words", "input": "a word", **fields})


async def _sent(served: Served, body: Mapping[str, Any]) -> httpx.Response:
    async with served.http() as client:
        return await client.post("/v1/embeddings", json=body)


async def test_a_text_becomes_a_vector_of_length_one(served: Served) -> None:
    answer = await _asked(served)
    (found,) = answer.data
    assert (answer.object, answer.model, found.object, found.index) == ("list", "words", "embedding", 0)
    assert math.isclose(sum(number * number for number in found.embedding), 1, abs_tol=1e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 2


async def test_each_of_many_texts_gets_a_vector_in_its_place(served: Served) -> None:
    texts = [f"text {n}" for n in range(50)]
    answer = await _asked(served, input=texts)
    assert [found.index for found in answer.data] == list(range(50))
    for n in (0, 17, 49):
        assert answer.data[n].embedding == (await _asked(served, input=texts[n])).data[0].embedding


async def test_floats_and_base64_are_the_same_numbers(served: Served) -> None:
    """The official client asks for base64 unless it is told otherwise; both are asked for by hand here."""
    plain = (await _sent(served, {"model": "words", "input": ["one", "two"], "encoding_format": "float"})).json()
    packed = (await _sent(served, {"model": "words", "input": ["one", "two"], "encoding_format": "base64"})).json()
    default = (await _sent(served, {"model": "words", "input": ["one", "two"]})).json()
    assert plain == default
    for left, right in zip(plain["data"], packed["data"], strict=True):
        assert array("f", base64.b64decode(right["embedding"])).tolist() == left["embedding"]
    assert plain["usage"] == packed["usage"] == {"prompt_tokens": 2, "total_tokens": 2}


async def test_a_model_is_found_by_its_other_names_and_by_none(served: Served) -> None:
    assert (await _asked(served, model="vectors")).model == "words"
    assert (await _sent(served, {"input": "word"})).json()["model"] == "words"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": "scripted"}, 400, "no_capable_model", "model"),
        ({"dimensions": 8}, 400, "unsupported", "dimensions"),
        ({"dimensions": 0}, 400, "invalid_input", "dimensions"),
        ({"input": [1, 2, 3]}, 400, "unsupported", "input[0]"),
        ({"input": ["word", [1, 2]]}, 400, "unsupported", "input[1]"),
        ({"input": []}, 400, "invalid_input", "input"),
        ({"input": ""}, 400, "invalid_input", "input"),
        ({"input": ["word", ""]}, 400, "invalid_input", "input[1]"),
        ({"input": None}, 400, "invalid_input", "input"),
        ({"input": ["w"] * (MOST_TEXTS + 1)}, 400, "limit_exceeded", "input"),
        ({"input": "word " * 257}, 400, "context_length_exceeded", "input"),
        ({"encoding_format": "int8"}, 400, "invalid_input", "encoding_format"),
        ({"colour": "red"}, 400, "unknown_parameter", "colour"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else str(value),
)
async def test_what_cannot_be_done_is_refused_by_name(
    served: Served, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    answer = await _sent(served, {"model": "words", "input": "word", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert error["type"] == "invalid_request_error"


async def test_the_official_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.NotFoundError):
        await _asked(served, model="nobody")
    with pytest.raises(openai.BadRequestError):
        await _asked(served, dimensions=8)


async def test_a_client_that_goes_stops_the_work(served: Served) -> None:
    places = served.conductor.workers
    async with served.http() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/embeddings", json={"model": "slow", "input": "word"}, timeout=0.3)
    await served.until(lambda: places["senses"].requests == 0)


async def test_a_process_that_dies_fails_its_own_requests_and_no_answer(served: Served) -> None:
    writing = served.conductor.workers["decoding"].pid
    answer = await _sent(served, {"model": "fragile", "input": "die"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_died")
    assert served.conductor.workers["decoding"].pid == writing
    assert (await _asked(served, model="fragile")).model == "fragile"  # once it is up again


async def test_cards_that_embed_are_listed_and_answer_no_chat(served: Served) -> None:
    async with served.http() as client:
        listed = {model["id"]: model for model in (await client.get("/v1/models")).json()["data"]}
        refused = await client.post(
            "/v1/chat/completions", json={"model": "words", "messages": [{"role": "user", "content": "Hi"}]}
        )
        ready = (await client.get("/readyz")).json()
    assert listed["words"]["baton"]["port"] == "embed"
    assert listed["scripted"]["baton"]["port"] == "generate"
    assert listed["vectors"]["baton"] == {"alias_of": "words"}
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert {model["id"] for model in ready["models"]} >= {"scripted", "words"}


async def test_minilm_serves_the_official_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    spec_of("all-minilm-l6-v2")  # fetched, or the test is skipped
    folder = tmp_path_factory.mktemp("minilm")
    models = ("scripted", "all-minilm-l6-v2")
    async with serving_app(folder, limits=SurfaceLimits(drain_s=1), models=models) as served:
        answer = await _asked(
            served, model="embedding", input=["How old are you?", "What is your age?", "The price of oil fell."]
        )
    one, same, other = (found.embedding for found in answer.data)
    assert len(one) == 384

    def near(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert near(one, same) > 0.7
    assert near(one, other) < 0.2
