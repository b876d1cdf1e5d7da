"""The class in ``docs/strategies.md`` is a strategy that does what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from agents.core.rounds.aggregation import RoundAggregation
from agents.core.strategies.registry import built_in
from tests.builders import BASE, Stream, assigned, config, planned, run_started, submitted

PAGE = (Path(__file__).parents[3] / "docs" / "strategies.md").read_text()


def test_the_page_names_strategies_and_settings_that_exist() -> None:
    rows = [re.findall(r"`(\w+)`", line) for line in PAGE.splitlines() if line.startswith("| `")]
    assert len(rows) >= 3
    for name, *settings in rows:
        assert settings == list(built_in()[name].model_fields)


def test_the_class_of_the_page_makes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "strategy_of_the_page.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("FEDBUS_STRATEGIES", "strategy_of_the_page")
    run = config(users=5).model_copy(
        update={"strategy": "strategy_of_the_page:TrimmedMean", "strategy_settings": {"cut": 0.2}}
    )
    stream, one = Stream(), RoundAggregation(run_started(run), 1)
    one.fold(stream.add(planned(5, 5)))
    for index, value in enumerate((-1e3, 1.0, 2.0, 3.0, 1e3)):
        delta = np.full(BASE.size, value, "<f4")
        one.fold(stream.add(assigned(f"u{index}")))
        one.fold(stream.add(submitted(f"u{index}", delta)))
        one.add(one.wanted()[0], delta.tobytes())
    made = one.made(BASE.tobytes(), None)
    assert made is not None
    assert made.model.tolist() == [2.0] * BASE.size
