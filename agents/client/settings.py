"""How a client of this machine finds its gateway, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.runtime.connection import DEFAULT_GATEWAY_URL


class ClientSettings(BaseSettings):
    """Each field comes from ``FEDBUS_GATEWAY_<FIELD>`` unless it is given."""

    model_config = SettingsConfigDict(env_prefix="FEDBUS_GATEWAY_", env_ignore_empty=True, frozen=True, extra="ignore")

    url: str = Field(default=DEFAULT_GATEWAY_URL, description="where the gateway is")
    join_token: SecretStr = Field(default=SecretStr(""), description="what lets a client in")
    admin_token: SecretStr = Field(default=SecretStr(""), description="what lets an operator ask who is there")
    ca: Path | None = Field(default=None, description="authority that an https gateway is trusted by (PEM)")
