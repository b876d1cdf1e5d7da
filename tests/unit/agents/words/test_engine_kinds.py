from __future__ import annotations

import pytest

from agents.words.engine_kinds import EngineKind, kind_of
from agents.words.events import UpdateSubmitted
from bus.recording.files import Recording


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("onnxruntime-web 1.19.2 wasm, 1 thread", "browser"),
        ("onnxruntime-web/1.30 webgpu", "browser"),
        ("onnxruntime-training native", "native"),
        ("synthetic native", "native"),
        ("onnxruntime-training", "native"),
        ("onnxruntime-training/1.19.2 native, 2 threads", "native"),
        ("torch/2.1 native", "native"),
        ("litert browser", "browser"),
        ("abacus 2", "other"),
        ("alternative 1", "other"),
        ("", "other"),
    ],
)
def test_a_name_says_its_kind_or_its_library_does(engine: str, kind: EngineKind) -> None:
    assert kind_of(engine) == kind


def test_the_engines_of_an_old_recording_have_their_kind(recorded_run: Recording) -> None:
    updates = [one.event.data for one in recorded_run.events if isinstance(one.event.data, UpdateSubmitted)]
    kinds = {one.client: kind_of(one.engine) for one in updates}
    assert kinds == {"browser-1": "browser", "native-1": "native"}
