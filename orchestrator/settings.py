"""Settings of the conductor, from the environment: `BATON_` and the field's name in capitals."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What may be set, each with a default that works."""

    model_config = SettingsConfigDict(env_prefix="BATON_", extra="ignore", frozen=True)

    home: Annotated[Path, Field(description="where all state is kept")] = Path("~/.baton")
    script: Annotated[Path | None, Field(description="options of the scripted engine, a JSON file")] = None
    turn_timeout_s: PositiveFloat = 120.0
    max_output_tokens: PositiveInt = 1024
    max_input_characters: PositiveInt = 100_000
    history_items: Annotated[PositiveInt, Field(description="items of a session that a model is shown")] = 256
    max_sessions: PositiveInt = 2_000
    max_requests: PositiveInt = 512
    detach_grace_s: Annotated[float, Field(ge=0)] = 60.0
    session_idle_s: PositiveFloat = 300.0
