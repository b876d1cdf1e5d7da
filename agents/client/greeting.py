"""The first words with a gateway: a client says who it is and is let in, or is told why not."""

from __future__ import annotations

import asyncio
import os

from websockets.asyncio.client import ClientConnection, connect

from agents.client.address import Address
from agents.core.exchange.messages import (
    MAX_TEXT_BYTES,
    PROTOCOL_VERSION,
    ErrorMessage,
    Hello,
    Leave,
    ProtocolError,
    Welcome,
    parse_server_message,
)
from bus.errors import FedbusError

ANSWER_S = 30.0
KNOCK_S = 10.0
KNOCKING = "no engine: it only asks whether it is let in"
_FATAL_CODES = frozenset({"token", "role", "name_taken", "version"})


class GatewayRefusedError(FedbusError):
    """The gateway does not want this client."""

    code = "gateway_refused"


async def greet(socket: ClientConnection, hello: Hello) -> Welcome:
    """Says hello and returns the gateway's welcome.

    Raises:
        GatewayRefusedError: wrong token or name, or another version of the protocol: trying again does not help.
        ProtocolError: it is refused for now, or the other side is no gateway.
        TimeoutError: no answer.
    """
    await socket.send(hello.model_dump_json())
    async with asyncio.timeout(ANSWER_S):
        answer = parse_server_message(text_of(await socket.recv()))
    if isinstance(answer, ErrorMessage):
        if answer.code in _FATAL_CODES:
            raise GatewayRefusedError(answer.message, hint="check --token, and that both sides have one version")
        raise ProtocolError(answer.code, answer.message)
    if not isinstance(answer, Welcome):
        raise ProtocolError("no_welcome", f"{answer.type} came before welcome")
    return answer


async def knock(gateway: Address) -> None:
    """Sees whether a gateway lets clients with this token in; leaves at once.

    Raises:
        GatewayRefusedError: it does not.
        OSError, TimeoutError, ProtocolError, websockets.WebSocketException: there is none now, or it has no room.
    """
    async with (
        asyncio.timeout(KNOCK_S),
        connect(gateway.socket_url, ssl=gateway.tls(), compression=None, max_size=2 * MAX_TEXT_BYTES) as socket,
    ):
        name = f"knock-{os.uname().nodename.split('.')[0][:20]}-{os.getpid()}"
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            token=gateway.token,
            client=name,
            engine=KNOCKING,
            resume=(),
        )
        await greet(socket, hello)
        await socket.send(Leave().model_dump_json())


def text_of(frame: str | bytes) -> str:
    """A frame that has to be text.

    Raises:
        ProtocolError: it is not.
    """
    if isinstance(frame, bytes):
        raise ProtocolError("bad_message", "the gateway sends text only")
    return frame
