"""How every process logs: one readable line a message, or one JSON object a line."""

from __future__ import annotations

import json as json_format
import logging
import re
import sys
import time
from datetime import UTC, datetime

CONTEXT = ("run", "round", "user", "trace")
_ESCAPES = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)]}
_LOGIN, _TOKEN = re.compile(r"//[^/\s]*@"), re.compile(r"(token=)[^&#/\s]+")
_ESCAPES |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
# Ends of lines, and what turns the direction of the text after it.
_ESCAPES |= {code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))}


def configure(role: str, json: bool = False, level: int = logging.INFO) -> None:
    """Sends the log of this process to stderr as ``role``, replacing what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role) if json else LineFormatter(role))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for chatty in ("nats", "httpx", "httpcore", "httpx2", "httpcore2", "openai", "watchfiles"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def without_login(url: str) -> str:
    """An address to show or log: without the user, password or token that may stand in it."""
    return _TOKEN.sub(r"\1***", _LOGIN.sub("//***@", url))


def escaped(text: str) -> str:
    """``text`` without control characters: what a foreign client sends cannot forge lines or move the cursor."""
    return text.translate(_ESCAPES)


class LineFormatter(logging.Formatter):
    """``HH:MM:SS role  message  run=… round=… user=…``; a traceback follows on lines of its own."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback below."""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        parts = [f"{clock} {self._role:<10} {level}{escaped(record.getMessage())}"]
        parts += [f"{key}={escaped(str(value))}" for key, value in _context(record).items()]
        line = "  ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, role, logger, message, the context, and the traceback as one string."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON object."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "role": self._role,
            "logger": record.name,
            "message": record.getMessage(),
            **_context(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json_format.dumps(fields, default=str)


def _context(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key in CONTEXT if (value := getattr(record, key, None)) is not None}
