"""The vectors that TypeScript is tested with are what the Python side computes today."""

from __future__ import annotations

import json

import pytest

from agents.core.protocol import parse_client_message, parse_server_message
from tests.vectors.make_vectors import FOLDER, all_vectors

NAMES = sorted(all_vectors())


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_up_to_date(name: str) -> None:
    recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    computed = json.loads(json.dumps(all_vectors()[name]))
    assert recorded == computed, "run `python -m tests.vectors.make_vectors` and have the browser client follow"


def test_the_gateway_understands_each_recorded_message() -> None:
    samples = json.loads((FOLDER / "protocol.json").read_text(encoding="utf-8"))
    client = [parse_client_message(json.dumps(sample)).type for sample in samples["client"]]
    server = [parse_server_message(json.dumps(sample)).type for sample in samples["server"]]
    assert len(set(client)) == 7
    assert len(set(server)) == 8
