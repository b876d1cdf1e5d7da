"""The vectors that TypeScript is tested with are what the Python side computes today."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from agents.core.exchange.messages import ClientMessage, ServerMessage, parse_client_message, parse_server_message
from tests.vectors.make_vectors import FOLDER, all_vectors

NAMES = sorted(all_vectors())


@pytest.mark.parametrize("name", NAMES)
def test_vectors_are_up_to_date(name: str) -> None:
    recorded = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    computed = json.loads(json.dumps(all_vectors()[name]))
    assert recorded == computed, "run `python -m tests.vectors.make_vectors` and have the browser client follow"


@pytest.mark.parametrize(
    ("side", "parse", "union"),
    [("client", parse_client_message, ClientMessage), ("server", parse_server_message, ServerMessage)],
)
def test_every_message_has_a_sample_that_is_understood(side: str, parse: Callable[[str], Any], union: Any) -> None:
    samples = json.loads((FOLDER / "protocol.json").read_text(encoding="utf-8"))[side]
    messages = get_args(get_args(union)[0])
    assert len(messages) >= 7
    assert {type(parse(json.dumps(sample))) for sample in samples} == set(messages)
