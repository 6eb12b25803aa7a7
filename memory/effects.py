"""The effect ledger: what was asked of the world, and whether it answered.

A row is written before a tool is called and completed after it, under an idempotency key that is unique in its session.
Effects so happen at least once and are counted once. A row still open after a restart has an unknown outcome.
"""

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from memory.schema import effects
from models.errors import NotFound, quoted
from models.ports.generate import EffectKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One row of the ledger. `arguments` and `result` are JSON text; `result` is None while it is open.

    `call_id` is that of the call; None if the key is the same.
    """

    key: str
    turn_id: str
    tool: str
    effect: EffectKind
    arguments: str
    result: str | None
    call_id: str | None = None


def open_effect(connection: Connection, tenant: str, session_id: str, effect: Effect, at_ms: int) -> None:
    """Write the row of a call that is about to be made; `effect.result` is None.

    One that is there already was made before, by a run that was cut off: what it is known to have done stands, and the
    result of the call that is made again completes it.
    """
    again = update(effects).where(*_is(tenant, session_id, effect.key)).values(call_id=effect.call_id or effect.key)
    if connection.execute(again).rowcount:
        return
    connection.execute(
        insert(effects).values(
            tenant=tenant,
            session_id=session_id,
            key=effect.key,
            turn_id=effect.turn_id,
            tool=effect.tool,
            effect=effect.effect,
            state="open",
            arguments=effect.arguments,
            opened_ms=at_ms,
            call_id=effect.call_id or effect.key,
        )
    )


def complete_effect(connection: Connection, tenant: str, session_id: str, key: str, result: str, at_ms: int) -> bool:
    """Complete a row; return False, and change nothing, if it was complete already.

    Raises:
        NotFound: the session has no such row.
    """
    changed = connection.execute(
        update(effects)
        .where(*_is(tenant, session_id, key), effects.c.state == "open")
        .values(state="completed", result=result, completed_ms=at_ms)
    ).rowcount
    if changed:
        return True
    if connection.execute(select(effects.c.id).where(*_is(tenant, session_id, key))).first() is None:
        raise NotFound(f"There is no call {quoted(key)} in this session.")
    return False


def complete_call(connection: Connection, tenant: str, session_id: str, call_id: str, result: str, at_ms: int) -> bool:
    """Complete the row of a call by the call's id; return False, and change nothing, if none of that id is open.

    The id of a call may serve again once it has its result; a key never does.
    """
    its = (effects.c.tenant == tenant, effects.c.session_id == session_id, effects.c.call_id == call_id)
    completed = update(effects).where(*its, effects.c.state == "open")
    return bool(connection.execute(completed.values(state="completed", result=result, completed_ms=at_ms)).rowcount)


def open_effects(connection: Connection, tenant: str, session_id: str) -> tuple[Effect, ...]:
    """Return the session's calls without a result, oldest first."""
    found = connection.execute(
        select(effects)
        .where(effects.c.tenant == tenant, effects.c.session_id == session_id, effects.c.state == "open")
        .order_by(effects.c.id)
    )
    return tuple(_effect(row) for row in found)


def redact_effect(
    connection: Connection, session_id: str, call_id: str, *, arguments: str | None = None, result: str | None = None
) -> None:
    """Put other arguments, or another result, in the place of what was said; whether a result has come stays known."""
    where = (effects.c.session_id == session_id, effects.c.call_id == call_id)
    if arguments is not None:
        connection.execute(update(effects).where(*where).values(arguments=arguments))
    if result is not None:
        connection.execute(update(effects).where(*where, effects.c.result.is_not(None)).values(result=result))


def _is(tenant: str, session_id: str, key: str) -> tuple[ColumnElement[bool], ...]:
    return (effects.c.tenant == tenant, effects.c.session_id == session_id, effects.c.key == key)


def _effect(row: Row[tuple[object, ...]]) -> Effect:
    return Effect(
        key=row.key,
        turn_id=row.turn_id,
        tool=row.tool,
        effect=row.effect,
        arguments=row.arguments,
        result=row.result,
        call_id=None if row.call_id == row.key else row.call_id,
    )
