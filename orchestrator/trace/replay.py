"""A logged decision once more: from its own inputs, or from others. Nothing is asked but the steps; see `decide.decision`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import BadInput, BatonError
from orchestrator.decide.decider import graph_class
from orchestrator.decide.inputs import lifted
from orchestrator.events import Decision

_SETTABLE = ("model", "form", "tools", "characters", "max_characters", "input_kinds", "agents")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of it.

    Attributes:
        decision: what is decided; None if the turn is refused.
        refused: why, if it is.
        differences: how that differs from what was logged, in words; empty if it is the same.
    """

    decision: Decision | None
    refused: BatonError | None
    differences: tuple[str, ...]


async def replay(logged: Decision, changes: Mapping[str, str] | None = None) -> Replayed:
    """Decide again what was `logged`, from its inputs with `changes`; see `changed`.

    Raises:
        BadInput: a change names what is not there, or is of the wrong type.
    """
    inputs = changed(json.loads(logged.inputs), changes or {})
    graph = (await graph_class())()
    try:
        decision = await graph.replay(("replay",), inputs)
    except BatonError as exc:
        return Replayed(decision=None, refused=exc, differences=(f"the turn is refused: {exc.message}",))
    return Replayed(decision=decision, refused=None, differences=_differences(logged, decision))


def changed(inputs: Mapping[str, Any], changes: Mapping[str, str]) -> dict[str, Any]:
    """Return logged inputs with changes, as people write them.

    A key is one of the inputs (`model`, `form`, `tools`, …), or `card.NAME.FACT` for what is known of a card, such as
    `card.smollm2.state`; `card.NAME` takes `down`, `ready` or `gone`. An empty value is none; lists are written with commas.

    Raises:
        BadInput: there is no such input, card or fact; or the value does not fit it.
    """
    now: dict[str, Any] = json.loads(json.dumps(lifted(inputs)))
    for key, value in changes.items():
        name, _, fact = key.partition(".")
        if name != "card":
            if key not in _SETTABLE:
                raise BadInput(
                    f"There is no {key!r} to change. There are {', '.join(_SETTABLE)}, card.NAME and card.NAME.FACT.",
                    field=key,
                )
            now[key] = _value(key, value, now[key], optional=key in {"model", "form"})
            continue
        cards = {card["name"]: card for card in now["cards"]}
        known = max((each for each in cards if f"{fact}.".startswith(f"{each}.")), key=len, default=None)
        if known is None:
            raise BadInput(f"There was no card {fact!r}, only {', '.join(sorted(cards))}.", field=key)
        if fact == known:
            now["cards"] = _stands(now["cards"], known, value, key)
        elif (of := fact.removeprefix(f"{known}.")) in cards[known] and of != "name":
            cards[known][of] = _value(key, value, cards[known][of], optional=of == "trouble")
        else:
            facts = ", ".join(sorted(set(cards[known]) - {"name"}))
            raise BadInput(f"Of a card there is no {of!r} to change, only {facts}.", field=key)
    return now


def _stands(cards: list[dict[str, Any]], name: str, value: str, key: str) -> list[dict[str, Any]]:
    match value:
        case "gone":
            return [card for card in cards if card["name"] != name]
        case "down" | "ready":
            state = {"state": "failed", "trouble": "as was asked for"} if value == "down" else {"state": value}
            return [{**card, **state} if card["name"] == name else card for card in cards]
        case _:
            raise BadInput(f"A card is 'down', 'ready' or 'gone', not {value!r}.", field=key)


def _value(key: str, text: str, now: Any, *, optional: bool) -> Any:
    """Return what `text` stands for, which is of the type of `now`."""
    if optional:
        return text or None
    try:
        match now:
            case bool():
                return {"true": True, "false": False}[text.lower()]
            case int():
                return int(text)
            case float():
                return float(text)
            case list():
                return sorted(part.strip() for part in text.split(",") if part.strip())
            case str():
                return text
            case _:
                return json.loads(text)
    except (KeyError, ValueError) as exc:
        raise BadInput(f"{text!r} does not fit {key!r}, which was {json.dumps(now)}.", field=key) from exc


def _differences(logged: Decision, now: Decision) -> tuple[str, ...]:
    before = {refused.card: refused.reason for refused in logged.refused}
    after = {refused.card: refused.reason for refused in now.refused}
    told = [
        f"{what} is {new}, not {old}"
        for what, old, new in (("the agent", logged.agent, now.agent), ("the model", logged.card, now.card))
        if old != new
    ]
    if logged.reasons != now.reasons:
        told.append(f"because {', '.join(now.reasons)}; not {', '.join(logged.reasons)}")
    for card in sorted({*before, *after}):
        if before.get(card) != after.get(card):
            told.append(f"{card}: {after.get(card, 'is not refused')}; was {before.get(card, 'not refused')}")
    return tuple(told)
