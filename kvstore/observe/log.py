"""Logging of a process: one line of text per record, on stderr. Standard output is for what a command answers."""

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")
DEFAULT_LEVEL = "info"


def set_up(level: str = DEFAULT_LEVEL, process: str = "") -> None:
    """Sets up the root logger; what was set up before is replaced.

    level: one of LEVELS. process: named in every line, for outputs that several processes share.
    """
    handler = logging.StreamHandler(sys.stderr)
    name = f"{process} " if process else ""
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s.%(msecs)03d %(levelname).1s {name}%(name)s: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Both say much about themselves at our debug level and nothing about us.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("grpc").setLevel(logging.WARNING)
