"""Tokens are told with the words that they are part of: once, in order, and none whose words are never told."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_llama import make_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from models.content import CallDelta, Delta, TextDelta, WrittenToken
from models.language.detokenize import Detokenizer
from models.language.logprobs import TokenLog
from models.language.tool_format import CallReader
from models.ports.generate import Sampling

END = 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def _scores(place: int) -> torch.Tensor:
    return (torch.arange(340, dtype=torch.float32) * (place + 7) % 13) / 3


def _written(
    tokenizer: PreTrainedTokenizerFast,
    tokens: Sequence[int],
    *,
    stop: tuple[str, ...] = (),
    cuts: Sequence[int] = (),
    calls: bool = False,
    limit: int = 1000,
) -> tuple[str, list[WrittenToken], list[Delta]]:
    """Write an answer, cut into steps of these lengths; return its words, its tokens, and all that was told."""
    writer = Detokenizer(
        tokenizer,
        Sampling(stop=stop),
        ends=frozenset({END}),
        limit=limit,
        calls=CallReader() if calls else None,
        logprobs=2,
    )
    deltas: list[Delta] = []
    at, lengths = 0, iter(cuts)
    while at < len(tokens) and writer.finished is None:
        length = next(lengths, 1)
        begin = at
        _, said = writer.write(tokens[at : at + length], lambda after, begin=begin: _scores(begin + after))
        deltas += said
        at += length
    if writer.finished is None:
        deltas += writer.finish("length")
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return text, [token for delta in deltas if isinstance(delta, TextDelta) for token in delta.tokens], deltas


texts = st.text(alphabet="the sea, 1é🎻\n", max_size=20)
stops = st.lists(st.text(alphabet="the sea, 1é🎻", min_size=1, max_size=4), max_size=2).map(tuple)


@given(text=texts, stop=stops, cuts=st.lists(st.integers(1, 5), max_size=12))
def test_an_answers_tokens_are_those_of_its_words_however_it_is_cut(
    tokenizer: PreTrainedTokenizerFast, text: str, stop: tuple[str, ...], cuts: list[int]
) -> None:
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], END]
    said, scored, _ = _written(tokenizer, tokens, stop=stop, cuts=cuts)
    assert _written(tokenizer, tokens, stop=stop)[:2] == (said, scored)
    data = b"".join(each.chosen.data for each in scored)
    assert data.startswith(said.encode())
    assert len(data) == len(said.encode()) or len(b"".join(each.chosen.data for each in scored[:-1])) < len(data)
    if said == text:
        assert data == text.encode()
    # No token is told whose words are not: the last one has at least a part of them.
    whole = [bytes(tokenizer.decode([token]), "utf-8") for token in tokens[:-1]]
    assert len(scored) <= len(whole)
    told = 0
    for each in scored:
        assert told < len(said.encode())
        told += len(each.chosen.data)


@given(tokens=st.lists(st.integers(3, 339), min_size=1, max_size=20), cuts=st.lists(st.integers(1, 5), max_size=12))
def test_every_token_of_any_bytes_is_told_once_with_its_own_scores(
    tokenizer: PreTrainedTokenizerFast, tokens: list[int], cuts: list[int]
) -> None:
    _, scored, _ = _written(tokenizer, tokens, cuts=cuts)
    assert len(scored) == len(tokens)
    for place, (token, each) in enumerate(zip(tokens, scored, strict=True)):
        logprobs = _scores(place).log_softmax(-1)
        assert each.chosen.logprob == pytest.approx(float(logprobs[token]))
        assert [other.logprob for other in each.top] == pytest.approx(logprobs.topk(2).values.tolist())


def test_parts_of_a_character_are_bytes_that_come_with_it(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer("a🎻b", add_special_tokens=False)["input_ids"]
    _, scored, deltas = _written(tokenizer, tokens)
    assert [each.chosen.data for each in scored] == [b"a", b"\xf0", b"\x9f", b"\x8e", b"\xbb", b"b"]
    assert scored[1].chosen.text == "\ufffd"
    told = [(delta.text, len(delta.tokens)) for delta in deltas if isinstance(delta, TextDelta)]
    assert told == [("a", 1), ("🎻", 4), ("b", 1)]


def test_a_character_that_the_limit_cuts_is_told_by_its_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer("a🎻b", add_special_tokens=False)["input_ids"]
    text, scored, _ = _written(tokenizer, tokens, limit=3)
    assert (text, b"".join(each.chosen.data for each in scored)) == ("a", b"a\xf0\x9f")


def test_of_an_answer_with_calls_the_words_alone_are_told(tokenizer: PreTrainedTokenizerFast) -> None:
    words = "I look.\n"
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'
    tokens = [*tokenizer(words + call, add_special_tokens=False)["input_ids"], END]
    text, scored, deltas = _written(tokenizer, tokens, calls=True)
    assert any(isinstance(delta, CallDelta) for delta in deltas)
    assert "".join(each.chosen.data.decode() for each in scored) == text == words
    _, none, _ = _written(tokenizer, [*tokenizer(call, add_special_tokens=False)["input_ids"], END], calls=True)
    assert none == []


def test_what_is_held_for_a_call_that_never_comes_is_told_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = [*tokenizer("so <tool", add_special_tokens=False)["input_ids"], END]
    text, scored, _ = _written(tokenizer, tokens, calls=True)
    assert "".join(each.chosen.data.decode() for each in scored) == text == "so <tool"


def test_bytes_of_a_vocabulary_of_sentencepiece_are_told_as_well() -> None:
    vocabulary = {"<unk>": 0, "▁the": 1, "<0xC3>": 2, "<0xA9>": 3, "▁": 4, "sea": 5}
    backend = Tokenizer(tokenizer_models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    log = TokenLog(PreTrainedTokenizerFast(tokenizer_object=backend), 0)
    for token, text in ((1, " the"), (4, " "), (5, "sea"), (2, ""), (3, "é")):
        log.add(token, text, torch.zeros(6))
    assert [each.chosen.data for each in log.rest(" the seaé")] == [b" the", b" ", b"sea", b"\xc3", b"\xa9"]


def test_no_chance_at_all_is_a_number_that_json_has(tokenizer: PreTrainedTokenizerFast) -> None:
    log = TokenLog(tokenizer, 1)
    log.add(5, "x", torch.full((340,), -torch.inf).index_fill(0, torch.tensor(7), 0.0))
    (scored,) = log.rest("x")
    assert (scored.chosen.logprob, scored.top[0].logprob) == (-9999.0, 0.0)
