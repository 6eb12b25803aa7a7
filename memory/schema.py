"""The tables. What migrations build is held against this by a test.

Times are Unix milliseconds. Every row belongs to a tenant, its own or its session's; `events.body`, `effects.arguments` and `effects.result`
are JSON text whose fields belong to the floor above.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

REVISION = "0003"
"""The newest of `migrations/versions`."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("title", Text),
    Column("instructions", Text),
    Column("model", String(128)),
    Column("updated_ms", BigInteger, nullable=False, server_default="0"),
    Index(None, "tenant", "updated_ms"),
)

events = Table(
    "events",
    metadata,
    Column("session_id", String(64), ForeignKey("sessions.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("turn_id", String(64)),
    Column("kind", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("session_id", String(64), ForeignKey("sessions.id"), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("call_id", String(128)),
    Index(None, "session_id", "call_id"),
    Index("ix_items_said", "session_id", "kind", "seq"),
)

turns = Table(
    "turns",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("session_id", String(64), ForeignKey("sessions.id"), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("accepted_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger),
    Index(None, "session_id"),
    Index("ix_turns_open", "state", sqlite_where=Column("state") == "accepted"),
)

effects = Table(
    "effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("session_id", String(64), ForeignKey("sessions.id"), nullable=False),
    Column("key", String(128), nullable=False),
    Column("turn_id", String(64), nullable=False),
    Column("tool", String(128), nullable=False),
    Column("effect", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("arguments", Text, nullable=False),
    Column("result", Text),
    Column("opened_ms", BigInteger, nullable=False),
    Column("completed_ms", BigInteger),
    UniqueConstraint("session_id", "key"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("media_type", String(128), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("requests_per_minute", Integer),
    Column("defaults", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger),
)
