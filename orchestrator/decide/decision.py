"""The decision: gate, perceive, recall, control, check, and repair or approve. It decides; it does not carry.

Each step is a pure function of JSON primitives. What a step waits for (a search of memory, a controller, somebody's
approval) is asked by whoever runs it and becomes part of the inputs, so that a decision can be replayed from the inputs
that are logged with it, and asked what it would have been from others.

`STEPS` and `EDGES` are the one declaration of them: `in_line` calls them one after another, and `graph` makes them a
LangGraph graph, for decisions in which a step waits (docs/adr/0007). A call of a tool comes back for a further decision
of its own, which begins at check.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from models.catalog import unknown_model
from models.errors import BadInput, BatonError, LimitExceeded, NotFound, Unavailable, context_overflow, too_long
from orchestrator.decide.inputs import CallFacts, Controlled, Inputs, cards_digest
from orchestrator.events import (
    ANSWERING_AGENT,
    AnswerControl,
    Decision,
    DelegateControl,
    RefusedCard,
    SingleRoute,
    canonical,
)
from orchestrator.route.choose import Needs, Route, as_if_up, choose, explain

MAX_REPAIRS = 2
"""How often a controller is asked again, if what it wants cannot be done; then the router's choice is taken."""

_DOWN_S = 5.0
"""When a client that was told that no model is up may ask again."""


class Refusal(TypedDict):
    """Why a turn cannot be taken."""

    code: Literal["unknown_model", "no_room", "no_model", "down"]
    message: str
    field: str


DecisionKey = tuple[str | int, ...]
"""What names a decision among all: (turn, generation), and for a call (turn, generation, revision, call)."""

CallVerdict = Literal["run", "denied", "ask"]
"""What becomes of a call: it is run, it is not, or somebody is asked."""


class DecisionState(TypedDict, total=False):
    """What the steps hand on; JSON primitives throughout. A turn's begins with `inputs`, a call's with `call`."""

    inputs: Inputs
    call: CallFacts
    refusal: Refusal
    needs: Needs
    recalled: list[str]
    route: Route
    agent: str
    repairs: int
    fault: str | None
    verdict: CallVerdict
    why: str | None


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
    """Name what is recalled: the conversation itself, which the session holds, and what a search has found."""
    inputs = state["inputs"]
    found = [each["record"] for each in inputs.get("recalled", ())]
    return {"recalled": [*(["conversation"] if inputs["history_items"] else []), *found]}


def control(state: DecisionState) -> DecisionState:
    """Choose agent and card: those that the controller wants, if there is one, else the writer and the router's card."""
    inputs, needs = state["inputs"], state["needs"]
    names = [card["name"] for card in inputs["cards"]]
    if needs["model"] is not None and needs["model"] not in names:
        message = unknown_model(needs["model"], [*names, *inputs["aliases"]]).message
        return {"refusal": Refusal(code="unknown_model", message=message, field="model")}
    route = choose(inputs["cards"], needs)
    if route["card"] is None:
        return {"refusal": _no_route(inputs, needs, route)}
    wanted = inputs.get("controlled", ())
    choice: DecisionState = {"agent": ANSWERING_AGENT, "route": route}
    return {**choice, "repairs": 0, "fault": None, **(_wanted(wanted[0], inputs, needs) if wanted else {})}


def repair(state: DecisionState) -> DecisionState:
    """Take what the controller wants instead of what cannot be done; if it has nothing better, the router's choice."""
    inputs, needs, repairs = state["inputs"], state["needs"], state["repairs"] + 1
    route = choose(inputs["cards"], needs)
    if (wanted := inputs.get("controlled", ())) and repairs <= MAX_REPAIRS and repairs < len(wanted):
        choice: DecisionState = {"agent": ANSWERING_AGENT, "route": route}
        return {**choice, "repairs": repairs, "fault": None, **_wanted(wanted[repairs], inputs, needs)}
    why = f"what the controller wanted cannot be done: {state['fault']}"
    route = {**route, "reasons": [*route["reasons"], why]}
    return {"repairs": repairs, "fault": None, "agent": ANSWERING_AGENT, "route": route}


def check(state: DecisionState) -> DecisionState:
    """Say what is wrong with what is wanted, or what becomes of a call."""
    if "call" in state:
        return _check_call(state["call"])
    inputs, route = state["inputs"], state["route"]
    if state["agent"] not in inputs["agents"]:
        return {"fault": f"there is no agent {state['agent']!r}, only {', '.join(inputs['agents'])}"}
    if route["card"] is None:
        return {"fault": explain(route["refused"])}
    return {}


def approve(state: DecisionState) -> DecisionState:
    """Take what somebody said to a call that waited for it."""
    approval = state["call"]["approval"]
    if approval is None:
        return {"verdict": "ask"}
    if approval["approve"]:
        return {"verdict": "run", "why": approval["reason"]}
    return {"verdict": "denied", "why": approval["reason"] or "It was not allowed."}


def _wanted(wanted: Controlled, inputs: Inputs, needs: Needs) -> DecisionState:
    """Return what a controller's wish changes of the router's choice; `check` says whether it can be done."""
    if (fault := wanted.get("fault")) is not None:
        route = choose(inputs["cards"], needs)
        return {"route": {**route, "reasons": [*route["reasons"], f"the controller could not be asked: {fault}"]}}
    if wanted["card"] is None or needs["model"] is not None:
        route = choose(inputs["cards"], needs)
        return {"agent": wanted["agent"], "route": {**route, "reasons": [*route["reasons"], wanted["reason"]]}}
    route = choose(inputs["cards"], {**needs, "model": inputs["aliases"].get(wanted["card"], wanted["card"])})
    reasons = [wanted["reason"], *route["reasons"][1:]]  # nobody has asked for it by name
    return {"agent": wanted["agent"], "route": {**route, "reasons": reasons}}


def _check_call(call: CallFacts) -> DecisionState:
    if call["effect"] is None:
        return {"verdict": "denied", "why": f"There is no tool {call['tool']!r} here."}
    if call["fault"] is not None:
        return {"verdict": "denied", "why": call["fault"]}
    return {"verdict": "ask" if call["needs_approval"] else "run", "why": None}


def _no_route(inputs: Inputs, needs: Needs, route: Route) -> Refusal:
    """Return why no card can take a turn."""
    why, cards = explain(route["refused"]), as_if_up(inputs["cards"])
    if down := [card["name"] for card in cards if choose([card], needs)["card"] is not None]:
        why = explain({name: route["refused"][name] for name in down})
        message = f"No model that can take this turn is up ({why}). It is brought up again: try again later."
        return Refusal(code="down", message=message, field="model")
    if able := [card for card in cards if choose([{**card, "prompt_tokens": 0}], needs)["card"] is not None]:
        widest = max(able, key=lambda card: card["context_tokens"])
        overflow = context_overflow(widest["context_tokens"], widest["prompt_tokens"], or_more=True)
        return Refusal(code="no_room", message=overflow.message, field="input")
    is_tools = needs["tools"] and choose(cards, {**needs, "tools": False})["card"] is not None
    is_form = needs["form"] and choose(cards, {**needs, "form": None})["card"] is not None
    field = "tools" if is_tools else "form" if is_form else "input"
    return Refusal(code="no_model", message=f"No model here can take this turn ({why}).", field=field)


START, END = "__start__", "__end__"
"""Where every decision begins and ends; LangGraph's own names."""

Step = Callable[[DecisionState], DecisionState]

STEPS: Mapping[str, Step] = {step.__name__: step for step in (gate, perceive, recall, control, check, repair, approve)}

EDGES: Mapping[str, tuple[Callable[[DecisionState], str], tuple[str, ...]]] = {
    START: (lambda state: "check" if "call" in state else "gate", ("gate", "check")),
    "gate": (lambda state: END if "refusal" in state else "perceive", ("perceive", END)),
    "perceive": (lambda _: "recall", ("recall",)),
    "recall": (lambda _: "control", ("control",)),
    "control": (lambda state: END if "refusal" in state else "check", ("check", END)),
    "check": (
        lambda state: "approve" if state.get("verdict") == "ask" else "repair" if state.get("fault") else END,
        ("approve", "repair", END),
    ),
    "repair": (lambda _: "check", ("check",)),
    "approve": (lambda _: END, (END,)),
}
"""From each step: which comes next, and which may."""


def in_line(state: DecisionState) -> DecisionState:
    """Take the steps one after another. What has to be waited for is in the inputs, or is not asked for."""
    state = state.copy()
    step = EDGES[START][0](state)
    while step != END:
        state.update(STEPS[step](state))
        step = EDGES[step][0](state)
    return state


def decision_of(state: Mapping[str, Any] | DecisionState) -> Decision:
    """Return the decision of a state that all steps have gone through.

    Raises:
        BatonError: the decision is to refuse the turn.
    """
    if (refusal := state.get("refusal")) is not None:
        raise _error(refusal)
    agent: str = state["agent"]
    route: Route = state["route"]
    return Decision(
        control=AnswerControl() if agent == ANSWERING_AGENT else DelegateControl(agent=agent),
        route=SingleRoute(card=str(route["card"])),
        reasons=tuple(route["reasons"]),
        refused=tuple(RefusedCard(card=card, reason=reason) for card, reason in sorted(route["refused"].items())),
        inputs=canonical(dict(state["inputs"])),
        as_of_cards=cards_digest(state["inputs"]),
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
