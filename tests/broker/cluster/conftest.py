"""Three brokers that are one, and three that a test can tear apart."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bus.broker.cluster import EmbeddedCluster, embedded_cluster, places
from bus.client import Bus
from tests.chaos.torn import Torn, torn_cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedCluster]:
    """A cluster for all tests that leave it as it is."""
    async with embedded_cluster(tmp_path_factory.mktemp("cluster") / "nats", places(3)) as servers:
        yield servers


@pytest_asyncio.fixture
async def clustered(cluster: EmbeddedCluster) -> AsyncIterator[Bus]:
    """A bus on the cluster; it is shared, so use a run of your own."""
    async with Bus.connect(cluster.settings_for(), name="test", wait_s=20) as connected:
        yield connected


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def torn(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Torn]:
    """A cluster of the module's own that its tests may tear, and heal."""
    async with torn_cluster(tmp_path_factory.mktemp("torn")) as found:
        yield found
