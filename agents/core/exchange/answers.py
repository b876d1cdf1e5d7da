"""What the gateway says when it refuses or ends something, in tables: docs/protocol.md is written from them.

A code is the same for ever and for programs; the words beside it may change and are for people. A connection's close
reason is a code, too.
"""

from __future__ import annotations

from typing import NamedTuple


class Farewell(NamedTuple):
    """How a connection ends: a WebSocket close code, and a reason of one word."""

    code: int
    reason: str


class Meaning(NamedTuple):
    """When something is said, and what the client does then."""

    when: str
    then: str


_POLICY = 1008
GOODBYE = Farewell(1000, "goodbye")
STOPPING = Farewell(1012, "stopping")
CROWDED = Farewell(1013, "crowded")
REPLACED = Farewell(4001, "replaced")
NO_HELLO = Farewell(_POLICY, "no_hello")
SILENCE = Farewell(_POLICY, "silence")
NOT_READING = Farewell(_POLICY, "not_reading")
SHUT_OUT = Farewell(_POLICY, "shut_out")

FAREWELLS: dict[Farewell, Meaning] = {
    GOODBYE: Meaning("the client said `leave`", "Nothing: its tasks are with others."),
    STOPPING: Meaning("the gateway stops", "Come back; the leases wait."),
    CROWDED: Meaning("others wait to say `hello`", "Come back, and say it at once."),
    REPLACED: Meaning("a newer connection has this client's name", "Do not come back: two of one name would go on so."),
    NO_HELLO: Meaning("no `hello` was welcome in time", "Come back, and say it at once."),
    SILENCE: Meaning("nothing was heard for three heartbeats", "Come back, and send `ping` on time."),
    NOT_READING: Meaning("the gateway's messages were not read", "Come back, and read all the time."),
    SHUT_OUT: Meaning("too many updates in a row were rejected", "Find out why; come back after a minute."),
}
"""Every farewell but those after an ``error``: see ``farewell_after``."""


def farewell_after(code: str) -> Farewell:
    """The end of a connection that this ``error`` closes: a fatal one, or the last that was one too many."""
    return Farewell(_POLICY, code)


class ErrorCode(NamedTuple):
    """A code of ``error``.

    Attributes:
        then: what the client does.
        fatal: the connection ends with it.
        counts: it is one of the few that close a connection; an honest client may run into the others.
    """

    then: str
    fatal: bool = False
    counts: bool = True


ERRORS: dict[str, ErrorCode] = {
    "hello": ErrorCode("Come back and begin with `hello`.", fatal=True),
    "token": ErrorCode("Stop: the token is wrong or has ended.", fatal=True),
    "role": ErrorCode("Stop: the token is not for training.", fatal=True),
    "token_full": ErrorCode("Come back later.", fatal=True),
    "too_many_failures": ErrorCode("Come back after a minute.", fatal=True),
    "name_taken": ErrorCode("Come back under another name.", fatal=True),
    "version": ErrorCode("Stop: this gateway speaks another protocol.", fatal=True),
    "full": ErrorCode("Come back later.", fatal=True),
    "shut_out": ErrorCode("Find out why updates were rejected; come back after a minute.", fatal=True),
    "twice": ErrorCode("Go on; do not say `hello` again."),
    "too_many": ErrorCode("Go on; say `ready` when a task is over."),
    "bad_message": ErrorCode("Go on; what you said was not understood, and nothing came of it."),
    "too_large": ErrorCode("Go on; the message or chunk was not taken. An upload is where it was."),
    "bad_chunk": ErrorCode("Go on; the frame was not taken. An upload is where it was."),
    "bad_offset": ErrorCode("Send the upload on from the offset of its last `upload.offset`."),
    "unknown_lease": ErrorCode("Drop the task.", counts=False),
    "unknown_upload": ErrorCode("Say `upload.begin` again with another number.", counts=False),
    "upload_number": ErrorCode("Say `upload.begin` with another number."),
    "incomplete": ErrorCode("Send the rest, then `upload.commit` again."),
    "spool": ErrorCode("Wait some seconds, then say `upload.begin` again with another number."),
    "busy": ErrorCode("Wait some seconds, then say `upload.begin` again with another number.", counts=False),
}


class RejectionMeaning(NamedTuple):
    """A code of ``upload.rejected``; whether it is one of the few in a row that shut a client out."""

    when: str
    counts: bool = True


REJECTIONS: dict[str, RejectionMeaning] = {
    "digest": RejectionMeaning("the bytes do not have the announced SHA-256"),
    "size": RejectionMeaning("another number of bytes than the encoding takes; said before a byte is sent"),
    "shape": RejectionMeaning("the bytes do not decode: indices of `topk` that do not ascend or are too large"),
    "nonfinite": RejectionMeaning("a value is NaN or infinite"),
    "magnitude": RejectionMeaning("a value is too large for the round"),
    "norm": RejectionMeaning("the L2 norm is above the run's bound"),
    "metrics": RejectionMeaning("the figures do not agree with the labels or with each other"),
    "stale": RejectionMeaning("the round, the run or the lease was over", counts=False),
    "duplicate": RejectionMeaning("another update of this user was accepted", counts=False),
    "unknown_task": RejectionMeaning("no such round was planned", counts=False),
    "gateway": RejectionMeaning("the gateway could not finish; the task goes to whoever is ready", counts=False),
}
