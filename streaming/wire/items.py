"""Items of a conversation as every surface shows them, and the ids of what they belong to."""

from typing import Any, Literal

from models.content import Call, CallResult, Item, TextPart, text_of
from models.content import Message as MessageItem


def response_id(turn_id: str) -> str:
    """Return the response's id, which is the turn's under another prefix."""
    return "resp_" + turn_id.removeprefix("turn_")


def turn_id(response_id_: str) -> str:
    """Return the turn's id of a response's."""
    return "turn_" + response_id_.removeprefix("resp_")


def wire_item(item: Item, status: Literal["completed", "incomplete", "in_progress"]) -> dict[str, Any]:
    """Build an item as the wire has it."""
    base = {"id": item.item_id, "object": "realtime.item", "status": status}
    match item:
        case MessageItem():
            part = "output_text" if item.role == "assistant" else "input_text"
            texts = [p.text for p in item.parts if isinstance(p, TextPart)]
            content = [{"type": part, "text": text} for text in texts]
            return {**base, "type": "message", "role": item.role, "content": content}
        case Call():
            return {
                **base,
                "type": "function_call",
                "call_id": item.call_id,
                "name": item.name,
                "arguments": item.arguments,
            }
        case CallResult():
            return {**base, "type": "function_call_output", "call_id": item.call_id, "output": text_of(item)}
