"""Options of the command line, read off the configuration's dataclasses: no default is written twice.

A field `dram_bytes` of [node] becomes `--dram-bytes`, a field of its nested table `compute` becomes `--compute-device`.
What was not given on the command line is not in the parsed arguments, so a file's value stands.
"""

import argparse
import contextlib
import dataclasses
import re
import typing
from collections.abc import Callable
from typing import Any

from kvstore.config import Config

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
DAYS_MAX = 36_500
"""Of what is made for a time: the calendar ends."""
_YEAR_S = 365 * 86_400
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def size(text: str) -> int:
    """Bytes of "512MiB", "1.5GiB", "64k" (1000s without the i) or "4096". Raises ArgumentTypeError."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 4096, 64KiB, 512MiB, 1.5GiB")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers within bounds; most None: no upper one. It raises ArgumentTypeError."""
    wanted = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        value = int(text) if text.isdecimal() else -1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {wanted}")
        return value

    return parse


def seconds(text: str) -> float:
    """A time to wait, more than none and up to a year. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (value := float(text)) <= _YEAR_S:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds: 0.5, 10")


def shown_size(count: int) -> str:
    """The shortest exact way to write a size: 1GiB, 512MiB, 4097."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        step = _UNITS[unit[:2].lower()]
        if count and count % step == 0:
            return f"{count // step}{unit}"
    return str(count)


def add_config_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="TOML file; variables KVSTORE_TABLE__NAME and options lie over it"
    )


def add_options(
    parser: argparse.ArgumentParser, table: str, *, prefix: str = "", leave_out: frozenset[str] = frozenset()
) -> None:
    """One option per field of the configuration's `table`.

    prefix: put before each name, where two tables meet in one command. leave_out: names of fields.
    """
    defaults = getattr(Config(), table)
    _add_fields(parser.add_argument_group(f"[{table}]"), type(defaults), table, prefix, leave_out)


def _add_fields(group: Any, cls: type, place: str, prefix: str, leave_out: frozenset[str]) -> None:
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in leave_out:
            continue
        text, nested = field.metadata["help"], dataclass_of(types[field.name])
        if nested is not None:
            _add_fields(group, nested, f"{place}.{field.name}", f"{prefix}{field.name}-", frozenset())
            continue
        group.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"),
            dest=f"{place}.{field.name}",
            default=argparse.SUPPRESS,
            help=f"{text} (default: {_shown(field)})".replace("%", "%%"),
            **_form(field.name, types[field.name]),
        )


def dataclass_of(annotation: Any) -> type | None:
    """The nested table's class, also of an optional one."""
    options = [annotation, *typing.get_args(annotation)]
    return next((option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)), None)


def _form(name: str, annotation: Any) -> dict[str, Any]:
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if annotation is int:
        metavar = "SIZE" if is_size(name) else "N"
    elif typing.get_origin(annotation) is tuple:
        metavar = "NAME,…"
    else:
        assert annotation is str, f"no option can be made of {name}: {annotation}"
        metavar = "TEXT"
    return {"type": parser_of(name, annotation), "metavar": metavar}


def parser_of(name: str, annotation: Any) -> Callable[[str], Any]:
    """What reads the text of a setting that is no switch."""
    if annotation is int:
        return size if is_size(name) else int
    return _names if typing.get_origin(annotation) is tuple else str


def is_size(name: str) -> bool:
    """Whether a number of this name counts bytes."""
    return "bytes" in name.split("_")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _shown(field: "dataclasses.Field[Any]") -> str:
    default = field.default
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, int):
        return shown_size(default) if is_size(field.name) else str(default)
    if isinstance(default, tuple):
        return ",".join(default) or "none"
    return str(default) or "empty"
