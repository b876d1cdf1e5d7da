"""What a join token is, and what is known of it: a record with a hash in place of the secret."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints

from bus.words.values import Frozen, Sha256

_PREFIX = "fb"
_ID_BYTES, _SECRET_BYTES = 6, 32

Role = Literal["watch", "train", "admin"]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class TokenLimits(Frozen):
    """What the holders of one token may take together."""

    clients: int | None = Field(default=None, ge=1, le=100_000, description="connected at once; none: no limit")
    bytes_per_s: float | None = Field(default=None, gt=0, le=1e12, description="sent by them; none: no limit")


class TokenRecord(Frozen):
    """One join token as it is kept: everything but its secret."""

    id: TokenId
    role: Role
    sha256: Sha256 = Field(description="of the whole token; it is random, so no slow hash is needed")
    note: str = Field(default="", max_length=100)
    limits: TokenLimits = TokenLimits()
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None

    def ended(self, now: datetime) -> str | None:
        """Why it is not valid any more, if so."""
        if self.revoked is not None:
            return "the token is revoked"
        if self.expires is not None and self.expires <= now:
            return "the token has expired"
        return None


def new_token(
    role: Role, *, note: str = "", limits: TokenLimits | None = None, expires: datetime | None = None
) -> tuple[str, TokenRecord]:
    """A fresh token as its holder gets it, once, and the record that is kept of it."""
    name = secrets.token_hex(_ID_BYTES)
    token = f"{_PREFIX}_{name}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    record = TokenRecord(
        id=name,
        role=role,
        sha256=digest_of(token),
        note=note,
        limits=limits or TokenLimits(),
        created=datetime.now(UTC),
        expires=expires,
    )
    return token, record


def digest_of(token: str) -> str:
    """SHA-256 of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def id_of(token: str) -> str:
    """The id that a token names, which says nothing about whether it is genuine; empty when it names none."""
    parts = token.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == _PREFIX else ""
