"""The small values that events, specs and messages are made of: names, digests and references."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_USERS = 100_000
MAX_IMAGES_PER_USER = 1_000

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""A run, user or client name: safe as one token of a NATS subject."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
RoundNumber = Annotated[int, Field(ge=0, le=1_000_000)]
ShortText = Annotated[str, StringConstraints(max_length=500)]


class Frozen(BaseModel):
    """Base of every immutable value on the bus; unknown fields are refused, and numbers that JSON cannot say."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ref(Frozen):
    """Where the bytes of something large lie: an object named by its own digest."""

    bucket: Name = "objects"
    name: Annotated[str, StringConstraints(pattern=r"^sha256-[0-9a-f]{64}$")]
    size: int = Field(ge=0, description="bytes")
    sha256: Sha256
    media_type: str = Field(default="application/octet-stream", max_length=100)
