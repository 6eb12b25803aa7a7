"""`GET /v1/models`: what is served, in OpenAI's shape, and under `baton` what there is to know of it."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from models.catalog import CURRENCY, Card, unknown_model
from models.placement.engines import port_of
from orchestrator.build import Conductor
from streaming.wire.route import RestRoute


def model_routes(conductor: Conductor) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=RestRoute)
    fleet = conductor.fleet
    created = int(conductor.clock.wall_s())

    def describe(name: str) -> dict[str, Any]:
        cards = {card.name: card for card in (*fleet.cards, *fleet.others)}
        if name in cards:
            about = _about(cards[name], fleet.standing(name).state)
        elif name in fleet.all_aliases:
            about = {"alias_of": fleet.all_aliases[name]}
            if (adapter := cards[fleet.all_aliases[name]].adapter_for(name, fleet.all_aliases)) is not None:
                about["adapter"] = adapter
        else:
            raise unknown_model(name, [*cards, *fleet.all_aliases])
        return {"id": name, "object": "model", "created": created, "owned_by": "baton", "baton": about}

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        """List the models that are served."""
        names = [*(card.name for card in (*fleet.cards, *fleet.others)), *fleet.all_aliases]
        return {"object": "list", "data": [describe(name) for name in names]}

    @router.get("/v1/models/{name:path}")
    async def show_model(name: str) -> dict[str, Any]:
        """Show one model."""
        return describe(name)

    return router


def _about(card: Card, state: str) -> dict[str, Any]:
    return {
        "description": card.description,
        "reads": sorted(card.reads),
        "writes": sorted(card.writes),
        "calls_tools": card.calls_tools,
        "forms": sorted(card.forms),
        "adapters": list(card.adapters),
        "context_tokens": card.context_tokens,
        "parameters": card.parameters,
        "licence": card.licence,
        "price": {"currency": CURRENCY, **asdict(card.price)},
        "engine": card.engine.name,
        "port": port_of(card.engine.name),
        "state": state,
    }
