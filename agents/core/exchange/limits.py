"""How much of everything clients may have: the part of the gateway's settings that its rules go by."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agents.core.exchange.messages import MAX_CHUNK_BYTES


class Limits(BaseModel):
    """What the conversation with clients is bounded by."""

    model_config = ConfigDict(frozen=True)

    lease_s: float = Field(default=75.0, gt=0, le=3_600, description="how long a lost client's lease waits for it")
    heartbeat_s: float = Field(default=5.0, gt=0, le=300, description="a client silent for three of these is gone")
    max_clients: int = Field(default=1_000, ge=1, le=100_000)
    max_upload_bytes: int = Field(default=1 << 30, ge=1, description="of one update")
    chunk_bytes: int = Field(
        default=MAX_CHUNK_BYTES, ge=1_024, le=MAX_CHUNK_BYTES, description="of an upload: what a cut may cost"
    )
    max_spool_bytes: int = Field(default=8 << 30, ge=1, description="of all unfinished uploads together")
    max_errors: int = Field(default=10, ge=1, le=1_000, description="bad messages that close a connection")
    max_rejections: int = Field(
        default=5, ge=1, le=1_000, description="rejected updates in a row that shut a client out"
    )
    max_address_rejections: int = Field(
        default=20, ge=1, le=10_000, description="of one token's clients at one address, whatever their names"
    )
    max_token_tasks: int = Field(
        default=1_000, ge=1, le=1_000_000, description="tasks that one token's clients hold together"
    )
    shut_out_s: float = Field(default=60.0, ge=0, le=86_400)
    messages_per_s: float = Field(default=1_000.0, gt=0, le=1e6, description="of one client; a faster one waits")
