"""`/readyz`: whether a first token is possible, and how far each model has come."""

from typing import Any

from models.errors import BatonError
from models.placement.fleet import ServedCards


def readiness(fleet: ServedCards, trouble: BatonError | None) -> tuple[int, dict[str, Any]]:
    """Return the status, 200 or 503, and the body. Ready is who has one model up and none still coming, and can keep what is said.

    A model that has failed and is tried again is not waited for: it is no news. Nor is one that embeds or listens, where others answer.

    Args:
        fleet: the models.
        trouble: what keeps the storage from being read or written.
    """
    standings = {card.name: fleet.standing(card.name) for card in (*fleet.cards, *fleet.others)}
    awaited = [standings[card.name] for card in fleet.cards or fleet.others]
    coming = [each for each in awaited if each.state not in {"ready", "failed"}]
    if any(each.state == "ready" for each in awaited) and all(each.message is not None for each in coming):
        status = "ready"
    else:
        status = "loading" if coming else "failed"
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
    body: dict[str, Any] = {"status": status, "models": models}
    if trouble is not None:
        body |= {"status": "failed", "storage": {"code": trouble.code, "message": trouble.message}}
    return (200 if body["status"] == "ready" else 503), body
