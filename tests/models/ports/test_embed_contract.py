"""What everything that embeds keeps of what `Embedder` promises, in this process and through a worker."""

import asyncio
import math
from array import array

import pytest
import pytest_asyncio
from support.ports import SPECS, here

from models.clock import SystemClock
from models.errors import BadInput, DeadlineExceeded, LimitExceeded
from models.ports.embed import Embedder, Embeddings, EmbedRequest

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=["scripted-embed", "minilm"])
def spec(request):
    return SPECS[request.param]()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedder(opened, spec):
    """One for all: a process imports torch for seconds."""
    async with opened(spec) as engine:
        yield engine


async def _embed(embedder: Embedder, *texts: str, **fields) -> Embeddings:
    return await embedder.embed(EmbedRequest(texts=texts, tenant="acme", **fields))


def _rows(found: Embeddings) -> list[list[float]]:
    numbers = array("f", found.data)
    assert len(numbers) % found.dimensions == 0
    return [list(numbers[at : at + found.dimensions]) for at in range(0, len(numbers), found.dimensions)]


def _near(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def test_each_text_gets_a_vector_of_length_one_in_its_place(embedder):
    texts = [f"text number {n} " * (1 + n % 5) for n in range(40)]
    found = await _embed(embedder, *texts)
    rows = _rows(found)
    assert len(rows) == len(texts)
    for row in rows:
        assert math.isclose(_near(row, row), 1, abs_tol=1e-5)
    for text, row in list(zip(texts, rows, strict=True))[::7]:
        (alone,) = _rows(await _embed(embedder, text))
        assert math.isclose(_near(alone, row), 1, abs_tol=1e-5)  # whatever it comes with


async def test_texts_that_share_words_are_nearer_than_those_that_do_not(embedder):
    cat, again, law = _rows(
        await _embed(embedder, "the cat sat on the mat", "a cat sat on a mat", "taxes rise under clause nine")
    )
    assert _near(cat, again) > _near(cat, law) + 0.2


async def test_tokens_of_all_texts_are_counted(embedder):
    one = (await _embed(embedder, "hello there")).input_tokens
    two = (await _embed(embedder, "hello there", "hello there")).input_tokens
    assert two == 2 * one > 0


@pytest.mark.parametrize("text", ["", " ", "naïve 日本語 👩‍🚀", "\x00\ufffd\n\n", "[CLS] [SEP] [MASK]"])
async def test_whatever_is_written_has_a_vector(embedder, text):
    (row,) = _rows(await _embed(embedder, text))
    assert all(map(math.isfinite, row))


async def test_no_text_at_all_is_refused(embedder):
    with pytest.raises(BadInput):
        await _embed(embedder)


async def test_a_text_beyond_the_window_is_refused_and_not_cut(embedder):
    with pytest.raises(LimitExceeded) as refused:
        await _embed(embedder, "short", "word " * 600)
    assert refused.value.code == "context_length_exceeded"


async def test_a_deadline_that_has_passed_is_told(embedder):
    with pytest.raises(DeadlineExceeded):
        await _embed(embedder, *["word " * 200] * 50, deadline=SystemClock().now_s() - 1)


async def test_a_caller_who_is_cancelled_leaves_room_for_the_next(embedder):
    texts = [f"word {n} " * 60 for n in range(200)]
    asking = [asyncio.create_task(_embed(embedder, *texts)) for _ in range(3)]
    await asyncio.sleep(0)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert all(task.cancelled() for task in asking)
    assert len(_rows(await _embed(embedder, "still here"))) == 1


async def test_requests_at_the_same_time_do_not_mix(embedder):
    texts = [[f"{word} {n}" for n in range(5)] for word in ("apple", "bridge", "cloud")]
    together = await asyncio.gather(*(_embed(embedder, *each, priority="interactive") for each in texts))
    for each, found in zip(texts, together, strict=True):
        for left, right in zip(_rows(found), _rows(await _embed(embedder, *each)), strict=True):
            assert math.isclose(_near(left, right), 1, abs_tol=1e-5)


async def test_an_embedder_may_be_closed_twice(spec):
    async with here(spec) as embedder:
        await embedder.aclose()
