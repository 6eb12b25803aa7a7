"""What a caller is told of an address that is not there."""

import httpx
import pytest


@pytest.mark.parametrize(
    "path",
    [
        "responses",
        "responses/resp_1",
        "audio/speech",
        "images/generations",
        "v1/responses",
        "../responses",
    ],
)
async def test_what_openai_has_and_this_server_not_yet_is_not_offered_yet_in_words(serve, path: str) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        answer = await client.post(f"/v1/{path}", json={"model": "default", "input": "word"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "not offered yet" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/v1/models", "/v1/models"),
        ("/sessions/session_1/events", "/v1/sessions/session_1/events"),
        ("/models/default", "/v1/models/default"),
        ("/completions", "/v1/completions"),
        ("/embeddings", "/v1/embeddings"),
    ],
)
async def test_a_base_address_that_is_a_little_wrong_is_put_right(serve, path: str, meant: str) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        answer = await client.get(path)
        assert answer.status_code == 404
        assert f"Did you mean {meant}?" in answer.json()["error"]["message"]


async def test_any_other_address_is_told_where_something_is(serve) -> None:
    async with serve() as served, httpx.AsyncClient(base_url=f"http://{served.address}") as client:
        for path in ("/nonesuch", "/v1", "/v1/nonesuch", "/v1/chat/completions/chatcmpl-1"):
            message = (await client.get(path)).json()["error"]["message"]
            assert "/v1/chat/completions" in message
            assert "mean" not in message
        assert "websocket" in (await client.get("/v1/realtime")).json()["error"]["message"]
