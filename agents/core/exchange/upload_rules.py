"""The rules of an upload: which chunk comes next, and whether an update and its metrics are what the task asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agents.core.exchange.messages import ProtocolError
from agents.core.learning.decoding import update_norm
from agents.core.learning.encodings import Buffer, encoded_size
from agents.words.events import RejectionCode, TaskAssigned, UpdateMetrics, UpdateSubmitted
from agents.words.run_config import RunConfig
from bus.errors import FedbusError
from bus.words.values import Ref


class UpdateRefusedError(FedbusError):
    """An update does not count; ``code`` is that of ``update.rejected``."""

    def __init__(self, code: RejectionCode, reason: str) -> None:
        super().__init__(reason[:500])
        self.code: RejectionCode = code


@dataclass
class Progression:
    """How many bytes of an upload are there; chunks must follow one another without gap or overlap."""

    size: int
    offset: int

    def check(self, offset: int, length: int) -> None:
        """Sees to it that a chunk of ``length`` bytes at ``offset`` may be written.

        Raises:
            ProtocolError: ``bad_offset`` when it does not begin where the last one ended, ``too_large`` when it
                reaches past the announced size.
        """
        if offset != self.offset:
            raise ProtocolError("bad_offset", f"the next chunk begins at {self.offset}, not {offset}")
        if offset + length > self.size:
            raise ProtocolError("too_large", f"{self.size} bytes were announced, this chunk ends at {offset + length}")

    @property
    def complete(self) -> bool:
        """All bytes are there."""
        return self.offset == self.size


@dataclass(frozen=True)
class Expected:
    """What the update of a task has to look like.

    Attributes:
        config: the run's config.
        parameters: number of trainable parameters.
        base_model: SHA-256 of the model that the round starts from.
        classes: number of classes, or none when it is not known.
        labels: the task's labels.
        largest_value: largest magnitude of a value; none where the round has no such bound.
    """

    config: RunConfig
    parameters: int
    base_model: str
    classes: int | None
    labels: Sequence[int | None]
    largest_value: float | None = None

    @property
    def size(self) -> int:
        """Bytes of the encoded update."""
        return encoded_size(self.config.training.encoding, self.parameters)


def check_size(size: int, expected: Expected, limit: int) -> None:
    """Sees to it that an upload of ``size`` bytes may begin.

    Raises:
        UpdateRefusedError: ``size``.
    """
    if size > limit:
        raise UpdateRefusedError("size", f"an update has at most {limit} bytes, not {size}")
    if size != expected.size:
        encoding = expected.config.training.encoding
        raise UpdateRefusedError(
            "size", f"{encoding} of {expected.parameters} parameters takes {expected.size} bytes, not {size}"
        )


def judge(data: Buffer, metrics: UpdateMetrics, expected: Expected) -> float:
    """Decides about a complete update: its bytes, and the figures that came with them; answers with its L2 norm.

    Whether the bytes have the digest that was announced is seen by the store, which hashes them anyway.

    Raises:
        UpdateRefusedError: as ``check_metrics`` and ``check_update``.
    """
    check_metrics(metrics, expected)
    return check_update(data, expected)


def submission(
    task: TaskAssigned,
    expected: Expected,
    update: Ref,
    metrics: UpdateMetrics,
    *,
    client: str,
    engine: str,
    norm: float | None,
) -> UpdateSubmitted:
    """The event by which an update that passed counts."""
    return UpdateSubmitted(
        run=task.run,
        round=task.round,
        user=task.user,
        base_model=expected.base_model,
        update=update,
        encoding=expected.config.training.encoding,
        metrics=metrics,
        client=client,
        engine=engine,
        norm=norm,
    )


def check_update(data: Buffer, expected: Expected) -> float:
    """Reads an update part by part and answers with its L2 norm.

    It has to decode, be finite, and have no value past the round's bound; and to lie within the norm of a run that
    refuses more.

    Raises:
        UpdateRefusedError: ``size``, ``shape``, ``nonfinite``, ``magnitude`` or ``norm``.
    """
    encoding, bound = expected.config.training.encoding, expected.largest_value
    try:
        norm = update_norm(data, encoding, expected.parameters, largest=bound)
    except FedbusError as error:
        known = ("size", "nonfinite", "magnitude")
        code: RejectionCode = error.code if error.code in known else "shape"  # type: ignore[assignment]
        raise UpdateRefusedError(code, error.message) from None
    largest = expected.config.max_update_norm
    if largest is not None and norm > largest and expected.config.over_norm == "refuse":
        raise UpdateRefusedError("norm", f"the update's norm is {norm:.6g}, the run takes up to {largest:g}")
    return norm


def check_metrics(metrics: UpdateMetrics, expected: Expected) -> None:
    """Sees to it that a client's figures agree with the task's labels and with each other.

    Raises:
        UpdateRefusedError: ``metrics``.
    """
    training, labels = expected.config.training, expected.labels
    if len(metrics.predictions) != len(labels):
        _refuse("predictions", len(metrics.predictions), len(labels))
    top = expected.classes if expected.classes is not None else 2**31
    if not all(0 <= value < top for value in metrics.predictions):
        raise UpdateRefusedError("metrics", f"a prediction is a class from 0 to {top - 1}")
    pairs = [(label, value) for label, value in zip(labels, metrics.predictions, strict=True) if label is not None]
    mismatched = sum(label != value for label, value in pairs)
    trained = mismatched * (1 + training.augmentations) * training.epochs
    for name, found, right in (
        ("examples", metrics.examples, len(pairs)),
        ("mismatched_images", metrics.mismatched_images, mismatched),
        ("trained_images", metrics.trained_images, trained),
    ):
        if found != right:
            _refuse(name, found, right)


def _refuse(name: str, found: int, right: int) -> None:
    raise UpdateRefusedError("metrics", f"{name} is {right} for this task, not {found}")
