"""Writes what Python and TypeScript must both match: ``python -m tests.vectors.make_vectors``."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agents.core.exchange.messages import (
    Assignment,
    ErrorMessage,
    Hello,
    Leave,
    Ping,
    Pong,
    ProgressMessage,
    Ready,
    TaskFailed,
    TaskRevoked,
    UploadAccepted,
    UploadBegin,
    UploadCommit,
    UploadOffset,
    UploadRejected,
    Welcome,
    encode_chunk,
)
from agents.core.learning.augment import augment, default_augmentation
from agents.core.learning.encodings import encode_update
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import AugmentationSpec, TaskSpec
from artifacts.learning_rate import with_learning_rate
from artifacts.optimizer import LEARNING_RATE_INITIALIZER, build_optimizer
from artifacts.pixels import pixel_table
from bus.words.values import Frozen, Ref
from tests.vectors.run_views import engine_cases, view_cases

FOLDER = Path(__file__).parent
REF = Ref(name="sha256-" + "a" * 64, size=12, sha256="a" * 64)
LEASE = "run-1.3.user-007.1"


def main() -> None:
    """Writes all files."""
    for name, cases in all_vectors().items():
        (FOLDER / f"{name}.json").write_text(_text(name, cases), encoding="utf-8")


def _text(name: str, cases: object) -> str:
    # The runs are large and nobody reads them.
    short = json.dumps(cases, separators=(",", ":"))
    return (short if name == "run_views" else json.dumps(cases, indent=1)) + "\n"


def all_vectors() -> dict[str, object]:
    """What belongs into each file, as the Python side computes it now."""
    return {
        "augment": augment_cases(),
        "pixels": pixel_cases(),
        "encodings": encoding_cases(),
        "learning_rates": learning_rate_cases(),
        "protocol": protocol_samples(),
        "run_views": view_cases(),
        "engine_kinds": engine_cases(),
    }


def augment_cases() -> list[dict[str, object]]:
    """Small images under several seeds, shapes and specs; the expected batch as bytes, a large one as its digest."""
    default = default_augmentation()
    steep = AugmentationSpec(
        flip=False,
        shift=9,
        cos=(65536, 46341, 0, -65536),
        sin=(0, 46341, 65536, 0),
        inverse_scale=(20000, 65536, 300000),
        brightness=255,
        contrast=255,
    )
    still = AugmentationSpec(
        flip=False, shift=0, cos=(65536,), sin=(0,), inverse_scale=(65536,), brightness=0, contrast=0
    )
    cases = [
        ("default, grey 28x28", (4, 28, 28, 1), [0, 3], 6, 0, default),
        ("default, largest seed", (2, 8, 8, 1), [1], 3, 2**32 - 1, default),
        ("default, colour, odd and oblong", (3, 7, 10, 3), [2, 0], 4, 123_456_789, default),
        ("steep rotations and zooms", (2, 9, 5, 3), [0, 1], 8, 77, steep),
        ("nothing changes", (1, 6, 6, 1), [0], 2, 5, still),
        ("no copies", (2, 4, 4, 1), [1], 0, 9, default),
        ("one pixel", (1, 1, 1, 3), [0], 2, 1, default),
        ("high image number and most copies", (1000, 2, 3, 1), [999], 63, 42, default),
        ("largest side", (1, 1024, 3, 1), [0], 2, 31_337, steep),
    ]
    return [_augment_case(*case) for case in cases]


def _augment_case(
    name: str, shape: tuple[int, int, int, int], indices: list[int], copies: int, seed: int, spec: AugmentationSpec
) -> dict[str, object]:
    images = pattern(shape)
    batches = augment(images, np.array(indices, np.int64), copies=copies, seed=seed, spec=spec)
    small = batches.nbytes <= 8192
    return {
        "name": name,
        "shape": shape,
        "indices": indices,
        "copies": copies,
        "seed": seed,
        "spec": spec.model_dump(mode="json"),
        "sha256": hashlib.sha256(batches.tobytes()).hexdigest(),
        "batches": base64.b64encode(batches.tobytes()).decode() if small else None,
    }


def pattern(shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Images that both sides can make up: byte k is (k * k + 31 * k) // 7 mod 256."""
    place = np.arange(int(np.prod(shape)), dtype=np.int64)
    return ((place * place + 31 * place) // 7 % 256).astype(np.uint8).reshape(shape)


def pixel_cases() -> list[dict[str, object]]:
    """Tables of normalised pixels, as the bits of little-endian float32."""
    statistics = [([0.5], [0.5]), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.2860], [0.3530])]
    return [
        {"mean": mean, "std": std, "table": base64.b64encode(pixel_table(mean, std).astype("<f4").tobytes()).decode()}
        for mean, std in statistics
    ]


def learning_rate_cases() -> list[dict[str, object]]:
    """Optimizer models of both kinds, and the same with another learning rate; one of which rounds to a tie."""
    models = {
        "sgd": build_optimizer("sgd", learning_rate=0.03),
        "sgd, decay and clipping": build_optimizer("sgd", learning_rate=1.0, weight_decay=0.1, clip_norm=0.5),
        "adamw": build_optimizer("adamw", learning_rate=1e-3, weight_decay=0.01),
    }
    return [
        {
            "name": f"{name} at {rate}",
            "initializer": LEARNING_RATE_INITIALIZER,
            "rate": rate,
            "model": base64.b64encode(model).decode(),
            "changed": base64.b64encode(with_learning_rate(model, LEARNING_RATE_INITIALIZER, rate)).decode(),
        }
        for name, model in models.items()
        for rate in (0.03, 0.03 * 0.75**3, 1 + 2**-24, 1e-45, 100.0)
    ]


def encoding_cases() -> list[dict[str, object]]:
    """Updates in every encoding; values with ties, zeros, both signs, and halves below the normal range."""
    generator = np.random.default_rng(7)
    wide = (generator.standard_normal(1100) * 10.0 ** generator.integers(-9, 3, 1100)).astype(np.float32)
    ties = np.array([0.0, -0.0, 1.0, -1.0, 1.0, 0.5, 127.0, -63.5, 2.5, 3.5, 65504.0], np.float32)
    halves = np.array([2**-24, 2**-25, 1.5 * 2**-25, -(2**-14), 1 + 2**-11, 1 + 3 * 2**-11, 2047.5, 4095.0], np.float32)
    zeros = np.zeros(3, np.float32)
    deltas = {"wide": wide, "ties": ties, "halves": halves, "zeros": zeros}
    return [
        {
            "name": f"{name}, {encoding}",
            "encoding": encoding,
            "delta": base64.b64encode(delta.astype("<f4").tobytes()).decode(),
            "bytes": base64.b64encode(encode_update(delta, encoding)).decode(),
        }
        for name, delta in deltas.items()
        for encoding in ("float32", "float16", "int8", "topk:0.1", "topk:1")
    ]


def protocol_samples() -> dict[str, object]:
    """One message of each type in both directions, a task spec, and a chunk's frame."""
    task = TaskAssigned(run="run-1", round=3, user="user-007", shard=REF, labels=(0, None, 9), spec=REF, seed=2**32 - 1)
    metrics = UpdateMetrics(
        predictions=(0, 1, 2),
        examples=2,
        mismatched_images=1,
        trained_images=7,
        loss_first=2.5,
        loss_last=2.25,
        predict_s=0.5,
        train_s=1.5,
        platform="browser",
    )
    spec = TaskSpec(
        run="run-1",
        round=3,
        artifacts=REF,
        base_model=REF,
        learning_rate=0.03,
        epochs=1,
        augmentations=6,
        augmentation=default_augmentation(),
        encoding="float32",
    )
    server: list[Frozen] = [
        Welcome(heartbeat_s=5.0, lease_s=30.0, resumed=(LEASE,)),
        Assignment(lease=LEASE, task=task),
        UploadOffset(upload=1, offset=524_288),
        UploadAccepted(lease=LEASE, upload=1),
        UploadRejected(lease=LEASE, upload=1, code="nonfinite", reason="the update has a NaN"),
        TaskRevoked(lease=LEASE, reason="the round is over"),
        Pong(),
        ErrorMessage(code="bad_message", message="type: unknown"),
    ]
    client: list[Frozen] = [
        Hello(protocol=1, token="secret", client="tab-1", engine="engine", resume=(LEASE,)),
        Ready(),
        ProgressMessage(lease=LEASE, phase="train", images_seen=20, mismatched_images=6, trained_images=14, loss=1.25),
        UploadBegin(lease=LEASE, upload=1, size=12, sha256="a" * 64),
        UploadCommit(lease=LEASE, upload=1, metrics=metrics),
        TaskFailed(lease=LEASE, reason="the client paused"),
        Leave(),
        Ping(),
    ]
    chunk = {"upload": 2**32 - 1, "offset": 2**40 + 5, "data": base64.b64encode(b"bytes").decode()}
    frame = base64.b64encode(encode_chunk(2**32 - 1, 2**40 + 5, b"bytes")).decode()
    return {
        "server": [message.model_dump(mode="json") for message in server],
        "client": [message.model_dump(mode="json") for message in client],
        "spec": spec.model_dump(mode="json"),
        "chunk": {**chunk, "frame": frame},
    }


if __name__ == "__main__":
    main()
