"""How functions are offered, and how calls are told from words while they are written."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.language.tool_format import (
    LISTED,
    TAGGED,
    CallReader,
    arguments_schema,
    format_of,
    grammar,
    offer_in_words,
    offered,
    tools_for_template,
)
from models.ports.generate import JsonSchemaConstraint, ToolConstraint, ToolSpec

_LOOK = ToolSpec(name="look", description="Looks.", parameters='{"type": "object", "properties": {"at": {}}}')
_WAIT = ToolSpec(name="wait", description="", parameters="{}")
_TOOLS = ToolConstraint(tools=(_LOOK, _WAIT))

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\{}[]</>é\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"}', max_size=3), inner, max_size=3),
    max_leaves=6,
)
_CALLS = st.lists(st.tuples(st.sampled_from(("look", "wait")), st.dictionaries(st.text(max_size=3), _JSON, max_size=3)))


def _read(pieces: list[str]) -> tuple[str, list[tuple[str, Any]], str]:
    """Return the words, the calls, and why the answer ended."""
    reader, words, calls = CallReader(), "", dict[str, list[str]]()
    for piece in pieces:
        said, deltas = reader.feed(piece)
        words += said
        for delta in deltas:
            calls.setdefault(delta.call_id, [delta.name, ""])[1] += delta.arguments
    rest, reason = reader.finish("stop")
    return words + rest, [(name, json.loads(arguments)) for name, arguments in calls.values()], reason


def _cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in itertools.pairwise(places)]


@settings(deadline=None)
@given(st.text("<tol_ca>/ \nwords", max_size=30), _CALLS, st.booleans(), st.lists(st.integers(0, 500)))
def test_calls_are_read_as_they_were_written_wherever_the_text_is_cut(
    words: str, calls: list[tuple[str, Any]], listed: bool, cuts: list[int]
) -> None:
    written = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    if listed:
        text = f"<tool_call>[{', '.join(written)}]</tool_call>" if calls else ""
    else:
        text = "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in written)
    words = words.replace("<tool_call>", "")
    expected = words if words.strip() or not calls else ""
    reason = "calls" if calls else "stop"
    assert _read(_cut(words + text, cuts)) == (expected, calls, reason)


def test_the_name_comes_first_and_the_arguments_as_they_are_written() -> None:
    reader = CallReader()
    assert reader.feed('Wait. <tool_call>[{"name": "look", "argum') == ("Wait. ", [])
    _, (begun, first) = reader.feed('ents": {"at": "the')
    assert (begun.name, begun.arguments) == ("look", "")
    assert (first.call_id, first.name, first.arguments) == (begun.call_id, "look", '{"at": "the')
    _, (second,) = reader.feed(' sea"}}]</tool_')
    assert second.arguments == ' sea"}'
    assert reader.feed("call>") == ("", [])
    assert reader.finish("stop") == ("", "calls")


def test_words_are_not_held_back_longer_than_they_may_be_a_mark() -> None:
    reader = CallReader()
    assert reader.feed("a <to") == ("a ", [])
    assert reader.feed("y> <tool_") == ("<toy> ", [])
    assert reader.finish("stop") == ("<tool_", "stop")


@pytest.mark.parametrize("cut", range(12, 60))
def test_a_call_that_is_cut_short_is_none(cut: int) -> None:
    reader = CallReader()
    reader.feed('<tool_call>[{"name": "look", "arguments": {"at": "the sea"}}]</tool_call>'[:cut])
    assert reader.finish("length") == ("", "length")


def test_the_template_says_how_calls_are_written() -> None:
    assert format_of("{% if tools %}<tool_call>{% endif %}") == TAGGED
    assert format_of("{% if tools %}[TOOL_CALLS]{% endif %}") == LISTED
    assert format_of("{{ messages }}") == LISTED
    assert LISTED.write("look", {"at": "é"}) == '<tool_call>[{"name": "look", "arguments": {"at": "é"}}]</tool_call>'
    assert TAGGED.write("look", "no JSON") == '<tool_call>\n{"name": "look", "arguments": no JSON}\n</tool_call>'


def test_only_what_may_be_called_is_offered() -> None:
    assert offered(_TOOLS) == (_LOOK, _WAIT)
    assert offered(replace(_TOOLS, choice="required", function="wait")) == (_WAIT,)
    assert offered(replace(_TOOLS, choice="none")) == ()
    assert [tool["function"]["name"] for tool in tools_for_template(_TOOLS)] == ["look", "wait"]


def test_a_model_is_told_that_it_may_answer_in_words_only_if_it_may() -> None:
    tools = tools_for_template(_TOOLS)
    assert "in words" in offer_in_words(_TOOLS, tools)
    assert "in words" not in offer_in_words(replace(_TOOLS, choice="required"), tools)
    assert '"name": "look"' in offer_in_words(_TOOLS, tools)


def test_without_functions_there_is_nothing_to_keep_to() -> None:
    assert grammar(ToolConstraint(tools=()), LISTED) is None
    assert grammar(replace(_TOOLS, choice="none"), LISTED) is None


def test_arguments_are_those_that_are_named_unless_the_schema_names_more() -> None:
    assert arguments_schema(_WAIT)["additionalProperties"] is False
    assert arguments_schema(_WAIT)["type"] == "object"
    assert "additionalProperties" not in arguments_schema(replace(_LOOK, parameters='{"$ref": "#/$defs/a"}'))
    assert arguments_schema(replace(_LOOK, parameters='{"additionalProperties": true}'))["additionalProperties"] is True


@pytest.mark.parametrize(
    ("tools", "message", "field"),
    [
        ((_WAIT, _LOOK, _LOOK), "'look' is offered twice", "name"),
        ((_WAIT, replace(_LOOK, parameters="{")), "parameters of the function 'look' are no JSON", "parameters"),
        ((_WAIT, replace(_LOOK, parameters='{"type": "string"}')), "'look' are not an object's schema", "parameters"),
        ((_WAIT, replace(_LOOK, parameters="[]")), "'look' are not an object's schema", "parameters"),
    ],
)
def test_what_cannot_be_offered_is_refused_by_name_and_place(
    tools: tuple[ToolSpec, ...], message: str, field: str
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        grammar(ToolConstraint(tools=tools), LISTED)
    assert refused.value.field == f"tools[{len(tools) - 1}].{field}"
    if field == "parameters":
        with pytest.raises(BadInput, match=message) as shown:
            tools_for_template(ToolConstraint(tools=tools))
        assert shown.value.field == refused.value.field


def test_a_form_beside_functions_has_no_members_but_those_it_names_as_one_alone_has_not():
    form = JsonSchemaConstraint(schema='{"type": "object", "properties": {"a": {"type": "integer"}}}')
    said = grammar(ToolConstraint(tools=(_LOOK,), form=form), LISTED) or ""
    (rule,) = [line for line in said.splitlines() if line.startswith("form: ")]
    assert '"additionalProperties": false' in rule
