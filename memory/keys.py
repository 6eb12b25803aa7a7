"""Keys: each names a tenant. A key is shown once, when it is made; only a hash of its secret is kept.

A key reads `baton_ID_SECRET`. The secret has 256 random bits, so one round of SHA-256 is enough to store it.
"""

import hashlib
import hmac
import json
import secrets
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, insert, select, update

from memory.schema import keys
from models.errors import NotFound, quoted
from models.ids import new_id

_PREFIX = "baton"
_ABSENT = "0" * 64

KeyKind = Literal["personal", "application"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDefaults:
    """What holds for a key's requests that do not say otherwise."""

    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key without its secret.

    Attributes:
        key_id: the part of the key that may be shown.
        tenant: who it is for.
        kind: whose words it brings: a `personal` key has one subject, the tenant itself; an `application` speaks for many, whom it
            names with each call.
        name: what its owner calls it.
        requests_per_minute: its rate; None is unlimited.
        defaults: for its requests.
        created_ms: Unix milliseconds.
        revoked_ms: likewise; None while it is good.
    """

    key_id: str
    tenant: str
    name: str
    requests_per_minute: int | None
    defaults: RequestDefaults
    created_ms: int
    revoked_ms: int | None
    kind: KeyKind = "personal"


def create_key(
    connection: Connection,
    tenant: str,
    name: str,
    at_ms: int,
    *,
    kind: KeyKind = "personal",
    requests_per_minute: int | None = None,
    defaults: RequestDefaults = RequestDefaults(),
) -> str:
    """Make a key and return it whole, for the only time."""
    key_id = new_id("key").replace("_", "")
    secret = secrets.token_urlsafe(32)
    connection.execute(
        insert(keys).values(
            id=key_id,
            tenant=tenant,
            kind=kind,
            name=name,
            secret_sha256=_hash(secret),
            requests_per_minute=requests_per_minute,
            defaults=json.dumps(asdict(defaults)),
            created_ms=at_ms,
        )
    )
    return f"{_PREFIX}_{key_id}_{secret}"


def verify_key(connection: Connection, presented: str) -> Key | None:
    """Return the key that was presented, or None if it is unknown, wrong or revoked.

    The secret is compared in constant time, also when there is no such key.
    """
    prefix, _, rest = presented.partition("_")
    key_id, _, secret = rest.partition("_")
    found = connection.execute(_good(key_id)).one_or_none()
    right = hmac.compare_digest(_ABSENT if found is None else found.secret_sha256, _hash(secret))
    return _key(found) if found is not None and right and prefix == _PREFIX else None


def find_key(connection: Connection, key_id: str) -> Key | None:
    """Return the key of that id if it is good."""
    found = connection.execute(_good(key_id)).one_or_none()
    return None if found is None else _key(found)


def list_keys(connection: Connection) -> tuple[Key, ...]:
    """Return every key there ever was, oldest first."""
    return tuple(_key(row) for row in connection.execute(select(keys).order_by(keys.c.created_ms, keys.c.id)))


def any_key(connection: Connection) -> bool:
    """Return whether any key was ever made; until then, a server on loopback asks for none.

    Revoked ones count: revoking the last key closes the server, it does not open it.
    """
    return connection.execute(select(keys.c.id).limit(1)).first() is not None


def revoke_key(connection: Connection, key_id: str, at_ms: int) -> None:
    """Make a key worthless from now on.

    Raises:
        NotFound: there is no good key of that id.
    """
    changed = connection.execute(
        update(keys).where(keys.c.id == key_id, keys.c.revoked_ms.is_(None)).values(revoked_ms=at_ms)
    ).rowcount
    if not changed:
        raise NotFound(f"There is no key {quoted(key_id)}, or it is revoked already. `baton keys list` shows them.")


def _good(key_id: str) -> Select[Any]:
    return select(keys).where(keys.c.id == key_id, keys.c.revoked_ms.is_(None))


def _key(row: Row[Any]) -> Key:
    return Key(
        key_id=row.id,
        tenant=row.tenant,
        kind=row.kind,
        name=row.name,
        requests_per_minute=row.requests_per_minute,
        defaults=RequestDefaults(**json.loads(row.defaults)),
        created_ms=row.created_ms,
        revoked_ms=row.revoked_ms,
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
