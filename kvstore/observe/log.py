"""Logging of a process: lines on stderr, as text or as JSON. Standard output is for what a command answers.

A record may have fields: `log.info("load", extra=fields(number=7, bytes=4096))`. As text they follow the message as
name=value, in JSON they stand beside it.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from kvstore.errors import InvalidInput

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "info"
INHERIT = "inherit"
"""The level of a logger that follows the others."""
FORMATS = ("text", "json")
DEFAULT_FORMAT = "text"
_FIELDS = "kvstore_fields"


def set_up(level: str = DEFAULT_LEVEL, process: str = "", format: str = DEFAULT_FORMAT) -> None:
    """Sets up the root logger; what was set up before is replaced.

    level: one of LEVELS. process: named in every line, for outputs that several processes share. format: of FORMATS.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(process) if format == "json" else _Text(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Both say much about themselves at our debug level and nothing about us.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.WARNING)


def set_level(level: str, logger: str = "") -> str:
    """Changes what is logged from now on, and returns the level that held before.

    logger: one alone, with those below it, by its name (kvstore.node.loads); it may be given INHERIT as its level.
    Empty: all that have no level of their own. Raises InvalidInput for a level or a logger that does not exist.
    """
    if level not in LEVELS and (level != INHERIT or not logger):
        raise InvalidInput(f"log level {level!r}: one of {', '.join(LEVELS)} is needed, for one logger also {INHERIT}")
    if logger and logger not in logging.root.manager.loggerDict:
        raise InvalidInput(f"no logger {logger!r} here")
    changed = logging.getLogger(logger)
    before = logging.getLevelName(changed.level).lower() if changed.level else INHERIT
    changed.setLevel(logging.NOTSET if level == INHERIT else level.upper())
    return before


def fields(**values: Any) -> dict[str, Any]:
    """As `extra` of a logging call: values that JSON has. What is None is left out."""
    return {_FIELDS: {name: value for name, value in values.items() if value is not None}}


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    found: Mapping[str, Any] = getattr(record, _FIELDS, {})
    return found


class _Text(logging.Formatter):
    def __init__(self, process: str) -> None:
        name = f"{process} " if process else ""
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname).1s {name}%(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        words = (f" {name}={_shown(value)}" for name, value in _fields_of(record).items())
        return super().formatMessage(record) + "".join(words)


class _Json(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def _shown(value: Any) -> str:
    plain = isinstance(value, int | float) or (isinstance(value, str) and value.isidentifier())
    return str(value) if plain else json.dumps(value, separators=(",", ":"), default=str)
