"""What may be written under a constraint, and that speculation does not change it.

Answers are random walks: at each place one of the tokens that the mask admits, whatever a model would have thought of it.
"""

import json
import re
from contextlib import suppress
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_llama import make_tokenizer
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from models.errors import BadInput, Internal, LimitExceeded
from models.language.decoding.constrain import Constrainer, Guide, masked
from models.language.tool_format import LISTED, TAGGED, CallReader
from models.ports.generate import (
    Constraint,
    Form,
    GrammarConstraint,
    JsonSchemaConstraint,
    RegexConstraint,
    ToolConstraint,
    ToolSpec,
)

_WIDTH = 350  # of the model's logits: ten more than the tokenizer has tokens, and no multiple of 32
_BEGIN, _END = 1, 2  # of a message

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["sea", "sky"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
_CITY = {"$ref": "#/$defs/city"}
_WEATHER = ToolSpec(
    name="weather",
    description="",
    parameters=json.dumps(
        {
            "properties": {"city": _CITY, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
            "$defs": {"city": {"enum": ["Bern", "Basel"]}},
        }
    ),
)
_CLOCK = ToolSpec(name="clock", description="", parameters="{}")
_TOOLS = ToolConstraint(tools=(_WEATHER, _CLOCK))


def _schema(schema: object) -> JsonSchemaConstraint:
    return JsonSchemaConstraint(schema=json.dumps(schema))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def listed(tokenizer: PreTrainedTokenizerFast) -> Constrainer:
    return Constrainer(tokenizer, vocabulary=_WIDTH, ends={_END}, calls=LISTED)


@pytest.fixture(scope="module")
def tagged(tokenizer: PreTrainedTokenizerFast) -> Constrainer:
    return Constrainer(tokenizer, vocabulary=_WIDTH, ends={_END}, calls=TAGGED)


def _admitted(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), count=_WIDTH, bitorder="little")).tolist()


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _start(constrainer: Constrainer, constraint: Constraint) -> Guide:
    guide = constrainer.start(constraint)
    assert guide is not None
    return guide


def _choose(admitted: list[int], chance: Random) -> int:
    if _END in admitted and (len(admitted) == 1 or chance.random() < 0.3):
        return _END
    return chance.choice(admitted)


def _started(constrainer: Constrainer, constraint: Constraint, begun: str = "") -> Guide:
    guide = constrainer.start(constraint, begun)
    assert guide is not None
    return guide


def _walk(guide: Guide, chance: Random, most: int = 3000) -> list[int]:
    """Write an answer token by token."""
    tokens: list[int] = []
    while not guide.stopped:
        assert len(tokens) < most, "it does not come to an end"
        tokens.append(_choose(_admitted(guide.masks()[0]), chance))
        guide.accept(tokens[-1:])
    return [token for token in tokens if token != _END]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), cut=st.floats(0, 1))
@pytest.mark.parametrize(
    "constraint",
    [
        _schema(_PERSON),
        RegexConstraint(pattern="[a-cé]{2,9} (x|yz)+"),
        GrammarConstraint(grammar='start: "yes" rest | "no"\nrest: " and" rest | "."'),
        ToolConstraint(tools=(_CLOCK,), form=_schema(_PERSON)),
    ],
    ids=["schema", "expression", "grammar", "beside functions"],
)
def test_what_goes_on_from_the_beginning_of_an_answer_is_one_together_with_it(
    seed: int, cut: float, constraint: Constraint, listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    form = constraint.form if isinstance(constraint, ToolConstraint) else constraint
    assert form is not None
    whole = tokenizer.decode(_walk(_started(listed, form), Random(seed)))
    begun = whole[: round(cut * len(whole))]
    if "\ufffd" in begun:  # cut within a character, which cannot be sent
        return
    if begun:  # else it might call
        more = tokenizer.decode(_walk(_started(listed, constraint, begun), Random(seed + 1)))
        matcher = _started(listed, form, begun + more) if "\ufffd" not in more else None
        assert matcher is None or _END in _admitted(matcher.masks()[0]), "the whole may end"
    with pytest.raises(BadInput, match=f"after {len(begun)} characters") as refused:
        listed.start(constraint, f"{begun}\x01")
    assert refused.value.code == "form_unsatisfiable"


@pytest.mark.parametrize("begun", ["I look. <tool_call>", 'Well <tool_call>[{"name": "clock"', "See <tool"])
def test_a_call_that_has_begun_in_words_is_not_gone_on_with(begun: str, listed: Constrainer) -> None:
    with pytest.raises(BadInput, match="begin a call"):
        listed.start(_TOOLS, begun)
    assert listed.start(_TOOLS, "Well, ") is not None


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_whatever_is_written_under_a_schema_fits_it(
    seed: int, listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = tokenizer.decode(_walk(_start(listed, _schema(_PERSON)), Random(seed)))
    person = json.loads(text)
    assert text == json.dumps(person, ensure_ascii=False) or "\\" in text, "white space where none belongs"
    assert {"name", "age"} <= set(person) <= {"name", "age", "likes"}
    assert len(person["name"]) <= 8
    assert 0 <= person["age"] <= 120
    assert set(person.get("likes", ())) <= {"sea", "sky"}
    assert len(person.get("likes", ())) <= 3


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_whatever_is_written_under_an_expression_or_a_grammar_matches_as_a_whole(
    seed: int, listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    pattern = r"(the|a) (sea|sky)(, (one|two)){0,3}\.?"
    assert re.fullmatch(
        pattern, tokenizer.decode(_walk(_start(listed, RegexConstraint(pattern=pattern)), Random(seed)))
    )
    nested = GrammarConstraint(grammar='start: pair\npair: "(" pair? ")"')
    assert re.fullmatch(r"\(+\)+", tokenizer.decode(_walk(_start(listed, nested), Random(seed))))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    form=st.sampled_from(("listed", "tagged")),
    wanted=st.sampled_from(({}, {"parallel": False}, {"function": "clock"})),
)
def test_whatever_is_written_where_functions_must_be_called_is_calls_of_them(
    seed: int,
    form: str,
    wanted: dict[str, object],
    listed: Constrainer,
    tagged: Constrainer,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    constraint = replace(_TOOLS, choice="required", **wanted)
    text = tokenizer.decode(_walk(_start(listed if form == "listed" else tagged, constraint), Random(seed)))
    reader = CallReader()
    words, deltas = reader.feed(text)
    assert (words, reader.finish("stop")) == ("", ("", "calls"))
    calls: dict[str, list[str]] = {}
    for delta in deltas:
        calls.setdefault(delta.call_id, [delta.name, ""])[1] += delta.arguments
    assert 1 <= len(calls) <= (1 if wanted else 16)
    for name, arguments in calls.values():
        given = json.loads(arguments)
        if name == "clock":
            assert given == {}
        else:
            assert name == "weather"
            assert "function" not in wanted
            assert given["city"] in {"Bern", "Basel"}
            assert given.keys() <= {"city", "days"}
            assert given.get("days", 1) in range(1, 10)


@pytest.mark.parametrize("form", ["listed", "tagged"])
def test_where_functions_may_be_called_words_are_free_until_a_call_begins(
    form: str, request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast
) -> None:
    guide = _start(request.getfixturevalue(form), _TOOLS)
    words = _ids(tokenizer, 'He said <tool, "two" <tool_')
    assert len(guide.masks(words)) == 1 + len(words)
    guide.accept(words)
    assert _END in _admitted(guide.masks()[0])
    guide.accept(_ids(tokenizer, "call>"))
    assert not guide.stopped
    admitted = {tokenizer.decode([token]) for token in _admitted(guide.masks()[0])}
    assert admitted == {"["} if form == "listed" else {"\n"}
    text = tokenizer.decode(_walk(guide, Random(1)))
    assert '{"name": "' in text
    assert text.endswith("</tool_call>")


_CONSTRAINTS: list[Constraint] = [
    _schema(_PERSON),
    _schema({"type": "object"}),
    RegexConstraint(pattern=r"(one|two|three)( (one|two|three)){2,9}"),
    GrammarConstraint(grammar='start: pair\npair: "(" pair? ")"'),
    replace(_TOOLS, choice="required"),
    _TOOLS,
]


def _draft(guide: Guide, chance: Random) -> list[int]:
    """Return a draft that the grammar admits for a while, and then perhaps not; `guide` is used up."""
    draft: list[int] = []
    for _ in range(chance.randrange(6)):
        admitted = _admitted(guide.masks()[0])
        token = chance.choice(admitted) if chance.random() < 0.8 else chance.randrange(_WIDTH)
        draft.append(token)
        if token not in admitted or token == _END:
            break
        guide.accept([token])
        if guide.stopped:
            break
    return draft


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 10**6), constraint=st.sampled_from(_CONSTRAINTS))
def test_drafts_do_not_change_a_mask_whatever_becomes_of_them(
    seed: int, constraint: Constraint, listed: Constrainer
) -> None:
    chance = Random(seed)
    plain, guide = _start(listed, constraint), _start(listed, constraint)
    written: list[int] = []
    while not plain.stopped and len(written) < 60:
        ahead = _start(listed, constraint)
        ahead.accept(written)
        draft = guide.forced() if chance.random() < 0.2 else _draft(ahead, chance)
        masks = guide.masks(draft)
        accepted: list[int] = []
        for mask, drafted in zip(masks, [*draft[: len(masks) - 1], None], strict=True):
            assert (mask == plain.masks()[0]).all()
            token = drafted if drafted is not None and chance.random() < 0.8 else _choose(_admitted(mask), chance)
            plain.accept([token])
            accepted.append(token)
            if token != drafted or plain.stopped:
                break
        guide.accept(accepted)
        written += accepted
        assert guide.stopped == plain.stopped


def test_a_draft_is_cut_where_the_grammar_refuses_it_or_the_answer_ends(
    listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    guide = _start(listed, RegexConstraint(pattern="(one|two)+"))
    one, boats = _ids(tokenizer, "one"), _ids(tokenizer, "boats")
    assert len(guide.masks([*one, *boats, *one])) == 1 + len(one)
    assert len(guide.masks([*one, _END, *one])) == 1 + len(one)
    assert len(guide.masks(boats)) == 1
    assert len(guide.masks([])) == 1


def test_what_the_grammar_forces_is_a_draft_for_nothing(
    listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    guide = _start(listed, replace(_TOOLS, choice="required", function="clock"))
    forced = guide.forced()
    assert '<tool_call>[{"name": "clock", "arguments": {}}]</tool_call>'.startswith(tokenizer.decode(forced))
    assert len(guide.masks(forced)) == 1 + len(forced)
    guide.accept(forced)
    assert _start(listed, RegexConstraint(pattern="[a-z]+")).forced() == []


def test_the_end_may_be_written_exactly_where_the_answer_may_end(
    listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    guide = _start(listed, RegexConstraint(pattern="one( two)?"))
    assert _END not in _admitted(guide.masks()[0])
    guide.accept(_ids(tokenizer, "one"))
    assert not guide.stopped
    assert _END in _admitted(guide.masks()[0])
    guide.accept(_ids(tokenizer, " two"))
    assert guide.stopped, "nothing can follow"
    assert _admitted(guide.masks()[0]) == [_END]
    early = _start(listed, RegexConstraint(pattern="one( two)?"))
    early.accept([*_ids(tokenizer, "one"), _END])
    assert early.stopped


def test_special_tokens_and_what_is_no_token_are_never_written(listed: Constrainer) -> None:
    free = _admitted(_start(listed, RegexConstraint(pattern=r"(?s:.*)")).masks()[0])
    assert _BEGIN not in free
    assert max(free) < 340
    naming = _start(listed, GrammarConstraint(grammar='start: "a" | <|im_start|>'))
    assert _BEGIN not in _admitted(naming.masks()[0])
    assert len(naming.masks([_BEGIN])) == 1
    with pytest.raises(BadInput):
        listed.start(GrammarConstraint(grammar="start: <|im_start|>"))


def test_marks_of_calls_that_are_tokens_are_written_as_such() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in ("<tool_call>", "</tool_call>")]
    )
    constrainer = Constrainer(tokenizer, vocabulary=_WIDTH, ends={_END}, calls=TAGGED)
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    forced = _start(constrainer, replace(_TOOLS, choice="required", function="clock")).forced()
    assert call.startswith(tokenizer.decode(forced))
    assert forced[0] == tokenizer.convert_tokens_to_ids("<tool_call>")
    guide = _start(constrainer, _TOOLS)
    tokens = _ids(tokenizer, f"Wait.\n{call}")
    assert len(guide.masks(tokens)) == 1 + len(tokens)
    guide.accept(tokens)
    assert _END in _admitted(guide.masks()[0])


def test_white_space_cannot_be_written_for_ever(listed: Constrainer, tokenizer: PreTrainedTokenizerFast) -> None:
    wide = {"x-guidance": {"whitespace_flexible": True, "lenient": True}, "type": "object", "properties": {"a": {}}}
    guide = _start(listed, _schema(wide))
    for text in ("{ ", "{\n", '{"a":  ', '{"a"\n'):
        tokens = _ids(tokenizer, text)
        assert len(guide.masks(tokens)) < 1 + len(tokens), text


def test_free_functions_leave_the_answer_free(listed: Constrainer) -> None:
    assert listed.start(replace(_TOOLS, choice="none")) is None
    assert listed.start(ToolConstraint(tools=())) is None


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (JsonSchemaConstraint(schema="{"), "no JSON"),
        (JsonSchemaConstraint(schema="[]"), "has to be an object"),
        (_schema({"type": "objekt"}), "Invalid type: objekt"),
        (_schema({"properties": {"a": {"not": {}}}}), r'Unimplemented keys: \["not"\]'),
        (_schema({"x-guidance": {"lenient": True}, "uniqueItems": True}), r'Unimplemented keys: \["uniqueItems"\]'),
        (_schema({"type": "string", "format": "phone"}), "Unknown format: phone"),
        (_schema({"$ref": "https://example.org/schema"}), "example.org"),
        (_schema({"enum": []}), "Unsatisfiable"),
        (RegexConstraint(pattern="("), "unclosed group"),
        (RegexConstraint(pattern="a(?=b)"), "look-around"),
        (GrammarConstraint(grammar='begin: "a"'), "start"),
        (GrammarConstraint(grammar="start: nonesuch"), "nonesuch"),
        (GrammarConstraint(grammar='start: a\na: a "x"'), "does not go on"),
    ],
)
def test_what_cannot_be_enforced_is_refused_at_the_start_and_says_what(
    constraint: Constraint, message: str, listed: Constrainer
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        listed.start(constraint)
    assert refused.value.field == f"constraint.{constraint.kind}"
    assert len(refused.value.message) < 600


def test_a_function_whose_parameters_cannot_be_enforced_is_named(listed: Constrainer) -> None:
    bad = ToolSpec(name="guess", description="", parameters='{"type": "object", "if": {"required": ["a"]}}')
    with pytest.raises(BadInput, match=r"'guess' cannot be enforced: .*\[\"if\"\]") as refused:
        listed.start(ToolConstraint(tools=(_WEATHER, bad)))
    assert refused.value.field == "tools[1].parameters"


def test_what_takes_too_long_to_follow_is_given_up(listed: Constrainer, tokenizer: PreTrainedTokenizerFast) -> None:
    names = [f"x{n}" for n in range(600)]
    rules = [f'{name}: "a" {name}? "b"' for name in names]
    guide = _start(listed, GrammarConstraint(grammar="\n".join([f"start: {'* '.join(names)}*", *rules])))
    with pytest.raises(LimitExceeded, match="simpler") as refused:
        guide.accept(_ids(tokenizer, "a"))
    assert refused.value.field == "constraint.grammar"


def test_a_token_that_was_not_admitted_is_a_defect(listed: Constrainer, tokenizer: PreTrainedTokenizerFast) -> None:
    guide = _start(listed, RegexConstraint(pattern="one"))
    with pytest.raises(Internal):
        guide.accept(_ids(tokenizer, "two"))
    ended = _start(listed, RegexConstraint(pattern="one"))
    with pytest.raises(Internal):
        ended.accept([_END, *_ids(tokenizer, "one")])


def test_a_tokenizer_with_more_tokens_than_the_model_does_not_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(BadInput, match="only 339"):
        Constrainer(tokenizer, vocabulary=339, ends={_END}, calls=LISTED)


@pytest.mark.parametrize("width", [33, 350, 352])
def test_what_the_masks_exclude_cannot_be_chosen_and_the_rest_is_as_it_was(width: int) -> None:
    chance = np.random.default_rng(width)
    allowed = chance.random((5, width)) < 0.3
    masks = np.zeros((5, -(-width // 32) * 32), np.bool_)
    masks[:, :width] = allowed
    logits = torch.randn(5, width)
    before = logits.clone()
    after = masked(logits, np.packbits(masks, axis=1, bitorder="little").view(np.int32))
    assert torch.equal(after.isneginf(), ~torch.from_numpy(allowed))
    assert torch.equal(after[torch.from_numpy(allowed)], before[torch.from_numpy(allowed)])
    assert torch.equal(logits, before)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    form=st.sampled_from(("listed", "tagged")),
    words=st.sampled_from(
        (
            _schema({"enum": [{"a": "<tool_call>"}, "x", 3]}),
            _schema(_PERSON),
            RegexConstraint(pattern=r"(one|two)/[0-9]{2}\n?"),
            GrammarConstraint(grammar='start: pair\npair: "(" pair? ")"'),
        )
    ),
)
def test_beside_functions_an_answer_is_calls_or_of_the_form(
    seed: int,
    form: str,
    words: Form,
    listed: Constrainer,
    tagged: Constrainer,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    constrainer = listed if form == "listed" else tagged
    text = tokenizer.decode(_walk(_start(constrainer, replace(_TOOLS, form=words)), Random(seed)))
    reader = CallReader(either=True)
    said, deltas = reader.feed(text)
    rest, reason = reader.finish("stop")
    if reason == "calls":
        assert said + rest == ""
        assert {delta.name for delta in deltas} <= {"clock", "weather"}
    else:
        assert (said + rest, deltas) == (text, [])
        match words:
            case JsonSchemaConstraint():
                json.loads(text)
            case RegexConstraint():
                assert re.fullmatch(words.pattern, text)
            case GrammarConstraint():
                assert re.fullmatch(r"\(+\)+", text)


def test_beside_functions_that_must_be_called_there_is_no_form(
    listed: Constrainer, tokenizer: PreTrainedTokenizerFast
) -> None:
    required = replace(_TOOLS, choice="required", form=_schema({"const": 1}))
    assert {tokenizer.decode([token]) for token in _admitted(_start(listed, required).masks()[0])} <= {
        "<tool_call>"[:n] for n in range(1, 12)
    }
    none = replace(_TOOLS, choice="none", form=_schema({"const": 1}))
    assert tokenizer.decode(_walk(_start(listed, none), Random(1))) == "1"
    with pytest.raises(BadInput) as refused:
        listed.start(replace(_TOOLS, form=RegexConstraint(pattern="(")))
    assert refused.value.field == "constraint.regex"


@settings(deadline=None, max_examples=60)
@given(
    number=st.integers(-(2**1100), 2**1100) | st.floats() | st.integers(2**62, 2**66),
    place=st.sampled_from(
        ("minimum", "maximum", "exclusiveMinimum", "multipleOf", "const", "default", "minLength", "maxItems")
    ),
    inside=st.sampled_from(("top", "properties", "items", "anyOf")),
    tool=st.booleans(),
)
def test_a_number_of_any_size_at_any_place_is_taken_or_refused_and_never_a_defect(
    number: float, place: str, inside: str, tool: bool, listed: Constrainer
) -> None:
    schema: dict[str, object] = {place: number}
    schema = {
        "top": schema,
        "properties": {"properties": {"a": schema}},
        "items": {"properties": {"b": {"items": schema}}},
        "anyOf": {"properties": {"b": {"anyOf": [schema, {"type": "null"}]}}},
    }[inside]
    spec = ToolSpec(name="f", description="", parameters=json.dumps({"type": "object", **schema}))
    with suppress(BadInput):
        listed.start(ToolConstraint(tools=(spec,), choice="required") if tool else _schema(schema))


def _goes(guide: Guide, tokens: list[int]) -> int:
    """Write tokens as far as the guide lets them; return how many that are."""
    for count, token in enumerate(tokens):
        mask = np.unpackbits(guide.masks()[0].view(np.uint8), bitorder="little")
        if not mask[token]:
            return count
        guide.accept([token])
    return len(tokens)


@pytest.mark.parametrize("before", ["", "Let me see. ", "<tool>", "<<"])
def test_where_nothing_can_be_called_no_call_is_begun(
    listed: Constrainer, tokenizer: PreTrainedTokenizerFast, before: str
) -> None:
    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    words = tokens(f"{before}<tools> are <tool_box>es\n")
    assert _goes(listed.start_words(), words) == len(words)
    call = tokens(f'{before}<tool_call>[{{"name": "f", "arguments": {{}}}}]</tool_call>')
    said = tokenizer.decode(call[: _goes(listed.start_words(), call)])
    assert "<tool_c" not in said
    assert len(said) < len(before) + len("<tool_c")
