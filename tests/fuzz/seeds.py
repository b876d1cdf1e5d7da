"""Valid inputs of every parser, small, from which the fuzzers begin."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from agents.core.exchange.messages import (
    Assignment,
    ErrorMessage,
    Hello,
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
from agents.core.learning.encodings import encode_update
from agents.words.events import (
    DroppedImage,
    ModelEvaluated,
    ModelPublished,
    RoundClosed,
    RoundExtended,
    RoundFailed,
    RoundStarted,
    RunFinished,
    Score,
    UpdateMetrics,
    UpdateRejected,
)
from agents.words.run_config import RunDataset, UserShard
from bus.recording.formats import FORMAT
from bus.words.envelope import new_event
from bus.words.payload import Payload
from bus.words.values import Frozen
from data.dataset import DatasetManifest, ImageEntry, ImageFormat, Part
from data.shards import encode_shard
from tests.builders import (
    ANY_REF,
    BASE,
    BASE_REF,
    RUN,
    START,
    Stream,
    assigned,
    config,
    labelled,
    planned,
    ref_of,
    run_started,
    submitted,
)

ROOT = Path(__file__).parents[2]
LEASE = "run.1.u1.3"
SHA256 = ANY_REF.sha256
METRICS = UpdateMetrics(
    predictions=(1, 1, 0), examples=2, mismatched_images=1, trained_images=7, loss_first=1.5, loss_last=0.5, train_s=1.0
)


@cache
def payloads() -> tuple[Payload, ...]:
    """One payload of every type."""
    return (
        run_started(config(users=2)),
        labelled("u1").model_copy(update={"dropped": (DroppedImage(index=1, reason="unknown", answer="?"),)}),
        RoundStarted(run=RUN, round=1, base_model=BASE_REF, fraction=0.5, quorum=1.0, deadline_s=60.0),
        planned(2, 2),
        assigned("u1"),
        submitted("u1"),
        UpdateRejected(run=RUN, round=1, user="u1", attempt="a-1", code="norm", reason="too large", client="c"),
        RoundExtended(run=RUN, round=1, extension=1, deadline=START),
        RoundClosed(run=RUN, round=1, reason="quorum", accepted=2, missing=0, rejected=0, through=9),
        RoundFailed(run=RUN, round=1, reason="nobody came"),
        ModelPublished(
            run=RUN,
            round=1,
            model=ANY_REF,
            parent=BASE_REF,
            inputs_digest=SHA256,
            strategy="fedavg",
            updates=2,
            examples=4,
        ),
        ModelEvaluated(
            run=RUN,
            round=1,
            model=SHA256,
            images=10,
            base=Score(accuracy=0.5, loss=1.25),
            updated=Score(accuracy=0.75, loss=1.0),
            details=ANY_REF,
        ),
        RunFinished(run=RUN, status="completed", rounds=1, final_model=ANY_REF),
    )


@cache
def events() -> list[bytes]:
    """One event of every type."""
    return [new_event(payload, source="seed").to_json() for payload in payloads()]


def subjects() -> list[bytes]:
    """Subjects of durable events."""
    return [b"ev.run.run.started", b"ev.run.task.assigned.1.u1", b"ev.run.update.rejected.1.u1.a-1"]


def client_messages() -> list[bytes]:
    """Every message of a client."""
    return _messages(
        Hello(protocol=1, token="secret", client="c-1", engine="native", resume=(LEASE,)),
        Ready(),
        ProgressMessage(lease=LEASE, phase="train", images_seen=3, mismatched_images=1, trained_images=7, loss=1.5),
        UploadBegin(lease=LEASE, upload=1, size=16, sha256=SHA256),
        UploadCommit(lease=LEASE, upload=1, metrics=METRICS),
        TaskFailed(lease=LEASE, reason="paused"),
        Ping(),
    )


def server_messages() -> list[bytes]:
    """Every message of the gateway."""
    return _messages(
        Welcome(heartbeat_s=10.0, lease_s=60.0, resumed=(LEASE,)),
        Assignment(lease=LEASE, task=assigned("u1")),
        UploadOffset(upload=1, offset=7),
        UploadAccepted(lease=LEASE, upload=1),
        UploadRejected(lease=LEASE, upload=1, code="norm", reason="too large"),
        TaskRevoked(lease=LEASE, reason="closed"),
        Pong(),
        ErrorMessage(code="bad_message", message="no"),
    )


def _messages(*messages: Frozen) -> list[bytes]:
    return [message.model_dump_json().encode() for message in messages]


def chunks() -> list[bytes]:
    """Binary frames."""
    return [encode_chunk(1, 0, b"\0" * 40), encode_chunk(2, 7, b"x"), encode_chunk(2**32 - 1, 2**64 - 1, b"x")]


def updates() -> list[bytes]:
    """An update in each encoding, with the three bytes that ``targets`` reads first."""
    delta = np.random.default_rng(0).standard_normal(1500).astype(np.float32)
    return [
        struct.pack("<BH", number, len(delta)) + encode_update(delta, encoding)
        for number, encoding in enumerate(("float32", "float16", "int8", "topk:0.25", "topk:1"))
    ]


def encodings() -> list[bytes]:
    """Names of encodings."""
    return [b"float32", b"float16", b"int8", b"topk:0.25", b"topk:1"]


@cache
def recordings() -> list[bytes]:
    """A recording as lines of JSON: of the present format, and of an older one that is upgraded."""
    manifest = json.dumps({"trainable_count": 4, "model": {"parameters_total": 8}, "files": {}}).encode()
    dataset = RunDataset(classes=("a", "b", "c"), users=(UserShard(user="u1", shard=ANY_REF),), held_out=ANY_REF)
    bodies = [manifest, dataset.model_dump_json().encode(), BASE.tobytes()]
    refs = [ref_of(body).model_copy(update={"media_type": "application/json"}) for body in bodies]
    started = run_started(config(users=1)).model_copy(update={"artifacts": refs[0], "dataset": refs[1]})
    stream = Stream()
    for payload in (started, labelled("u1"), planned(1, 1), assigned("u1"), submitted("u1")):
        stream.add(payload)
    header = {"run": RUN, "include": "replay", "events": len(stream.events), "objects": len(bodies)}
    lines: list[dict[str, object]] = []
    for stored in stream.events:
        event = json.loads(stored.event.to_json())
        lines.append(
            {"sequence": stored.sequence, "time": stored.time.isoformat(), "subject": event["subject"], "event": event}
        )
    for ref, body in zip(refs, bodies, strict=True):
        lines.append({"ref": ref.model_dump(), "base64": base64.b64encode(body).decode()})
    versions: list[dict[str, object]] = [{"fedbus-recording": FORMAT}, {"fedbus-recording": 1}]
    return [b"".join(json.dumps(line).encode() + b"\n" for line in [version | header, *lines]) for version in versions]


def recordings_gz() -> list[bytes]:
    """The recordings, compressed."""
    return [gzip.compress(one, mtime=0) for one in recordings()]


def artifact_manifests() -> list[bytes]:
    """The shipped manifest."""
    return [(ROOT / "artifacts" / "default" / "manifest.json").read_bytes()]


def datasets() -> list[bytes]:
    """The manifest of a data set of three images."""
    part = Part(path="images-00000.safetensors", first=0, count=3, sha256=SHA256)
    images = tuple(ImageEntry(id=f"i{n}", source=f"s{n}", label=None if n == 2 else "bag") for n in range(3))
    manifest = DatasetManifest(
        name="seed",
        licence="MIT",
        notice="",
        image=ImageFormat(size=8, channels=1),
        classes=("bag", "boot"),
        images=images,
        parts=(part,),
    )
    return [manifest.model_dump_json().encode()]


def shards() -> list[bytes]:
    """Shards with and without labels."""
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    return [encode_shard(images), encode_shard(images, np.array([0, 1]))]


@cache
def pictures() -> list[bytes]:
    """Small pictures in the usual formats and modes."""
    pixels = np.random.default_rng(1).integers(0, 256, (9, 11, 4), dtype=np.uint8)
    colour, found = Image.fromarray(pixels), list[bytes]()
    for kind, image in (
        ("PNG", colour),
        ("PNG", colour.convert("P")),
        ("PNG", Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)),
        ("JPEG", colour.convert("RGB")),
        ("GIF", colour.convert("P")),
        ("BMP", colour.convert("RGB")),
        ("WEBP", colour),
        ("TIFF", colour.convert("L")),
        ("PPM", colour.convert("RGB")),
        ("ICO", colour),
    ):
        stream = io.BytesIO()
        image.save(stream, kind)
        found.append(stream.getvalue())
    return found


def answers() -> list[bytes]:
    """What a labeller may say."""
    return [b"This is a sneaker.", b"bag", b"I don't know", b"tabby or tiger cat", b"ankle boots", b"snaeker"]


def replies() -> list[bytes]:
    """The text of a reply about two images."""
    return [b'{"image_1": "bag", "image_2": "sneaker"}']


def answer_files() -> list[bytes]:
    """Answers by image id."""
    return [b'{"a": "bag", "b": null, "c": "a cat", "d": "zebra"}']


def class_files() -> list[bytes]:
    """Class names as JSON and as lines."""
    return [b'["bag", "sneaker", "ankle boot, boot"]', b"bag\nsneaker\nankle boot\n"]


def label_files() -> list[bytes]:
    """Matched and set-aside answers."""
    aside = {"answer": "cat", "reason": "ambiguous", "candidates": ["tabby"]}
    file = {"matched": {"a": "bag"}, "ambiguous": {"b": aside}, "rejected": {"c": aside}, "classes": ["bag", "tabby"]}
    return [json.dumps(file | {"images": {"a": SHA256}}).encode()]


def recorded_labels() -> list[bytes]:
    """Recorded labels by user, by digest and as a matched file."""
    return [b'{"u1": ["bag", null], "u2": ["sneaker"]}', json.dumps({SHA256: "bag"}).encode(), *label_files()]


def truths() -> list[bytes]:
    """True classes by user."""
    return [b'{"u1": [0, 1, 4], "u2": [2]}']


def idx_files() -> list[bytes]:
    """Two images in the format of MNIST, plain and compressed."""
    plain = struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return [plain, gzip.compress(plain, mtime=0)]


def exchange_files() -> list[bytes]:
    """Data URLs by image id."""
    url = "data:image/png;base64," + base64.b64encode(pictures()[0]).decode()
    return [json.dumps({"a": url, "b": base64.b64encode(pictures()[3]).decode()}).encode()]


def ranges() -> list[bytes]:
    """Headers of range requests."""
    return [b"bytes=0-99", b"bytes=5-", b"bytes=-7", b"bytes=0-1,4-5"]
