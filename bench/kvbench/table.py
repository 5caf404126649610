"""A result as tables: what was measured, then the ratios, then what speaks against them."""

from collections.abc import Iterator, Mapping
from typing import Any

from kvbench import noise
from kvbench.result import Result
from kvstore.cli import tables

_PERCENTILES_OF = 20
"""Values from which on their percentiles are shown."""


def show(result: Result) -> None:
    """Prints a result to standard output."""
    ratios = ((name, shown(value)) for name, value in result.ratios.items())
    tables.show(
        f"{result.bench}: {machine_in_a_line(result.machine)}",
        *(tables.table(*flat(part)) for part in parts(result)),
        *([tables.table(("ratio", "value"), ratios)] if result.ratios else []),
        *(f"{name}: {shown(value)}" for name, value in result.extras.items() if not isinstance(value, list | dict)),
        *(f"warning: {text}" for text in result.warnings),
    )


def machine_in_a_line(machine: Mapping[str, Any]) -> str:
    """What a file that somebody wrote leaves out is a question mark."""
    known = {name: machine.get(name, "?") for name in ("cpus", "cpu", "kernel", "transports")}
    return "{cpus} CPUs ({cpu}), Linux {kernel}, UCX over {transports}".format(**known)


def parts(result: Result) -> list[list[dict[str, Any]]]:
    """The measurements, those together that have a figure in common: beside others most of their row would be empty.
    Those with the most figures come first."""
    found: list[tuple[set[str], list[int]]] = []
    for number, row in enumerate(result.measurements):
        names, members = set(row) - set(result.keys), [number]
        for other in [each for each in found if each[0] & names]:
            found.remove(other)
            names |= other[0]
            members += other[1]
        found.append((names, members))
    found.sort(key=lambda each: (-len(each[0]), min(each[1])))
    return [[result.measurements[number] for number in sorted(members)] for _, members in found]


def flat(measurements: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of text. A summary is its median with its spread, and its percentiles where it has many; named
    parts of a whole stand in one cell."""
    cells = [dict(pair for name, value in row.items() for pair in _cells(name, value)) for row in measurements]
    columns = list(dict.fromkeys(name for row in cells for name in row))
    return columns, [[row.get(name, "") for name in columns] for row in cells]


def _cells(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and not noise.is_summary(value):
        if value and all(isinstance(part, int | float) for part in value.values()):
            yield name, "; ".join(f"{part} {shown(share)}" for part, share in value.items())
        return  # curves: for programs and for the report
    if isinstance(value, list):
        return
    if not isinstance(value, Mapping):
        yield name, shown(value)
        return
    yield name, f"{shown(value['median'])} ±{value['spread'] / 2:.0%}"
    if value["count"] >= _PERCENTILES_OF:
        yield from ((f"{name}, {share}", shown(value[share])) for share in ("p90", "p99"))


def shown(value: object) -> str:
    """Three digits of a measured number; everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
