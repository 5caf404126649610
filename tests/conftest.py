"""Fixtures shared by all tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster import Cluster, cluster


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Cluster]:
    """An empty cluster of real processes; everything started in it is gone after the test."""
    async with cluster(tmp_path) as built:
        yield built
