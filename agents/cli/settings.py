"""What commands take from the environment beside what agents and clients do."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CommandSettings(BaseSettings):
    """Each field comes from ``FEDBUS_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix="FEDBUS_", env_ignore_empty=True, frozen=True, extra="ignore")

    log_bytes: int = Field(default=16 << 20, ge=1 << 12, description="a longer log is set aside")
    chromium: Path | None = Field(default=None, description="the browser of headless clients")
