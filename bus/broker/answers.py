"""What the broker's errors mean: an answer, an outage that waiting heals, or a refusal that it does not."""

from __future__ import annotations

import ssl

import nats.errors
import nats.js.errors

WRONG_LAST_SEQUENCE = 10071
"""The code of JetStream's refusal of a message that is not the first, or the next, on its subject."""
_UNSETTLED = frozenset({10005, 10006, 10007, 10008, 10041, 10118, 10119, 10158, 10164})
"""Codes of what a cluster answers before it knows: it has no leader, too few nodes, or something else for the same
subject (10164) or of the same id (10158) is under way and may yet fail."""
# What a request meets while the broker restarts or is busy; anything else is an answer.
OUTAGES = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.OutboundBufferLimitError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.StaleConnectionError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)


def is_outage(error: Exception) -> bool:
    """Whether this says nothing but that the broker cannot answer now."""
    return isinstance(error, OUTAGES) or (isinstance(error, nats.js.errors.APIError) and error.err_code in _UNSETTLED)


def refusal(error: Exception | None) -> str:
    """What to do about an error that waiting does not heal, or an empty string."""
    text = str(error).lower()
    if "authorization" in text or "authentication" in text:
        return (
            "log in as the broker expects with NATS_USER and NATS_PASSWORD, which `fedbus env` prints in the folder of "
            "a fedbus, or with NATS_TOKEN or NATS_CREDS"
        )
    if isinstance(error, ssl.SSLCertVerificationError) or "tls" in text:
        return "set NATS_CA to the authority that signed the broker's certificate, and NATS_CERT and NATS_KEY if asked"
    return ""


def reason(error: Exception | None) -> str:
    """What it says, in short."""
    return str(error).removeprefix("nats: ") or type(error).__name__ if error is not None else "no answer"
