"""The undisturbed run that others are compared with, and the table of what was survived."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.chaos.system import Outcome, complete, small

RUNS = 20
SURVIVED = pytest.StashKey[list["Survived"]]()


@dataclass(frozen=True)
class Survived:
    """One disturbance and the run that went on to the same model all the same."""

    what: str
    outcome: Outcome


Undisturbed = Callable[[str], Awaitable[Outcome]]


@pytest.fixture(scope="session")
def undisturbed_with(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The small run of a strategy with nothing in its way; each is run once."""
    outcomes: dict[str, Outcome] = {}

    async def run(strategy: str) -> Outcome:
        if strategy not in outcomes:
            folder = tmp_path_factory.mktemp("undisturbed") / "system"
            outcomes[strategy] = _sound(await complete(folder, config=small(strategy=strategy)))
        return outcomes[strategy]

    return run


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def undisturbed(undisturbed_with: Undisturbed) -> Outcome:
    """The small run of the default strategy with nothing in its way."""
    return await undisturbed_with("fedavg")


def _sound(outcome: Outcome) -> Outcome:
    assert outcome.status == "completed"
    assert outcome.verdict.problems == []
    assert outcome.restarts == {}
    return outcome


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runs", type=int, default=RUNS, help="how many runs in a row a cluster has to get through")


@pytest.fixture
def runs(request: pytest.FixtureRequest) -> int:
    """How many runs in a row a cluster has to get through."""
    return int(request.config.getoption("--runs", RUNS))


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> list[Survived]:
    """Where a test enters what a run survived, for the table at the end."""
    return request.config.stash.setdefault(SURVIVED, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    entries = config.stash.get(SURVIVED, [])
    if not entries:
        return
    terminalreporter.section("survived, with the same final model and a clean ledger")
    width = max(len(one.what) for one in entries)
    for one in entries:
        restarts = sum(one.outcome.restarts.values())
        seconds = f"{one.outcome.seconds:5.1f} s"
        model = one.outcome.model[:12]
        terminalreporter.write_line(f"{one.what:{width}}  {seconds}  {restarts} restarts  model {model}")
    terminalreporter.write_line(f"{len(entries)} disturbances survived")
