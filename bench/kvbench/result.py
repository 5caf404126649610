"""What a bench returns: one object for programs (`--json`), and the source of the table for people.

schema        the number of this form
bench         the command's name
machine       what it ran on: CPUs, memory, kernel, NICs, disks, GPUs, versions, what UCX chose
settings      what was asked for
keys          the columns that name a measurement; two runs are compared where these are equal
measurements  one object per measured point: its keys, and figures. A figure is a number, or the summary of repeated
              ones: {"median", "p50", "p90", "p99", "spread", "count"}
ratios        numbers that compare with what the machine can do, or with another way
warnings      sentences: what speaks against the figures
…             headline figures of the bench (latencies such as `p50_ms`)
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench import machine, noise
from kvstore.errors import InvalidInput

SCHEMA = 2
_FIELDS: Mapping[str, type] = {
    "schema": int,
    "bench": str,
    "machine": dict,
    "settings": dict,
    "keys": list,
    "measurements": list,
    "ratios": dict,
    "warnings": list,
}


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one bench, JSON-safe. exit_code: of the command; it is not in the object."""

    bench: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    keys: tuple[str, ...]
    measurements: list[dict[str, Any]]
    ratios: dict[str, float]
    warnings: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0

    def fields(self) -> dict[str, Any]:
        """The JSON object."""
        fields = {
            "schema": SCHEMA,
            "bench": self.bench,
            "machine": self.machine,
            "settings": self.settings,
            "keys": [*self.keys],
            "measurements": self.measurements,
            "ratios": self.ratios,
            "warnings": self.warnings,
        }
        clash = fields.keys() & self.extras.keys()
        assert not clash, f"extras hide fields: {clash}"
        return fields | self.extras

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.fields())

    def named(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The measurements by the values of their keys."""
        return {tuple(row.get(key) for key in self.keys): row for row in self.measurements}


def of_this_machine(
    bench: str,
    *,
    settings: dict[str, Any],
    keys: tuple[str, ...],
    measurements: list[dict[str, Any]],
    ratios: dict[str, float],
    warnings: tuple[str, ...] = (),
    extras: dict[str, Any] | None = None,
) -> Result:
    """A result of this run, with the machine's description, and a warning where repetitions differ too much."""
    described = machine.describe()
    said = [*warnings, *machine.warnings(described), *noise.warnings(keys, measurements)]
    return Result(bench, described, settings, keys, measurements, ratios, said, extras or {})


def parse(fields: Any, source: str) -> Result:
    """A result from its JSON object. Raises InvalidInput with what is missing or of another kind."""
    if not isinstance(fields, dict):
        raise InvalidInput(f"{source}: not a result of kvbench: an object is needed")
    for name, kind in _FIELDS.items():
        if not isinstance(fields.get(name), kind):
            raise InvalidInput(f"{source}: not a result of kvbench: {name!r} must be of type {kind.__name__}")
    if fields["schema"] != SCHEMA:
        raise InvalidInput(f"{source}: of schema {fields['schema']}, this kvbench reads {SCHEMA}: run the bench again")
    if not all(isinstance(row, dict) for row in fields["measurements"]):
        raise InvalidInput(f"{source}: every measurement must be an object")
    figures = [figure for row in fields["measurements"] for figure in row.values() if noise.is_summary(figure)]
    if not all(isinstance(value, int | float) for figure in figures for value in figure.values()):
        raise InvalidInput(f"{source}: medians, percentiles, spreads and counts must be numbers")
    numbers = all(isinstance(value, int | float) for value in fields["ratios"].values())
    if not numbers or not all(isinstance(text, str) for text in [*fields["keys"], *fields["warnings"]]):
        raise InvalidInput(f"{source}: ratios must be numbers, keys and warnings strings")
    return Result(
        bench=fields["bench"],
        machine=fields["machine"],
        settings=fields["settings"],
        keys=tuple(fields["keys"]),
        measurements=fields["measurements"],
        ratios=fields["ratios"],
        warnings=fields["warnings"],
        extras={name: value for name, value in fields.items() if name not in _FIELDS},
    )


def read(path: Path) -> Result:
    """A result from the file that `--out` wrote. Raises InvalidInput."""
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise InvalidInput(f"{path}: not JSON: {error}") from error
    return parse(fields, str(path))
