"""The parsers of foreign input, each with what has to hold for any bytes, and with valid inputs to begin from.

A target may raise a ``FedbusError`` (the input was refused) and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.audit.replay import replay_run
from agents.core.exchange.messages import (
    MAX_CHUNK_BYTES,
    UploadCommit,
    encode_chunk,
    parse_chunk,
    parse_client_message,
    parse_server_message,
)
from agents.core.exchange.upload_rules import Expected, Progression, check_metrics, check_size, check_update
from agents.core.labels.label_file import match_answers
from agents.core.labels.matching import LabelMatcher
from agents.core.labels.sources import RecordedAnswers, SimulatedLabeller
from agents.core.learning.decoding import decode_update, update_norm
from agents.core.learning.encodings import encode_update, encoded_size
from agents.core.learning.magnitudes import LARGEST_VALUE
from agents.gateway.objects import UnsatisfiableRangeError, parse_range
from agents.labeller.label_file import read_answers, read_label_file
from agents.labeller.prompt import MalformedReply, Prompt
from artifacts.manifest import load_manifest
from bus.errors import FedbusError
from bus.process.logs import escaped
from bus.recording.files import load_recording
from bus.words.envelope import new_event, parse_event
from bus.words.subjects import event_subject, parse_event_subject
from data.class_names import read_class_names
from data.dataset import ImageFormat, load_dataset
from data.exchange import import_sources
from data.idx import read_idx
from data.pictures import Resizing, open_upright, read_picture
from data.shards import decode_shard, encode_shard
from tests.builders import ANY_REF, config
from tests.fuzz import seeds

CLASSES = ("sneaker", "ankle boot, boot", "bag", "tabby, tabby cat", "tiger cat")
ENCODINGS = ("float32", "float16", "int8", "topk:0.25", "topk:1", "topk:0.000000001")


@dataclass(frozen=True)
class Target:
    """One parser: ``check`` reads any bytes, ``seeds`` gives valid ones, ``share`` is its part of all inputs."""

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    share: float = 1.0


def refused(target: Target, data: bytes) -> bool:
    """Whether the target refuses ``data`` with a typed error; anything else that it raises comes out."""
    try:
        # The parsers must not warn either: an agent that runs with -W error would die of it.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            target.check(data)
    except FedbusError:
        return True
    return False


def _event(data: bytes) -> None:
    event = parse_event(data)
    subject = event_subject(event.data)
    answer = new_event(event.data, source="fuzz", cause=event)
    try:
        assert parse_event_subject(subject).run == event.data.run
        assert parse_event(event.to_json()) == event
        assert parse_event(answer.to_json()) == answer
    except FedbusError as error:
        raise AssertionError(f"an event that was taken is refused when it is told again: {error}") from error


def _subject(data: bytes) -> None:
    text = _text(data)
    parsed = parse_event_subject(text)
    assert ".".join(("ev", parsed.run, parsed.type, *parsed.rest)) == text


def _client_message(data: bytes) -> None:
    message = parse_client_message(_text(data))
    again = parse_client_message(message.model_dump_json())
    assert again == message


def _server_message(data: bytes) -> None:
    message = parse_server_message(_text(data))
    again = parse_server_message(message.model_dump_json())
    assert again == message


def _chunk(data: bytes) -> None:
    upload, offset, content = parse_chunk(data)
    assert 0 < len(content) <= MAX_CHUNK_BYTES
    assert encode_chunk(upload, offset, content) == data
    progress = Progression(size=5 * MAX_CHUNK_BYTES, offset=offset if upload % 2 else 7)
    progress.check(offset, len(content))
    assert offset + len(content) <= progress.size


def _update(data: bytes) -> None:
    """The first byte chooses the encoding and whether the length is made to fit, the next two the size."""
    if len(data) < 3:
        return
    encoding, fits, size = ENCODINGS[data[0] % len(ENCODINGS)], data[0] >= 128, int.from_bytes(data[1:3], "little")
    content = data[3:]
    if fits:
        wanted = encoded_size(encoding, size)
        content = content[:wanted].ljust(wanted, b"\0")
    run = config().model_copy(update={"max_update_norm": 1e6})
    run = run.model_copy(update={"training": run.training.model_copy(update={"encoding": encoding})})
    expected = Expected(run, size, ANY_REF.sha256, len(CLASSES), (0, 1, None))
    check_size(len(content), expected, 1 << 20)
    delta = decode_update(content, encoding, size)
    assert delta.shape == (size,)
    assert delta.dtype == np.float32
    assert np.isfinite(delta).all()
    norm = update_norm(content, encoding, size)
    assert math.isclose(norm, float(np.linalg.norm(delta.astype(np.float64))), rel_tol=1e-9, abs_tol=1e-30)
    assert len(encode_update(delta, "float32")) == 4 * size
    check_update(content, expected)
    assert norm <= 1e6
    check_update(content, dataclasses.replace(expected, largest_value=LARGEST_VALUE))
    assert np.abs(delta).max(initial=0) <= LARGEST_VALUE


def _encoding(data: bytes) -> None:
    assert 0 < encoded_size(_text(data), 1000) <= 8000


def _metrics(data: bytes) -> None:
    message = parse_client_message(_text(data))
    if isinstance(message, UploadCommit):
        labels = (0, 1, None)
        check_metrics(message.metrics, Expected(config(), 4, ANY_REF.sha256, len(CLASSES), labels))
        assert message.metrics.examples == 2


def _recording(data: bytes) -> None:
    recording = load_recording(_file("recording.jsonl", data))
    assert all(stored.event.data.run == recording.run for stored in recording.events)
    replay_run(recording.events, recording.objects)


def _recording_gz(data: bytes) -> None:
    load_recording(_file("recording.jsonl.gz", data))


def _artifact_manifest(data: bytes) -> None:
    _file("manifest.json", data)
    manifest = load_manifest(_folder(), verify=False)
    assert sum(tensor.count for tensor in manifest.trainable) == manifest.trainable_count
    assert all(file.ref.sha256 == file.sha256 for _, file in manifest.files.items())
    assert all((_folder() / file.path).resolve().is_relative_to(_folder()) for _, file in manifest.files.items())
    load_manifest(_folder())


def _dataset(data: bytes) -> None:
    _file("manifest.json", data)
    dataset = load_dataset(_folder(), verify=False)
    assert dataset.labels.shape == (len(dataset),)
    assert dataset.labels.max(initial=-1) < len(dataset.classes)
    load_dataset(_folder())


def _shard(data: bytes) -> None:
    images, labels = decode_shard(data)
    assert images.dtype == np.uint8
    assert images.ndim == 4
    again, _ = decode_shard(encode_shard(images, labels))
    assert np.array_equal(again, images)


def _picture(data: bytes) -> None:
    image = ImageFormat(size=12, channels=3 if len(data) % 2 else 1)
    pixels = read_picture(io.BytesIO(data), image, Resizing(shortest_edge=13 if len(data) % 3 else None))
    assert pixels.shape == (12, 12, image.channels)
    assert open_upright(io.BytesIO(data)).mode == "RGB"


def _match(data: bytes) -> None:
    verdict = _matcher().match(_text(data))
    indices = [verdict.index] if hasattr(verdict, "index") else list(verdict.candidates)
    assert all(0 <= index < len(CLASSES) for index in indices)


@functools.cache
def _matcher() -> LabelMatcher:
    return LabelMatcher(CLASSES)


def _reply(data: bytes) -> None:
    try:
        answers = Prompt(CLASSES).read(_text(data), 2)
    except MalformedReply:
        # The asker's own word for "ask again"; it stays inside the labeller.
        return
    assert [type(answer) for answer in answers] == [str, str]


def _answers(data: bytes) -> None:
    answers = read_answers(_file("answers.json", data))
    file = match_answers(answers, CLASSES, threshold=88)
    assert len(file.matched) + len(file.set_aside) == len(answers)


def _classes(data: bytes) -> None:
    names = read_class_names(_file("classes.txt", data))
    assert len(names) >= 2
    LabelMatcher(names).match("sneaker")


def _label_file(data: bytes) -> None:
    file = read_label_file(_file("labels.json", data))
    for id_ in list(file.set_aside)[:2]:
        file.settle(id_, "bag")


def _recorded_labels(data: bytes) -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    labels = RecordedAnswers(data, "recorded.json").label("u1", images, LabelMatcher(CLASSES))
    assert len(labels.labels) == 2


def _truth(data: bytes) -> None:
    labels = SimulatedLabeller(data, classes=len(CLASSES), error_rate=0.5, seed=1).label("u1")
    assert all(label is None or 0 <= label < len(CLASSES) for label in labels.labels)


def _idx(data: bytes) -> None:
    array = read_idx(_file("images.gz" if data[:1] == b"\x1f" else "images", data), rank=3)
    assert array.ndim == 3


def _exchange(data: bytes) -> None:
    for source in import_sources(None, _file("images.json", data))[:4]:
        with source.open() as stream:
            read_picture(stream, ImageFormat(size=8, channels=1), Resizing())


def _range(data: bytes) -> None:
    try:
        part = parse_range(_text(data), 1000)
    except UnsatisfiableRangeError:
        return
    assert part is None or 0 <= part[0] < part[1] <= 1000


def _log_line(data: bytes) -> None:
    text = escaped(_text(data))
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or char in "\u2028\u2029" for char in text)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fedbus-fuzz-")


def _folder() -> Path:
    return Path(_temporary().name).resolve()


def _file(name: str, data: bytes) -> Path:
    path = _folder() / name
    path.write_bytes(data)
    return path


TARGETS = {
    target.name: target
    for target in (
        Target("event", _event, seeds.events, 3.0),
        Target("subject", _subject, seeds.subjects),
        Target("client-message", _client_message, seeds.client_messages, 3.0),
        Target("server-message", _server_message, seeds.server_messages),
        Target("chunk", _chunk, seeds.chunks),
        Target("update", _update, seeds.updates),
        Target("encoding", _encoding, seeds.encodings),
        Target("metrics", _metrics, seeds.client_messages),
        Target("recording", _recording, seeds.recordings, 0.3),
        Target("recording-gz", _recording_gz, seeds.recordings_gz, 0.3),
        Target("artifact-manifest", _artifact_manifest, seeds.artifact_manifests, 0.3),
        Target("dataset", _dataset, seeds.datasets, 0.3),
        Target("shard", _shard, seeds.shards),
        Target("picture", _picture, seeds.pictures, 0.5),
        Target("match", _match, seeds.answers),
        Target("reply", _reply, seeds.replies),
        Target("answers", _answers, seeds.answer_files, 0.3),
        Target("classes", _classes, seeds.class_files, 0.3),
        Target("label-file", _label_file, seeds.label_files, 0.3),
        Target("recorded-labels", _recorded_labels, seeds.recorded_labels, 0.1),
        Target("truth", _truth, seeds.truths, 0.1),
        Target("idx", _idx, seeds.idx_files, 0.3),
        Target("exchange", _exchange, seeds.exchange_files, 0.1),
        Target("range", _range, seeds.ranges),
        Target("log-line", _log_line, seeds.answers),
    )
}
