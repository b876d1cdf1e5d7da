"""What a replay gives: what was checked, and every place where it and the recording part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bus.errors import ObjectCorruptError, ObjectMissingError
from bus.words.payload import Payload
from bus.words.values import Ref

Role = Literal["labeller", "dispatcher", "gateway", "aggregator", "evaluator"]
ROLES: tuple[Role, ...] = get_args(Role)
Objects = Mapping[str, bytes]
"""Bytes by SHA-256."""


@dataclass(frozen=True)
class Difference:
    """Where the replay and the recording part: the event, whose it is, and what each side says."""

    sequence: int
    role: Role
    what: str
    recorded: str
    replayed: str

    def __str__(self) -> str:
        return f"event {self.sequence}, {self.role}: {self.what}: recorded {self.recorded}, replayed {self.replayed}"


@dataclass
class Replay:
    """The outcome of replaying one run.

    Attributes:
        run: its name.
        models: the digest of every round's model as replayed.
        differences: all of them, in stream order.
        checked: how many events of each role were replayed.
    """

    run: str
    models: dict[int, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    checked: Counter[Role] = field(default_factory=Counter)

    @property
    def final_model(self) -> str | None:
        """SHA-256 of the last round's model as the replay computed it."""
        return self.models[max(self.models)] if self.models else None

    def differ(self, sequence: int, role: Role, what: str, recorded: object, replayed: object) -> None:
        """Notes a difference."""
        self.differences.append(Difference(sequence, role, what, brief(recorded), brief(replayed)))

    def compare(self, sequence: int, role: Role, what: str, recorded: object, replayed: object) -> None:
        """Notes a difference if there is one."""
        if recorded != replayed:
            self.differ(sequence, role, what, recorded, replayed)


def find_object(objects: Objects, ref: Ref) -> bytes:
    """The bytes that ``ref`` names.

    Raises:
        ObjectMissingError: the recording does not hold them.
    """
    if ref.sha256 not in objects:
        raise ObjectMissingError(f"the recording has no object {ref.sha256}", hint="record again with --include all")
    return objects[ref.sha256]


def parameters_of(objects: Objects, ref: Ref) -> NDArray[np.float32]:
    """The trainable parameters float32 [n] that ``ref`` names.

    Raises:
        ObjectMissingError: the recording does not hold them.
        ObjectCorruptError: they are no whole number of float32 values.
    """
    data = find_object(objects, ref)
    if len(data) % 4:
        raise ObjectCorruptError(f"model {ref.sha256} has {len(data)} bytes, not whole float32 values")
    return np.frombuffer(data, "<f4").astype(np.float32)


def brief(value: object) -> str:
    """One side of a difference, in a line."""
    if isinstance(value, Payload):
        return f"{value.TYPE} {value.model_dump_json(exclude={'run', 'round'})}"
    return "nothing" if value is None else str(value)
