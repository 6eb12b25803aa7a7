"""Traces and replays as JSON: what REST and the command line print."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from models.errors import BadInput, quoted
from orchestrator.events import Decision
from orchestrator.trace.record import TurnTrace
from orchestrator.trace.replay import Replayed


def changes_of(asked: Sequence[str]) -> dict[str, str]:
    """Return what is to be changed, of `KEY=VALUE`s; an empty one changes nothing.

    Raises:
        BadInput: one has no key.
    """
    changes = {}
    for one in asked:
        if not one:
            continue
        key, equals, value = one.partition("=")
        if not (key and equals):
            raise BadInput(f"{quoted(one)} is not KEY=VALUE, such as card.small=down.", field="what_if")
        changes[key] = value
    return changes


def wire_trace(trace: TurnTrace) -> dict[str, Any]:
    """Return a trace as JSON."""
    ended = trace.ended
    return {
        "object": "turn.trace",
        "session_id": trace.session_id,
        "turn_id": trace.turn_id,
        "ordinal": trace.ordinal,
        "generation": trace.generation,
        "state": trace.state,
        "accepted_seq": trace.accepted_seq,
        "accepted_at": trace.accepted_ms / 1000,
        "decision": wire_decision(trace.decision),
        "plans": [asdict(plan) for plan in trace.plans],
        "tasks": [_without(asdict(task), "kind", "turn_id", "generation") for task in trace.tasks],
        "calls": [asdict(call) for call in trace.calls],
        "ended": None if ended is None else _without(asdict(ended), "kind", "turn_id", "generation"),
    }


def wire_decision(decision: Decision) -> dict[str, Any]:
    """Return a decision as JSON, its inputs whole."""
    return {
        "control": asdict(decision.control),
        "route": asdict(decision.route),
        "agent": decision.agent,
        "model": decision.card,
        "reasons": list(decision.reasons),
        "notes": list(decision.notes),
        "refused": [{"model": refused.card, "reason": refused.reason} for refused in decision.refused],
        "inputs": json.loads(decision.inputs),
    }


def wire_replay(again: Replayed, changes: Mapping[str, str]) -> dict[str, Any]:
    """Return what a decision is from its inputs with changes, and whether that is the same, as JSON."""
    refused = again.refused
    return {
        "what_if": dict(changes),
        "same": not again.differences,
        "differences": list(again.differences),
        "decision": None if again.decision is None else wire_decision(again.decision),
        "refused": None if refused is None else {"code": refused.code, "message": refused.message},
    }


def _without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
