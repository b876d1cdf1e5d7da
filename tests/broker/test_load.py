"""The short form of ``make load``: many clients of one gateway at once, and a ledger that holds."""

from __future__ import annotations

import pytest

from benchmarks.load import load


@pytest.mark.timeout(180)
async def test_sixty_clients_at_once_lose_nothing() -> None:
    figures = await load(clients=60, users=120, rounds=2, minutes=0)
    assert figures["updates"] == 2 * 120
    assert 0 < figures["latency_p50_s"] <= figures["latency_p99_s"]
    assert {name for name in figures if name.endswith("_mb_end")} >= {"gateway_mb_end", "aggregator_mb_end"}
