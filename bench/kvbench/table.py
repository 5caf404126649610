"""A result as tables: what was measured, then the ratios."""

from kvbench.result import Result
from kvstore.cli import tables


def show(result: Result) -> None:
    """Prints a result to standard output."""
    machine = result.machine
    columns = list(dict.fromkeys(name for point in result.results for name in point))
    points = ([shown(point.get(name, "")) for name in columns] for point in result.results)
    ratios = ((name, shown(value)) for name, value in result.ratios.items())
    tables.show(
        f"{result.bench}: {machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}",
        tables.table(columns, points),
        *([tables.table(("ratio", "value"), ratios)] if result.ratios else []),
        *(f"{name}: {shown(value)}" for name, value in result.extras.items()),
    )


def shown(value: object) -> str:
    """Three digits of a measured number; everything else as it is."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
