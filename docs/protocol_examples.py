"""One of each message and value that docs/protocol.md shows, about one task of one run."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel

from agents.core.exchange import messages as said
from agents.core.exchange.limits import Limits
from agents.words.events import TaskAssigned, UpdateMetrics
from agents.words.run_config import AugmentationSpec, TaskSpec
from bus.words.values import Ref

LEASE = "shop.1.user-007.1"


def ref(data: bytes, media_type: str = "application/octet-stream") -> Ref:
    """The reference to these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return Ref(name=f"sha256-{digest}", size=len(data), sha256=digest, media_type=media_type)


UPDATE = ref(bytes(4 * 8842))
TASK = TaskAssigned(
    run="shop",
    round=1,
    user="user-007",
    shard=ref(b"images", "application/x-safetensors"),
    labels=(7, 8, None, 0),
    spec=ref(b"spec", "application/json"),
    seed=3735928559,
)
METRICS = UpdateMetrics(
    predictions=(7, 1, 3, 0),
    examples=3,
    mismatched_images=1,
    trained_images=7,
    loss_first=2.31,
    loss_last=2.31,
    predict_s=0.05,
    train_s=0.4,
    platform="native",
)
AUGMENTATION = AugmentationSpec(cos=(64540, 65536, 64540), sin=(-11380, 0, 11380), inverse_scale=(72818, 65536, 59578))
SPEC = TaskSpec(
    run="shop",
    round=1,
    artifacts=ref(b"manifest", "application/json"),
    base_model=ref(bytes(4 * 8842)),
    learning_rate=0.03,
    epochs=1,
    augmentations=6,
    augmentation=AUGMENTATION,
    encoding="float32",
)
EXAMPLES: tuple[BaseModel, ...] = (
    said.Hello(protocol=said.PROTOCOL_VERSION, token="TOKEN", client="lab-3", engine="my-engine/1.0"),
    said.Ready(),
    said.ProgressMessage(lease=LEASE, phase="train", images_seen=4, mismatched_images=1, trained_images=7, loss=2.31),
    said.UploadBegin(lease=LEASE, upload=1, size=UPDATE.size, sha256=UPDATE.sha256),
    said.UploadCommit(lease=LEASE, upload=1, metrics=METRICS),
    said.TaskFailed(lease=LEASE, reason="no memory for this model"),
    said.Leave(),
    said.Ping(),
    said.Welcome(heartbeat_s=Limits().heartbeat_s, lease_s=Limits().lease_s, chunk_bytes=Limits().chunk_bytes),
    said.Assignment(lease=LEASE, task=TASK),
    said.UploadOffset(upload=1, offset=0),
    said.UploadAccepted(lease=LEASE, upload=1),
    said.UploadRejected(lease=LEASE, upload=1, code="digest", reason="the bytes do not have the announced digest"),
    said.TaskRevoked(lease=LEASE, reason="the round is over"),
    said.Pong(),
    said.ErrorMessage(code="unknown_lease", message="this lease is over or was never this client's"),
)
