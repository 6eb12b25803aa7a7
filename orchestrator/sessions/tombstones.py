"""What is left of an item whose content was taken out: its place, its kind, and who it was by. Pure."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import assert_never

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
)
from orchestrator.events import ItemClosed, ItemsAdded, LogEvent, TurnAccepted


def redacted(item: Item) -> Item:
    """Return an item without its content, as valid as it was."""
    match item:
        case Message() | CallResult():
            return replace(item, parts=())
        case Call() | ApprovalRequest():
            return replace(item, arguments="{}")
        case Reasoning():
            return replace(item, text="")
        case ApprovalResponse():
            return replace(item, reason=None)
        case ToolListing():
            return replace(item, tools="[]")
        case HostedCall():
            return replace(item, arguments="{}", result=None, error=None)
        case OtherItem():
            return replace(item, body="{}")
        case _:
            assert_never(item)


def without(event: LogEvent, item_ids: Collection[str]) -> LogEvent:
    """Return an event with the content of some of its items taken out; the items keep their places."""

    def rest(items: Iterable[Item]) -> tuple[Item, ...]:
        return tuple(redacted(item) if item.item_id in item_ids else item for item in items)

    match event:
        case ItemsAdded():
            return replace(event, items=rest(event.items))
        case TurnAccepted():
            return replace(event, input=replace(event.input, items=rest(event.input.items)))
        case ItemClosed():
            return replace(event, item=rest((event.item,))[0])
        case _:
            return event
