"""A conversation as a Markdown document for people (CommonMark 0.31).

What was said is Markdown itself. Each message is quoted, so that whatever it leaves open, a code block or a comment, ends
with it.
"""

import re
from collections.abc import Sequence
from typing import assert_never

from memory.sessions import SessionRecord
from models.content import (
    ApprovalRequest,
    ApprovalResponse,
    Call,
    CallResult,
    HostedCall,
    Item,
    Message,
    OtherItem,
    Reasoning,
    ToolListing,
    text_of,
)
from orchestrator.sessions.registry import ToldTurn

_TICKS = re.compile("`+")


def markdown(record: SessionRecord, items: Sequence[Item], turns: Sequence[ToldTurn] = ()) -> str:
    """Return the document; of `turns` it says which were cut off, and where."""
    ends = {turn.after: _end(turn) for turn in turns}
    blocks = [f"# {_one_line(record.title or 'Conversation')}"]
    if record.instructions:
        blocks += ["**Instructions**", _quoted(record.instructions)]
    for item in items:
        blocks += _blocks(item)
        if end := ends.get(item.item_id):
            blocks.append(end)
    return "\n\n".join(blocks) + "\n"


def _blocks(item: Item) -> tuple[str, ...]:
    match item:
        case Message():
            return f"**{item.role.capitalize()}**{_how(item)}", _quoted(text_of(item))
        case Call():
            return f"**Call of** {_span(item.name)}{_how(item)}", _fenced(item.arguments, "json")
        case CallResult():
            return "**Result**", _fenced(text_of(item))
        case Reasoning():
            return f"**Reasoning**{_how(item)}", _quoted(item.text)
        case ApprovalRequest():
            return f"**May be called?** {_span(item.name)}", _fenced(item.arguments, "json")
        case ApprovalResponse():
            said = "Allowed" if item.approve else "Not allowed"
            return (f"**{said}**", *([_quoted(item.reason)] if item.reason else []))
        case ToolListing():
            return f"**Tools of** {_span(item.server)}", _fenced(item.tools, "json")
        case HostedCall():
            head = f"**Call of** {_span(item.name)} *at* {_span(item.server)}"
            return head, _fenced(item.arguments, "json"), "**Result**", _fenced(item.result or item.error or "")
        case OtherItem():
            return f"**{_one_line(item.type)}**", _fenced(item.body, "json")
        case _:
            assert_never(item)


def _end(turn: ToldTurn) -> str | None:
    match turn.state:
        case "interrupted":
            return f"*(cut off: {turn.reason})*"
        case "failed":
            return f"*(failed: {turn.reason})*"
        case "waiting":
            return "*(waits for a call to be allowed)*"
        case "running" | "finished":
            return None


def _how(item: Message | Call | Reasoning) -> str:
    return " *(cut short)*" if item.status == "incomplete" else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines() or [""])


def _fenced(text: str, language: str = "") -> str:
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _span(text: str) -> str:
    text = _one_line(text)
    ticks = "`" * (_longest_ticks(text) + 1)
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def _longest_ticks(text: str) -> int:
    return max(map(len, _TICKS.findall(text)), default=0)
