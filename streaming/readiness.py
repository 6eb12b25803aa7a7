"""`/readyz`: whether a first token is possible, and how far each model has come."""

from typing import Any

from models.fleet import Fleet


def readiness(fleet: Fleet) -> tuple[int, dict[str, Any]]:
    """Return the status, 200 or 503, and the body. Ready is who has one model up and none still coming."""
    standings = {card.name: fleet.standing(card.name) for card in fleet.cards}
    states = {standing.state for standing in standings.values()}
    settled = "ready" if "ready" in states else "failed"
    status = settled if states <= {"ready", "failed"} else "loading"
    models = [
        {
            "id": name,
            "state": standing.state,
            "done_bytes": standing.done_bytes,
            "total_bytes": standing.total_bytes,
            "message": standing.message,
        }
        for name, standing in standings.items()
    ]
    return (200 if status == "ready" else 503), {"status": status, "models": models}
