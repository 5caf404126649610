"""Fixtures shared by all tests."""

import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

# The pytest plugin imports this after the last test. On Python 3.11.7 an import that pytest rewrites can fail when
# another thread compiles at the same time (python/cpython#106905), so it is done before there are any.
import hypothesis.internal.observability  # noqa: F401
import pytest

from tests.cluster import Cluster, cluster
from tests.inprocess import Site, at_rest, site

# Images of containers often set this. Each server that a test starts would then compile the whole package again, and
# each run all tests.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Cluster]:
    """An empty cluster of real processes; everything started in it is gone after the test."""
    async with cluster(tmp_path) as built:
        yield built


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    """Control planes, nodes and clients in the tests' process. At its end the nodes must hold nothing for anybody."""
    async with site(tmp_path) as built:
        yield built
        await at_rest(*built.nodes)


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """A command that is run inside the tests' process sets logging up; the next test has it as before."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
