"""The tables. What migrations build is held against this by a test.

Times are Unix milliseconds. Every row belongs to a tenant, its own or its session's; below a tenant may stand a subject, None being the
tenant's own (`models.owner.Owner`). `events.body`, `settings.body`, `effects.arguments` and `effects.result` are text whose fields belong to the floor above.
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

REVISION = "0006"
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
    Column("subject", String(128)),
    Column("owner", String(64)),  # the server that last wrote to it, and until when it may be taken to run its turn
    Column("lease_until_ms", BigInteger),
    Column("parent_id", String(64)),  # of a branch: whose rows are its own up to `parent_seq`
    Column("parent_seq", BigInteger),
    Column("root_id", String(64)),  # of a branch: the session that all its ancestors come from
    Column("deleted_ms", BigInteger),  # deleted, but for the rows that branches need
    Index(None, "tenant", "subject", "updated_ms"),
    Index("ix_sessions_branches", "root_id", sqlite_where=Column("root_id").is_not(None)),
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
    Column("v", Integer, nullable=False, server_default="1"),
)

settings = Table(
    "settings",
    metadata,
    Column("session_id", String(64), ForeignKey("sessions.id"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("body", Text, nullable=False),
)

items = Table(
    "items",
    metadata,
    Column("session_id", String(64), ForeignKey("sessions.id"), primary_key=True),
    Column("id", String(128), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("call_id", String(128)),
    Column("log_id", String(64)),  # the session whose row it is, if that is an ancestor
    Column("removed_seq", BigInteger),  # the row by which it left the conversation
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
    Column("call_id", String(128)),
    UniqueConstraint("session_id", "key"),
    Index(None, "session_id", "call_id"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column(
        "subject", String(128), primary_key=True, server_default=""
    ),  # "" is the tenant's own, since a key has no nulls
    Column("sha256", String(64), primary_key=True),
    Column("media_type", String(128), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("held_ms", BigInteger),  # when it was put, until it is used
    Index(None, "sha256"),
)

blob_uses = Table(
    "blob_uses",
    metadata,
    Column("session_id", String(64), ForeignKey("sessions.id"), primary_key=True),
    Column("item_id", String(128), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("subject", String(128)),
    Index(None, "tenant", "sha256"),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("subject", String(128)),
    Column("name", String(255), nullable=False),
    Column("purpose", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Index(None, "tenant", "sha256"),
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
    Column("kind", String(16), nullable=False, server_default="personal"),
)
