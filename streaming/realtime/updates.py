"""What of an update, or of a response's own settings, can never be: found out before it is confirmed.

Pure but for the two that wait for `Vetting`. What is refused has its place as the client wrote it.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from models.errors import BadInput, BatonError, LimitExceeded
from models.owner import Owner
from orchestrator.act.vetting import Vetting
from orchestrator.events import TurnInput
from streaming.realtime.options import BatonOptions

_WEIGHED = ("tools", "instructions", "model")
"""What may be too much for a window, or for any model here; of those in one update, what is refused rather than the next."""

_PLACE = re.compile(r"tools\[(\d+)\](.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOptions:
    """The client sets what holds for its responses; `RealtimeProtocol.confirm` does it.

    Attributes:
        event_id: the client's.
        changes: the fields of `Options` that are set.
        refused: what was refused of the event.
        baton: what is set of Baton's extensions; None if nothing is.
    """

    event_id: str | None
    changes: Mapping[str, Any]
    refused: tuple[BatonError, ...]
    baton: BatonOptions | None

    @property
    def weighed(self) -> tuple[str, ...]:
        """What is set that may turn out to be impossible."""
        return tuple(name for name in _WEIGHED if self.changes.get(name))

    def without(self, names: Collection[str], why: BatonError) -> "SetOptions":
        """Return it with these fields refused, for one reason."""
        gone = {*names, *(["tools_at"] if "tools" in names else [])}
        changes = {name: value for name, value in self.changes.items() if name not in gone}
        refused = [type(why)(why.message, code=why.code, field=f"session.{name}") for name in names]
        return replace(self, changes=changes, refused=(*self.refused, *refused))

    def without_functions(self, faults: Mapping[int, BatonError]) -> "SetOptions":
        """Return it without these of its functions; the others are kept."""
        if not faults:
            return self
        tools, places = self.changes["tools"], self.changes["tools_at"]
        kept = [at for at in range(len(tools)) if at not in faults]
        changes = {**self.changes, "tools": tuple(tools[at] for at in kept)}
        changes["tools_at"] = tuple(places[at] for at in kept)
        refused = [placed(faults[at], places, own={}) for at in sorted(faults)]
        return replace(self, changes=changes, refused=(*self.refused, *refused))


def placed(error: BatonError, tools_at: tuple[str, ...], own: Collection[str]) -> BatonError:
    """Return an error with its field named as the client wrote it, not as the conductor or an engine calls it.

    Args:
        error: the error, which is changed.
        tools_at: the places of the functions on offer.
        own: what a response brings itself; the rest is the session's.
    """
    field = error.field or ""
    if (found := _PLACE.fullmatch(field)) is not None and int(found[1]) < len(tools_at):
        error.field = tools_at[int(found[1])] + found[2]
    elif field in _WEIGHED:
        error.field = f"{'response' if field in own else 'session'}.{field}"
    return error


async def possible(
    update: SetOptions, trial: Callable[[SetOptions], TurnInput], vetting: Vetting, owner: Owner
) -> SetOptions:
    """Return what of an update can be, with the rest refused.

    Of several things that are too much together as little is refused as may be; what would not help is left.
    """
    if update.changes.get("tools"):
        try:
            update = update.without_functions(await vetting.faults(trial(update), owner))
        except LimitExceeded as exc:
            why = placed(exc, update.changes["tools_at"], own={})
            update = update.without(["tools"], exc)
            update = replace(update, refused=(*update.refused[:-1], why))
    names, first = update.weighed, None
    for size in range(len(names) + 1):
        for left_out in combinations(names, size):
            tried = update if first is None else update.without(left_out, first)
            try:
                await vetting.room(trial(tried))
            except BadInput as exc:
                first = first or exc
            else:
                return tried
    return update if first is None else update.without(names, first)


async def check_response(turn_input: TurnInput, own: Collection[str], vetting: Vetting, owner: Owner) -> None:
    """Check what a response brings of functions and instructions.

    Raises:
        BatonError: no answer could have it.
    """
    if "tools" in own:
        for fault in (await vetting.faults(turn_input, owner)).values():
            raise fault
    try:
        await vetting.room(turn_input)
    except LimitExceeded as exc:
        exc.field = exc.field if exc.field in own else "instructions" if "instructions" in own else "tools"
        raise
