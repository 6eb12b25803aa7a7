"""The decision: gate, perceive, recall, control. It decides; it does not carry.

Each step is a pure function of JSON primitives, so that a decision can be replayed from the inputs that are logged with
it. None of them waits, so a live turn's steps are simply called one after another (`Decider`); `graph` runs the same
steps for a replay, one by one (docs/adr/0007).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict, cast

from models.catalog import Card, unknown_model
from models.content import Call, Item, text_of
from models.errors import BadInput, BatonError, LimitExceeded, NotFound, Unavailable, context_overflow, too_long
from models.placement.fleet import Offer
from orchestrator.act.window import count_tokens, most_tokens, paired, places_since, said_now
from orchestrator.events import Decision, RefusedCard, TurnInput, canonical
from orchestrator.route.choose import CardFacts, Needs, Route, as_if_up, card_facts, choose, explain

_DOWN_S = 5.0
"""When a client that was told that no model is up may ask again."""


class Inputs(TypedDict):
    """What a decision is made from."""

    characters: int
    max_characters: int
    input_kinds: list[str]
    earlier_kinds: list[str]
    history_items: int
    tools: int
    form: str | None
    model: str | None
    aliases: dict[str, str]
    cards: list[CardFacts]


class Refusal(TypedDict):
    """Why a turn cannot be taken."""

    code: Literal["unknown_model", "no_room", "no_model", "down"]
    message: str
    field: str


class DecisionState(TypedDict, total=False):
    """What the nodes hand on; JSON primitives throughout."""

    inputs: Inputs
    refusal: Refusal
    needs: Needs
    recalled: list[str]
    route: Route
    agent: str


def decision_inputs(turn_input: TurnInput, history: Sequence[Item], offer: Offer, max_characters: int) -> Inputs:
    """Return what there is to decide from."""
    texts = said_now(turn_input, history)
    most = most_tokens(texts)
    items = paired((*history, *turn_input.items))
    now = places_since(items)
    characters = _characters(turn_input)
    is_counted = characters <= max_characters  # else the gate refuses it, whatever its tokens
    return Inputs(
        characters=characters,
        max_characters=max_characters,
        input_kinds=_kinds(items[at] for at in now),
        earlier_kinds=_kinds(item for at, item in enumerate(items) if at not in now),
        history_items=len(history),
        tools=len(turn_input.tools.tools) if turn_input.tools else 0,
        form=turn_input.form.kind if turn_input.form else None,
        model=turn_input.model,
        aliases=dict(offer.aliases),
        cards=[_facts(card, offer, texts, most, is_counted=is_counted) for card in offer.cards],
    )


def _characters(turn_input: TurnInput) -> int:
    return len(turn_input.instructions or "") + sum(len(text_of(item)) for item in turn_input.items)


def _facts(card: Card, offer: Offer, texts: Sequence[str], most: int, *, is_counted: bool) -> CardFacts:
    # Counted only where it matters, and no further than it does.
    tokens = most
    if is_counted and most >= card.context_tokens:
        tokens = count_tokens(texts, offer.counter(card.name), enough=card.context_tokens)
    return card_facts(card, offer.standing(card.name), tokens)


def gate(state: DecisionState) -> DecisionState:
    """Refuse what passes a limit."""
    inputs = state["inputs"]
    if inputs["characters"] > inputs["max_characters"]:
        return {
            "refusal": Refusal(
                code="no_room",
                message=too_long("the input", inputs["characters"], inputs["max_characters"]).message,
                field="input",
            )
        }
    return {}


def perceive(state: DecisionState) -> DecisionState:
    """Say what the turn asks of a model: the modalities of what is said now, tools, a form, a name.

    What was said before asks for nothing: a model that cannot read it is shown words in its place (`window.readable`).
    """
    inputs = state["inputs"]
    asked = inputs["model"]
    model = None if asked is None else inputs["aliases"].get(asked, asked)
    return {"needs": Needs(model=model, reads=inputs["input_kinds"], tools=inputs["tools"] > 0, form=inputs["form"])}


def recall(state: DecisionState) -> DecisionState:
    """Name what is recalled; so far the conversation itself, which the session holds."""
    return {"recalled": ["conversation"] if state["inputs"]["history_items"] else []}


def control(state: DecisionState) -> DecisionState:
    """Choose agent and card."""
    inputs, needs = state["inputs"], state["needs"]
    names = [card["name"] for card in inputs["cards"]]
    if needs["model"] is not None and needs["model"] not in names:
        message = unknown_model(needs["model"], [*names, *inputs["aliases"]]).message
        return {"refusal": Refusal(code="unknown_model", message=message, field="model")}
    route = choose(inputs["cards"], needs)
    if route["card"] is None:
        why, cards = explain(route["refused"]), as_if_up(inputs["cards"])
        if down := [card["name"] for card in cards if choose([card], needs)["card"] is not None]:
            why = explain({name: route["refused"][name] for name in down})
            message = f"No model that can take this turn is up ({why}). It is brought up again: try again later."
            return {"refusal": Refusal(code="down", message=message, field="model")}
        if able := [card for card in cards if choose([{**card, "prompt_tokens": 0}], needs)["card"] is not None]:
            widest = max(able, key=lambda card: card["context_tokens"])
            overflow = context_overflow(widest["context_tokens"], widest["prompt_tokens"], or_more=True)
            return {"refusal": Refusal(code="no_room", message=overflow.message, field="input")}
        is_tools = needs["tools"] and choose(cards, {**needs, "tools": False})["card"] is not None
        is_form = needs["form"] and choose(cards, {**needs, "form": None})["card"] is not None
        field = "tools" if is_tools else "form" if is_form else "input"
        message = f"No model here can take this turn ({why})."
        return {"refusal": Refusal(code="no_model", message=message, field=field)}
    return {"agent": "writer", "route": route}


STEPS = (gate, perceive, recall, control)


class Decider:
    """Decides live turns; one for all sessions."""

    def __init__(self, offer: Offer, *, max_characters: int) -> None:
        """Choose from `offer`, for inputs of at most `max_characters`."""
        self._offer = offer
        self._max_characters = max_characters

    def inputs(self, turn_input: TurnInput, history: Sequence[Item]) -> Inputs:
        """Return what there is to decide from, now."""
        return decision_inputs(turn_input, history, self._offer, self._max_characters)

    def is_too_long(self, turn_input: TurnInput) -> bool:
        """Return whether `decide` refuses an input for its length alone."""
        return _characters(turn_input) > self._max_characters

    async def decide(self, turn_input: TurnInput, history: Sequence[Item]) -> Decision:
        """Return the decision for a turn.

        Raises:
            LimitExceeded: the input is too long, or more than the window of any model that could take it.
            NotFound: the model that was asked for does not exist.
            BadInput: no model can take the turn.
            Unavailable: none that can is up.
        """
        state: DecisionState = {"inputs": self.inputs(turn_input, history)}
        for step in STEPS:
            state.update(step(state))
            if "refusal" in state:
                break
        return decision_of(state)


def lifted(inputs: Mapping[str, Any]) -> Inputs:
    """Return logged inputs as they would be logged now.

    Turns that were logged before there were forms have none. Before the needs of a turn were those of what is said now, every
    kind in sight was one.
    """
    now = {"form": None, **inputs}
    if "history_kinds" in now:
        earlier = now.pop("history_kinds")
        now |= {"input_kinds": sorted({*now["input_kinds"], *earlier}), "earlier_kinds": earlier}
    now["cards"] = [{"forms": [], **card} for card in now["cards"]]
    return cast("Inputs", now)


def decision_of(state: Mapping[str, Any] | DecisionState) -> Decision:
    """Return the decision of a state that all steps have gone through.

    Raises:
        BatonError: the decision is to refuse the turn.
    """
    if (refusal := state.get("refusal")) is not None:
        raise _error(refusal)
    route: Route = state["route"]
    return Decision(
        agent=state["agent"],
        card=str(route["card"]),
        reasons=tuple(route["reasons"]),
        refused=tuple(RefusedCard(card=card, reason=reason) for card, reason in sorted(route["refused"].items())),
        inputs=canonical(dict(state["inputs"])),
    )


def _error(refusal: Refusal) -> BatonError:
    match refusal["code"]:
        case "unknown_model":
            return NotFound(refusal["message"], code="model_not_found", field=refusal["field"])
        case "no_room":
            return LimitExceeded(refusal["message"], code="context_length_exceeded", field=refusal["field"])
        case "no_model":
            return BadInput(refusal["message"], code="no_capable_model", field=refusal["field"])
        case "down":
            return Unavailable(refusal["message"], retry_after_s=_DOWN_S)


def _kinds(items: Iterable[Item]) -> list[str]:
    return sorted({part.kind for item in items if not isinstance(item, Call) for part in item.parts})
