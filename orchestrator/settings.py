"""Settings, from the environment: `BATON_` and the field's name in capitals. docs/configuration.md lists them."""

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, PositiveInt, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.sources import TRUSTS, Trust


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton"


def _origin(text: str) -> str:
    """Return an origin as browsers send it (RFC 6454, section 6.2).

    Raises:
        ValueError: it is none, or stands for any: whoever calls without a key is trusted on loopback.
    """
    origin = text.strip().lower().removesuffix("/")
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        raise ValueError(f"{text.strip()!r} is no origin, such as https://app.example.org") from None
    host = parts.hostname or ""
    if not parts.scheme or not host or "*" in host or origin != f"{parts.scheme}://{parts.netloc}" or "@" in origin:
        raise ValueError(f"{text.strip()!r} is no origin: name each, such as https://app.example.org, without a path")
    if port is not None and port == {"http": 80, "https": 443}.get(parts.scheme):
        origin = origin.rpartition(":")[0]
    return origin


class Settings(BaseSettings):
    """What may be set, each with a default that works."""

    model_config = SettingsConfigDict(env_prefix="BATON_", extra="ignore", frozen=True)

    home: Annotated[Path, Field(description="where all state is kept")] = Path("~/.baton")
    cache: Annotated[Path, Field(description="where weights are kept; what is lost here is fetched again")] = Field(
        default_factory=_cache
    )
    sources: Annotated[
        Literal["any", "official"],
        Field(description="whose copies of weights are taken: `official` takes what their makers vouch for alone"),
    ] = "any"
    catalog: Annotated[
        Path | None, Field(description="cards of your own, a TOML file; by default catalog.toml in the home, if any")
    ] = None
    models: Annotated[
        tuple[str, ...] | None,
        NoDecode,
        Field(description="cards or profiles to serve, with commas; by default the embedded one and your own cards"),
    ] = None
    script: Annotated[Path | None, Field(description="options of the scripted engine, a JSON file")] = None
    tools: Annotated[
        Path | None, Field(description="a file of Python whose `tools` this server runs for models that call them")
    ] = None
    approval_timeout_s: Annotated[
        PositiveFloat, Field(description="how long somebody has to allow a call of such a tool")
    ] = 3600.0
    allowed_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        Field(description="origins whose pages may call this server from a browser, with commas"),
    ] = ()
    turn_timeout_s: Annotated[PositiveFloat, Field(description="how long a turn may take")] = 120.0
    max_output_tokens: Annotated[PositiveInt, Field(description="the most tokens of an answer")] = 1024
    max_input_characters: Annotated[PositiveInt, Field(description="the longest input of a turn")] = 100_000
    history_items: Annotated[PositiveInt, Field(description="items of a session that a model is shown")] = 256
    max_sessions: Annotated[PositiveInt, Field(description="sessions in memory")] = 2_000
    max_tenant_sessions: Annotated[
        PositiveInt | None, Field(description="sessions of one tenant in memory; by default nine tenths of all")
    ] = None
    max_turns: Annotated[PositiveInt, Field(description="turns that run at a time")] = 512
    max_guesses: Annotated[
        PositiveInt, Field(description="guesses at what may be said next that are worked on at a time")
    ] = 128
    max_tenant_turns: Annotated[
        PositiveInt | None,
        Field(description="turns of one tenant that run at a time; by default 256, and nine tenths of all at most"),
    ] = None
    threads: Annotated[
        PositiveInt | None, Field(description="threads of all worker processes together; by default, one a core")
    ] = None
    max_requests: Annotated[PositiveInt, Field(description="requests that a worker process takes at a time")] = 512
    max_tenant_requests: Annotated[
        PositiveInt | None, Field(description="of these, one tenant's; by default nine tenths of all")
    ] = None
    detach_grace_s: Annotated[float, Field(ge=0, description="how long a turn runs on when its client is gone")] = 60.0
    session_idle_s: Annotated[PositiveFloat, Field(description="how long an unused session stays in memory")] = 300.0
    drain_s: Annotated[float, Field(ge=0, description="how long a stop waits for turns that run")] = 10.0

    @property
    def trusts(self) -> frozenset[Trust]:
        """Who has to vouch for weights, one of these."""
        return frozenset({"official"} if self.sources == "official" else TRUSTS)

    @property
    def catalogs(self) -> tuple[Path, ...]:
        """The files of the user's own cards."""
        own = self.catalog or self.home / "catalog.toml"
        return (own,) if self.catalog is not None or own.is_file() else ()

    @field_validator("home", "cache", "catalog", "tools")
    @classmethod
    def _expanded(cls, path: Path | None) -> Path | None:
        return None if path is None else path.expanduser()

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(name for part in value.split(",") if (name := part.strip())) or None

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(_origin(part) for part in value.split(",") if part.strip())
