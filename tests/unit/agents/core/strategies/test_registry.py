"""A strategy is found by name, or by module and class; what is unknown is refused."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agents.core.strategies as package
from agents.core.strategies.median import Median
from agents.core.strategies.registry import (
    StrategyNotAllowedError,
    StrategySettingsError,
    UnknownStrategyError,
    built_in,
    strategy_named,
)

OWN = '''
"""Nothing is learnt."""
from pydantic import Field
from agents.core.strategies.gathering import RunningMean
from agents.core.strategies.strategy import Strategy


class Standstill(Strategy[RunningMean]):
    NAME = {name!r}
    patience: int = Field(default=1, ge=0)

    def gather(self, parameters):
        return RunningMean(parameters)

    def step(self, gathered, step):
        step.model[:] = step.parent


class Unfinished(Strategy[RunningMean]):
    def gather(self, parameters):
        return RunningMean(parameters)
'''


@pytest.fixture
def fresh() -> Iterator[None]:
    built_in.cache_clear()
    yield
    built_in.cache_clear()


SHARED = {"strategy", "gathering", "registry"}


def test_every_file_of_the_package_but_those_that_all_share_is_one_strategy() -> None:
    files = {one.name for one in pkgutil.iter_modules(package.__path__)} - SHARED
    assert {found.__module__.rsplit(".", 1)[1] for found in built_in().values()} == files
    assert len(built_in()) == len(files)
    assert {"fedavg", "median", "fedadam"} <= set(built_in())


def test_a_strategy_is_added_with_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    (tmp_path / "added_standstill.py").write_text(OWN.format(name="standstill"))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert strategy_named("standstill", {"patience": 3}).model_dump() == {"patience": 3}


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "standstill_of_my_own.py").write_text(OWN.format(name=""))
    (tmp_path / "broken_of_my_own.py").write_text("raise RuntimeError('no')")
    monkeypatch.syspath_prepend(tmp_path)
    own = "broken_of_my_own,standstill_of_my_own,unmade_of_my_own:Standstill"
    allowed = f"os:system,pathlib, no_such_module:Class,{own},agents.core.strategies.strategy"
    monkeypatch.setenv("FEDBUS_STRATEGIES", allowed)
    return "standstill_of_my_own"


@pytest.mark.parametrize("allowed", ["", ",", "standstill", "standstill_of_my_own:Other", "other:Standstill"])
def test_a_class_that_nobody_allowed_is_not_imported(
    own_module: str, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    monkeypatch.setenv("FEDBUS_STRATEGIES", allowed)
    sys.modules.pop(own_module, None)
    with pytest.raises(StrategyNotAllowedError, match="may be imported") as refused:
        strategy_named(f"{own_module}:Standstill", {})
    assert f"FEDBUS_STRATEGIES={own_module}:Standstill" in refused.value.hint
    assert own_module not in sys.modules


def test_what_a_class_raises_when_it_is_made_is_a_typed_error(own_module: str, tmp_path: Path) -> None:
    unmade = "    def __init__(self, **settings):\n        1 / 0\n\n    patience: int"
    text = OWN.format(name="").replace("    patience: int", unmade)
    (tmp_path / "unmade_of_my_own.py").write_text(text)
    with pytest.raises(StrategySettingsError, match="ZeroDivisionError"):
        strategy_named("unmade_of_my_own:Standstill", {})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fedprox", "no strategy 'fedprox'"),
        ("", "no strategy"),
        ("FedAvg", "no strategy"),
        ("os;system:x", "no strategy"),
        ("os:system", "is no strategy"),
        ("pathlib:Path", "is no strategy"),
        ("no_such_module:Class", "cannot be imported"),
        ("pathlib:NoSuchClass", "cannot be imported"),
        ("broken_of_my_own:Class", "RuntimeError: no"),
        ("standstill_of_my_own:Unfinished", "is no strategy"),
        ("agents.core.strategies.strategy:Strategy", "is no strategy"),
    ],
)
def test_an_unknown_name_is_refused(own_module: str, name: str, said: str) -> None:
    with pytest.raises(UnknownStrategyError, match=said) as refused:
        strategy_named(name, {})
    assert refused.value.hint


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("fedavg", {"server_learning_rate": 0.1}),
        ("fedadam", {"learning_rate": 0.1}),
        ("fedadam", {"tau": 0}),
        ("fedadam", {"beta1": float("nan")}),
        ("fedadam", {"beta1": "much"}),
        ("median", {"NAME": "mean"}),
    ],
)
def test_a_setting_that_a_strategy_does_not_have_is_refused(name: str, settings: dict[str, object]) -> None:
    with pytest.raises(StrategySettingsError, match=f"strategy {name}: ") as refused:
        strategy_named(name, settings)
    assert "its settings: " in refused.value.hint


def test_a_strategy_is_a_value_that_cannot_change() -> None:
    assert strategy_named("fedadam", {"tau": 0.5}) == strategy_named("fedadam", {"tau": 0.5})
    assert isinstance(strategy_named("median", {}), Median)
