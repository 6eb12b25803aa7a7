"""What is said of an answer token by token: words, calls, and where stop strings cut it."""

import json
import re
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_llama import make_tokenizer
from transformers import PreTrainedTokenizerFast

from models.content import CallDelta, Delta, FinishDelta, TextDelta
from models.language.detokenize import Detokenizer
from models.language.tool_format import CallReader
from models.ports.generate import Sampling, Signal

_END = 2

_MARKUP = re.compile(r"<tool_call>|</tool_call>|<\|im_|\"arguments\"")


@lru_cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def _write(
    text: str,
    *,
    stop: tuple[str, ...],
    limit: int,
    pieces: list[int],
    either: bool = False,
    signals: frozenset[Signal] = frozenset(),
) -> tuple[str, list[tuple[str, str]], str]:
    """Return the words, the calls and the reason of an answer that a model writes as `text`, so many tokens a step."""
    tokenizer = _tokenizer()
    tokens = [*tokenizer(text, add_special_tokens=False)["input_ids"], _END]
    writer = Detokenizer(
        tokenizer,
        Sampling(stop=stop),
        ends=frozenset({_END}),
        limit=limit,
        calls=CallReader(either=either),
        signals=signals,
    )
    deltas: list[Delta] = []
    at, sizes = 0, iter(pieces)
    while writer.finished is None:
        size = next(sizes, 1)
        said, more = writer.write(tokens[at : at + size], lambda _: None)  # type: ignore[arg-type, return-value]
        at += said
        deltas += more
    calls: dict[str, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, CallDelta):
            calls.setdefault(delta.call_id, [delta.name, ""])[1] += delta.arguments
    last = deltas[-1]
    assert isinstance(last, FinishDelta)
    words = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    return words, [(name, arguments) for name, arguments in calls.values()], last.reason


_WORDS = st.text("ab <tol_c>}{\n", max_size=12).filter(lambda text: "<tool_call>" not in text)
_VALUES = st.dictionaries(st.sampled_from("abc"), st.text('ab}<>"\\', max_size=6) | st.integers(0, 99), max_size=2)
_STOPS = st.lists(
    st.sampled_from(
        ["}", "{", '"', "<", "<tool", "tool_call", "]", "\n", "name", "arguments", "ab", "b", "</tool_call>", "act"]
    ),
    max_size=3,
    unique=True,
)


def _text(words: str, calls: list[dict[str, object]], *, listed: bool) -> str:
    written = [json.dumps({"name": "act", "arguments": each}) for each in calls]
    if not calls:
        return words
    if listed:
        return f"{words}<tool_call>[{', '.join(written)}]</tool_call>"
    return words + "\n".join(f"<tool_call>\n{each}\n</tool_call>" for each in written)


@settings(deadline=None, max_examples=300)
@given(
    words=_WORDS,
    calls=st.lists(_VALUES, max_size=2),
    listed=st.booleans(),
    stops=_STOPS,
    limit=st.integers(1, 90),
    pieces=st.lists(st.integers(1, 9)),
    signals=st.sampled_from((frozenset(), frozenset({"token_ids"}))),
)
def test_stop_strings_cut_words_only_and_no_cut_leaves_markup_in_them(
    words: str,
    calls: list[dict[str, object]],
    listed: bool,
    stops: list[str],
    limit: int,
    pieces: list[int],
    signals: frozenset[Signal],
) -> None:
    text = _text(words, calls, listed=listed)
    length = len(_tokenizer()(text, add_special_tokens=False)["input_ids"])
    said, made, reason = _write(text, stop=tuple(stops), limit=limit, pieces=pieces, signals=signals)
    # White space before a call is no message, but where an answer is cut it is not known yet that a call would have come.
    visible = words if words.strip() or not calls else ""
    assert not _MARKUP.search(said)
    assert words.startswith(said), "what is said is a beginning of the words"
    assert all(stop not in said for stop in stops)
    stopped = any(stop in visible for stop in stops)
    if limit > length:
        assert reason == ("stop" if stopped or not calls else "calls")
        if not stopped:
            assert said == visible
            assert made == [("act", json.dumps(each)) for each in calls]
    if reason == "calls":
        assert len(made) == len(calls)
    if made:
        assert not stopped or reason == "length", "nothing is called behind a stop string"


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_call_that_is_cut_at_any_token_is_none_and_leaves_no_word(cut: int) -> None:
    call = _text("", [{"a": "one two"}], listed=True)
    said, _, reason = _write(call, stop=("}", '"'), limit=cut, pieces=[])
    whole = len(_tokenizer()(call, add_special_tokens=False)["input_ids"])
    assert (said, reason) == ("", "calls" if cut > whole else "length")


@settings(deadline=None, max_examples=100)
@given(value=st.text("ab<tol_call>{} ", max_size=30), pieces=st.lists(st.integers(1, 9)))
def test_beside_functions_an_answer_in_a_form_is_words_to_its_end_whatever_is_in_it(
    value: str, pieces: list[int]
) -> None:
    text = json.dumps({"a": value + "<tool_call>"})
    assert _write(text, stop=(), limit=500, pieces=pieces, either=True) == (text, [], "stop")
    call = _text("", [{"a": value}], listed=True)
    assert _write(call, stop=(), limit=500, pieces=pieces, either=True)[1:] == (
        [("act", json.dumps({"a": value}))],
        "calls",
    )
