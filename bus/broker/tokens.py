"""Join tokens on the broker: the newest record of each, with a hash in place of the secret."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from bus.broker.connection import Connection
from bus.broker.direct_get import read_stored
from bus.broker.topology import TOKEN_STREAM
from bus.errors import FedbusError
from bus.words.subjects import ALL_TOKENS, token_subject
from bus.words.values import Frozen, Sha256

LOOK_EVERY_S = 1.0
_PREFIX = "fb"
_ID_BYTES, _SECRET_BYTES = 6, 32
_BATCH, _STALL_S = 256, 10.0

Role = Literal["watch", "train", "admin"]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]


class TokenUnknownError(FedbusError):
    """No token has this id."""

    code = "token_unknown"


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


class TokenStore:
    """The records; only the operator may write them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def put(self, record: TokenRecord) -> None:
        """Keeps the record in place of an older one of its id."""
        body = record.model_dump_json().encode()
        await self._connection.persist(
            lambda: self._connection.js.publish(token_subject(record.id), body, stream=TOKEN_STREAM)
        )

    async def revoke(self, name: str) -> TokenRecord:
        """Ends the token of this id; the record stays, so that it can be seen when that was.

        Raises:
            TokenUnknownError: there is none.
        """
        record = next((one for one in await self.all() if one.id == name), None)
        if record is None:
            raise TokenUnknownError(f"there is no token {name}", hint="fedbus token list")
        if record.revoked is None:
            record = record.model_copy(update={"revoked": datetime.now(UTC)})
            await self.put(record)
        return record

    async def all(self) -> list[TokenRecord]:
        """Every record, oldest first; what cannot be read is no record, and lets nobody in."""
        found = []
        stored = read_stored(self._connection, TOKEN_STREAM, ALL_TOKENS, start=1, batch=_BATCH, stall_s=_STALL_S)
        async with contextlib.aclosing(stored) as messages:
            async for message in messages:
                with contextlib.suppress(ValidationError):
                    record = TokenRecord.model_validate_json(message.data)
                    if token_subject(record.id) == message.subject:
                        found.append(record)
        return sorted(found, key=lambda record: (record.created, record.id))

    async def changes(self, every_s: float = LOOK_EVERY_S) -> AsyncIterator[list[TokenRecord]]:
        """All records at once, and again within ``every_s`` of each change; endless."""
        last = -1
        while True:
            info = await self._connection.persist(lambda: self._connection.js.stream_info(TOKEN_STREAM))
            if info.state.last_seq != last:
                try:
                    records = await self.all()
                except TimeoutError:
                    continue
                last = info.state.last_seq
                yield records
            await asyncio.sleep(every_s)
