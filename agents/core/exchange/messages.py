"""The messages between gateway and clients: JSON text frames, and one binary frame for chunks of an upload.

A client says ``hello`` first and is answered ``welcome``. Each ``ready`` asks for one task; a client may be ready for
the next task while it still works on one. A finished task goes back as ``upload.begin``, chunks from the offset that
``upload.offset`` names, and ``upload.commit``; the gateway answers ``upload.accepted`` or ``upload.rejected``. After
a cut the client says ``hello`` again with the leases that it still holds and begins the upload anew: the answer's
offset says where to go on. A client that does not mean to come back says ``leave``.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from agents.words.events import TaskAssigned, UpdateMetrics
from bus.errors import FedbusError
from bus.words.problems import what_is_wrong
from bus.words.values import Frozen, Name, Sha256, ShortText

T = TypeVar("T")
PROTOCOL_VERSION = 1
MAX_CHUNK_BYTES = 512 * 1024
MAX_TEXT_BYTES = 64 * 1024
MAX_SLOTS = 8
CHUNK_HEADER = struct.Struct("<IQ")
"""upload number (u32), offset in bytes (u64), little-endian; the chunk's bytes follow."""

LeaseId = Annotated[
    str, Field(min_length=1, max_length=250, pattern=r"^[A-Za-z0-9._-]+$", description="the lease of the task")
]
UploadNumber = Annotated[int, Field(ge=0, lt=2**32, description="the client's number for the upload")]


class ProtocolError(FedbusError):
    """A client's message breaks the protocol."""

    code = "protocol"

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.fatal = fatal


class Hello(Frozen):
    """First message of a client."""

    type: Literal["hello"] = "hello"
    protocol: int = Field(description="1")
    token: str = Field(default="", max_length=256, description="the join token")
    client: Name = Field(description="the client's own stable name")
    engine: str = Field(max_length=64, description="what it trains with, for people: a library and its version")
    resume: tuple[LeaseId, ...] = Field(default=(), max_length=MAX_SLOTS, description="leases still held")


class Ready(Frozen):
    """The client wants one more task. Answered ``assignment`` as soon as there is one; not remembered over a cut."""

    type: Literal["ready"] = "ready"


class ProgressMessage(Frozen):
    """How far a task is, for those who watch; nothing answers it, and a few a second are enough."""

    type: Literal["progress"] = "progress"
    lease: LeaseId
    phase: Literal["predict", "train", "upload"]
    images_seen: int = Field(ge=0, description="images of the shard that were predicted")
    mismatched_images: int = Field(default=0, ge=0)
    trained_images: int = Field(default=0, ge=0)
    loss: float | None = None


class UploadBegin(Frozen):
    """The client has an update of this size and digest for a task that it holds."""

    type: Literal["upload.begin"] = "upload.begin"
    lease: LeaseId
    upload: UploadNumber
    size: int = Field(ge=0, description="bytes of the encoded update")
    sha256: Sha256 = Field(description="of the encoded update")


class UploadCommit(Frozen):
    """All bytes are sent; these are the task's metrics."""

    type: Literal["upload.commit"] = "upload.commit"
    lease: LeaseId
    upload: UploadNumber
    metrics: UpdateMetrics


class TaskFailed(Frozen):
    """The client cannot do this task; it goes back to the pool."""

    type: Literal["task.failed"] = "task.failed"
    lease: LeaseId
    reason: ShortText


class Leave(Frozen):
    """The client goes for good: its tasks return to the pool at once, and the gateway closes the connection."""

    type: Literal["leave"] = "leave"


class Ping(Frozen):
    """The client is alive; answered ``pong``. WebSocket pings do not count: browsers cannot send them."""

    type: Literal["ping"] = "ping"


class Welcome(Frozen):
    """The client is in."""

    type: Literal["welcome"] = "welcome"
    protocol: int = Field(default=PROTOCOL_VERSION, description="the gateway's")
    heartbeat_s: float = Field(description="a client that is silent for three of these is gone")
    lease_s: float = Field(description="how long the leases of a client that is gone wait for its return")
    chunk_bytes: int = Field(default=MAX_CHUNK_BYTES, description="bytes of an update that a chunk should carry")
    resumed: tuple[LeaseId, ...] = Field(default=(), description="leases of hello.resume that are still the client's")


class Assignment(Frozen):
    """One task for the client, under a lease."""

    type: Literal["assignment"] = "assignment"
    lease: LeaseId
    task: TaskAssigned


class UploadOffset(Frozen):
    """The gateway has the upload's bytes up to here; also the acknowledgement of each chunk."""

    type: Literal["upload.offset"] = "upload.offset"
    upload: UploadNumber
    offset: int = Field(ge=0, description="bytes that are there; the next chunk begins here")


class UploadAccepted(Frozen):
    """The update is kept and the task done."""

    type: Literal["upload.accepted"] = "upload.accepted"
    lease: LeaseId
    upload: UploadNumber


class UploadRejected(Frozen):
    """The update is not counted and the lease is over."""

    type: Literal["upload.rejected"] = "upload.rejected"
    lease: LeaseId
    upload: UploadNumber
    code: str = Field(max_length=32)
    reason: ShortText


class TaskRevoked(Frozen):
    """The lease is over: its round closed or the lease expired. The client drops the task."""

    type: Literal["task.revoked"] = "task.revoked"
    lease: LeaseId
    reason: ShortText


class Pong(Frozen):
    """Answer to ``ping``."""

    type: Literal["pong"] = "pong"


class ErrorMessage(Frozen):
    """What the client sent was refused; repeated errors close the connection."""

    type: Literal["error"] = "error"
    code: str = Field(max_length=32)
    message: ShortText


ClientMessage = Annotated[
    Hello | Ready | ProgressMessage | UploadBegin | UploadCommit | TaskFailed | Leave | Ping,
    Field(discriminator="type"),
]
ServerMessage = Annotated[
    Welcome | Assignment | UploadOffset | UploadAccepted | UploadRejected | TaskRevoked | Pong | ErrorMessage,
    Field(discriminator="type"),
]
_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(ClientMessage)
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(ServerMessage)


def parse_client_message(text: str) -> ClientMessage:
    """What a client said.

    Raises:
        ProtocolError: ``too_large`` over 64 KiB, ``bad_message`` for anything that is no message of the protocol.
    """
    return _parse(_CLIENT, text)


def parse_server_message(text: str) -> ServerMessage:
    """What the gateway said; raises as ``parse_client_message`` does."""
    return _parse(_SERVER, text)


def _parse(adapter: TypeAdapter[T], text: str) -> T:
    if len(text.encode(errors="surrogatepass")) > MAX_TEXT_BYTES:
        raise ProtocolError("too_large", f"a text message has at most {MAX_TEXT_BYTES} bytes")
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        raise ProtocolError("bad_message", what_is_wrong(error)[:500]) from None


def parse_chunk(frame: bytes) -> tuple[int, int, memoryview]:
    """Upload number, offset in bytes, and the bytes of a binary frame.

    Raises:
        ProtocolError: ``bad_chunk`` when the header is cut, the chunk empty, or larger than 512 KiB.
    """
    size = len(frame) - CHUNK_HEADER.size
    if not 0 < size <= MAX_CHUNK_BYTES:
        raise ProtocolError("bad_chunk", f"a chunk has 1 to {MAX_CHUNK_BYTES} bytes, this one {max(size, 0)}")
    upload, offset = CHUNK_HEADER.unpack_from(frame)
    return upload, offset, memoryview(frame)[CHUNK_HEADER.size :]


def encode_chunk(upload: int, offset: int, data: bytes | memoryview) -> bytes:
    """The binary frame that carries ``data`` for ``upload`` at ``offset``."""
    return CHUNK_HEADER.pack(upload, offset) + bytes(data)
