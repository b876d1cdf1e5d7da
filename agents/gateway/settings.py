"""What the operator may set at the gateway, from the environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.core.exchange.limits import Limits
from agents.runtime.shipped import PAGE


class GatewaySettings(BaseSettings, Limits):
    """Each field comes from ``FEDBUS_GATEWAY_<FIELD>`` unless it is given."""

    model_config = SettingsConfigDict(env_prefix="FEDBUS_GATEWAY_", env_ignore_empty=True, frozen=True, extra="ignore")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8700, ge=0, le=65535, description="0 picks a free one")
    join_token: SecretStr | None = Field(default=None, description="a token for training that no operator made")
    origins: tuple[str, ...] = Field(default=(), description="web origins besides its own that may connect, as JSON")
    hosts: tuple[str, ...] = Field(default=(), description="names besides localhost that it is reached by, as JSON")
    static_dir: Path = Field(default=PAGE, description="the built page")
    isolation: bool = Field(default=True, description="cross-origin isolation, which threads in the browser need")
    spool_dir: Path = Field(default=Path(".fedbus/spool"), description="leases and unfinished uploads")
    url_file: Path | None = Field(default=None, description="gets the URL once the gateway listens")
    max_watchers: int = Field(default=64, ge=0, le=10_000, description="open event feeds")
    max_token_watchers: int = Field(default=16, ge=1, le=10_000, description="open event feeds of one token")
    max_failures: int = Field(default=30, ge=1, le=100_000, description="wrong tokens a minute from one address")
    max_connections: int = Field(default=4_096, ge=16, le=1_000_000, description="open sockets of all kinds")
    request_s: float = Field(default=10.0, gt=0, le=300, description="for the head of a request to arrive")
    stall_s: float = Field(default=60.0, gt=0, le=3_600, description="for a reader to take the next part of an answer")
    tls_cert: Path | None = Field(default=None, description="certificate chain (PEM): serves https and wss only")
    tls_key: Path | None = Field(default=None, description="its private key (PEM)")
