"""Logging: one line per record on stderr."""

import logging
from collections.abc import Iterator

import pytest

from kvstore.observe import log


@pytest.fixture(autouse=True)
def _root_logger_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_lines_go_to_stderr_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    """What is below the level is silent; what is not is one line that names process, logger and level."""
    log.set_up("warning", "node")
    logger = logging.getLogger("kvstore.somewhere")
    logger.info("quiet")
    logger.warning("loud")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith(" W node kvstore.somewhere: loud\n")
    assert err.count("\n") == 1


def test_set_up_twice_logs_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The second set-up replaces the first."""
    log.set_up()
    log.set_up()
    logging.getLogger("x").error("once")
    assert capsys.readouterr().err.count("once") == 1
