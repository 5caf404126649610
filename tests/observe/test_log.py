"""Logging: one line per record on stderr."""

import json
import logging
from datetime import datetime

import pytest

from kvstore.errors import InvalidInput
from kvstore.observe import log


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


def test_fields_follow_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    """As text they are name=value; what is None is left out, what is no word is JSON."""
    log.set_up(process="node")
    logging.getLogger("x").info("load", extra=log.fields(number=3, who="acme", gone=None, paths=[{"bytes": 1}]))
    assert capsys.readouterr().err.endswith(' I node x: load number=3 who=acme paths=[{"bytes":1}]\n')


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One object per line, whatever the message has in it; an exception is part of it."""
    log.set_up(process="node", format="json")
    logging.getLogger("x").info("two\nlines", extra=log.fields(number=3))
    try:
        raise ValueError("wrong")
    except ValueError:
        logging.getLogger("x").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {"level": "info", "process": "node", "logger": "x", "message": "two\nlines", "number": 3}
    assert second["level"] == "error"
    assert second["exception"].endswith("ValueError: wrong")


def test_levels_change_while_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """For all, or for one logger until it follows the others again; each change answers what held before."""
    log.set_up("warning")
    logger = logging.getLogger("kvstore.tests.log")
    assert log.set_level("info") == "warning"
    logger.info("one")
    assert log.set_level("error", "kvstore.tests.log") == "inherit"
    logger.info("two")
    assert log.set_level("inherit", "kvstore.tests.log") == "error"
    logger.info("three")
    assert [line.split()[-1] for line in capsys.readouterr().err.splitlines()] == ["one", "three"]


@pytest.mark.parametrize(("level", "logger"), [("loud", ""), ("inherit", ""), ("", ""), ("info", "kvstore.nothing")])
def test_what_does_not_exist_is_refused(level: str, logger: str) -> None:
    """A level or a logger nobody has; nothing is changed, and no logger is made."""
    before = logging.getLogger().level
    with pytest.raises(InvalidInput):
        log.set_level(level, logger)
    assert logging.getLogger().level == before
    assert "kvstore.nothing" not in logging.root.manager.loggerDict
