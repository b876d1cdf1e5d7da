"""The undisturbed run that others are compared with, and what was survived."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.chaos.system import Outcome, complete, small
from tests.conftest import SURVIVED

RUNS = 20


@dataclass(frozen=True)
class Survived:
    """One disturbance and the run that went on to the same model all the same."""

    what: str
    outcome: Outcome

    def cells(self) -> tuple[str, str, str, str]:
        """A row of the table at the end."""
        restarts = sum(self.outcome.restarts.values())
        return (
            self.what,
            f"{self.outcome.seconds:5.1f} s",
            f"{restarts} restarts",
            f"model {self.outcome.model[:12]}",
        )


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
def survived(request: pytest.FixtureRequest) -> Iterator[list[Survived]]:
    """Where a test enters what a run survived, for the table at the end."""
    entries: list[Survived] = []
    yield entries
    request.node.user_properties += [(SURVIVED, one.cells()) for one in entries]
