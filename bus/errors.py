"""The typed errors of fedbus: each carries a stable code and says what to do next."""

from __future__ import annotations


class FedbusError(Exception):
    """Base of every error that fedbus raises on purpose.

    Attributes:
        code: stable, machine-readable name of the error; documented in ``docs/errors.md``.
        hint: what the reader can do about it, or an empty string.
    """

    code = "internal"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def message(self) -> str:
        """The sentence that says what went wrong."""
        return str(self.args[0])


class MalformedEventError(FedbusError):
    """A message on the bus is not an event that this version understands."""

    code = "malformed_event"


class MalformedSubjectError(FedbusError):
    """A subject, or a name that would become part of one, breaks the naming rules."""

    code = "malformed_subject"


class ConflictingEventError(FedbusError):
    """A write-once event already exists and says something else."""

    code = "conflicting_event"


class BrokerUnavailableError(FedbusError):
    """The NATS server cannot be reached or refuses the connection."""

    code = "broker_unavailable"


class PermissionDeniedError(FedbusError):
    """The broker does not let this user publish what it wanted to say."""

    code = "permission_denied"


class ServerStartError(FedbusError):
    """The embedded nats-server did not become ready."""

    code = "server_start"


class StoreLockedError(FedbusError):
    """Another process already uses this store directory."""

    code = "store_locked"


class PortTakenError(FedbusError):
    """A port that fedbus was told to listen on is in use."""

    code = "port_taken"


class ObjectMissingError(FedbusError):
    """An object that a reference names is not in the store."""

    code = "object_missing"


class ObjectCorruptError(FedbusError):
    """The bytes of an object do not have the digest or size that its reference states."""

    code = "object_corrupt"


class ObjectTimeoutError(FedbusError):
    """An object's chunks stopped arriving before its end."""

    code = "object_timeout"


class MalformedRecordingError(FedbusError):
    """A recording file is damaged, incomplete or of an unknown version."""

    code = "malformed_recording"


class NoWordsError(FedbusError):
    """Nothing is declared that could be said on the bus, so no event can be read."""

    code = "no_words"
