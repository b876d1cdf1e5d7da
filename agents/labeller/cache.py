"""The answers that were paid for, on disk: nothing is asked twice, also after an interruption."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from agents.core.labels.errors import LabellingError
from agents.core.labels.labels import Answer

_WAIT_S = 20.0
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    image TEXT, model TEXT, prompt TEXT, text TEXT, failure TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (image, model, prompt)
) WITHOUT ROWID
"""
_FIND = """
SELECT text, failure, prompt_tokens, completion_tokens FROM answers WHERE (image, model, prompt) = (?, ?, ?)
"""


class AnswerCache:
    """Answers by image digest, for one model and prompt version; several processes may use the file at once."""

    def __init__(self, database: sqlite3.Connection, model: str, prompt: str) -> None:
        self._database = database
        self._key = (model, prompt)

    def find(self, digests: Iterable[str]) -> dict[str, Answer]:
        """The answers that are known, by image digest."""
        found = ((digest, self._database.execute(_FIND, (digest, *self._key)).fetchone()) for digest in set(digests))
        return {digest: Answer(*row) for digest, row in found if row is not None}

    def keep(self, answers: Mapping[str, Answer]) -> None:
        """Writes answers to disk, all or none; those that are known already stay as they are."""
        rows = [
            (digest, *self._key, one.text, one.failure, one.prompt_tokens, one.completion_tokens)
            for digest, one in answers.items()
        ]
        with self._database:
            self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


@contextlib.contextmanager
def open_cache(path: Path, *, model: str, prompt: str) -> Iterator[AnswerCache]:
    """The cache in the SQLite file ``path``, which is made if need be.

    Raises:
        LabellingError: the file cannot be made or is no cache.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=_WAIT_S)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from None
    with contextlib.closing(database):
        try:
            # With a write-ahead log readers never wait for writers.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(_TABLE)
        except sqlite3.Error as error:
            raise _unusable(path, error) from None
        yield AnswerCache(database, model, prompt)


def _unusable(path: Path, error: Exception) -> LabellingError:
    return LabellingError(f"the label cache {path} cannot be used: {error}", hint="set FEDBUS_LABELLER_CACHE")
