"""Items of a conversation as every surface shows them, and the ids of what they belong to."""

import json
from dataclasses import asdict
from typing import Any, Literal, assert_never

from models.content import (
    ApprovalRequest,
    ApprovalResponse,
    AudioPart,
    BlobRef,
    Call,
    CallResult,
    EvidencePart,
    FilePart,
    HostedCall,
    ImagePart,
    Item,
    OtherItem,
    Part,
    Reasoning,
    Role,
    TextPart,
    ToolListing,
    VideoPart,
    text_of,
)
from models.content import Message as MessageItem


def response_id(turn_id: str) -> str:
    """Return the response's id, which is the turn's under another prefix."""
    return "resp_" + turn_id.removeprefix("turn_")


def turn_id(response_id_: str) -> str:
    """Return the turn's id of a response's."""
    return "turn_" + response_id_.removeprefix("resp_")


def wire_item(item: Item, status: Literal["completed", "incomplete", "in_progress"]) -> dict[str, Any]:
    """Build an item as the wire has it; one of a kind that is not known here as it came."""
    base: dict[str, Any] = {"id": item.item_id, "object": "realtime.item", "status": status}
    match item:
        case MessageItem():
            content = [wire_part(part, item.role) for part in item.parts]
            phase = {} if item.output == "answer" else {"phase": item.output}
            return {**base, "type": "message", "role": item.role, "content": content, **phase}
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
        case Reasoning():
            content = [{"type": "reasoning_text", "text": item.text}] if item.text else []
            return {**base, "type": "reasoning", "summary": [], "content": content}
        case ApprovalRequest():
            return {
                **base,
                "type": "mcp_approval_request",
                "server_label": item.server or "",
                "name": item.name,
                "arguments": item.arguments,
                "call_id": item.call_id,
                **({} if item.expires_ms is None else {"expires_at": item.expires_ms // 1000}),
            }
        case ApprovalResponse():
            asked = {"approval_request_id": item.request_id, "approve": item.approve, "reason": item.reason}
            return {**base, "type": "mcp_approval_response", **asked}
        case ToolListing():
            return {**base, "type": "mcp_list_tools", "server_label": item.server, "tools": _json(item.tools)}
        case HostedCall():
            error = None if item.error is None else {"type": "mcp_tool_execution_error", "message": item.error}
            return {
                **base,
                "type": "mcp_call",
                "server_label": item.server,
                "name": item.name,
                "arguments": item.arguments,
                "output": item.result,
                "error": error,
            }
        case OtherItem():
            body = _json(item.body)
            return {
                **base,
                **(body if isinstance(body, dict) else {"body": body}),
                "id": item.item_id,
                "type": item.type,
            }
        case _:
            assert_never(item)


def wire_part(part: Part, role: Role) -> dict[str, Any]:
    """Build a part of a message as the wire has it. What is no text is a blob, by its sha-256: an extension."""
    side = "output" if role == "assistant" else "input"
    match part:
        case TextPart():
            return {"type": f"{side}_text", "text": part.text}
        case ImagePart():
            size = {"width_px": part.width_px, "height_px": part.height_px}
            return {"type": f"{side}_image", **_blob(part.blob), **size}
        case AudioPart():
            return {"type": f"{side}_audio", **_blob(part.blob), "rate_hz": part.rate_hz, "samples": part.samples}
        case VideoPart():
            size = {"width_px": part.width_px, "height_px": part.height_px, "duration_ms": part.duration_ms}
            return {"type": f"{side}_video", **_blob(part.blob), **size}
        case FilePart():
            return {"type": f"{side}_file", **_blob(part.blob), "filename": part.name}
        case EvidencePart():
            fields = asdict(part)
            return {
                "type": fields.pop("kind"),
                **{name: value for name, value in fields.items() if value not in (None, "")},
            }
        case _:
            assert_never(part)


def _blob(blob: BlobRef) -> dict[str, Any]:
    return {"sha256": blob.sha256, "media_type": blob.media_type, "size_bytes": blob.size_bytes}


def _json(text: str) -> Any:
    """Return what JSON text says; the text itself, if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
