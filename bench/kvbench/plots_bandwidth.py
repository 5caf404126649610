"""Pictures of what moves bytes: transfers, small operations, the disk, the tiers, and other systems."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvbench.plotting import Lines, Picture, at, draw_bars, draw_lines, legend, lines, log_axis, panels, size_axis
from kvbench.result import Result
from kvbench.yardsticks import FIO, MEMCPY, MEMCPY_XXH3, PERFTEST, SOCKET
from kvstore.cli.options import shown_size

_PANELS = 3
Rows = list[dict[str, Any]]


def transfer(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        over = result.settings.get("chosen", result.settings.get("transport", "?"))
        yield from _over_sizes(
            result.measurements,
            name=f"transfer-{number + 1}",
            title=f"Bandwidth between two processes over {over}",
            caption="GB/s by the size of one message, for so many messages in flight; bands reach over half of the"
            " repetitions' spread to each side. Dashed: what the machine itself can do in the same run.",
            by="contestant",
            x="size_bytes",
            panel="in_flight",
            panel_title="{} in flight",
            limits=(SOCKET, PERFTEST),
        )


def ops(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        lone = [row for row in result.measurements if row.get("concurrency") == 1]
        yield from _over_sizes(
            lone,
            name=f"ops-bandwidth-{number + 1}",
            title="Operations one after the other: bandwidth",
            caption="GB/s of put, of get on the same host and of get from another node, by the size of a block, for so"
            " many blocks a call; both axes are logarithmic. Dashed: one thread's memcpy of the same bytes.",
            by="operation",
            x="block_bytes",
            panel="batch",
            panel_title="batch of {}",
            limits=(MEMCPY,),
            log=True,
        )
        batches = _drawn(result.measurements, "batch")
        yield from _over_sizes(
            [row for row in _with_floor(result.measurements, batches[:1]) if row.get("operation") != MEMCPY],
            name=f"ops-latency-{number + 1}",
            title="Operations of the fewest blocks: latency",
            caption="Median milliseconds of a call, by the size of a block, for so many calls at once; both axes are"
            " logarithmic. Dashed: the smallest call to the node.",
            by="operation",
            x="block_bytes",
            y="ms",
            unit="ms",
            panel="concurrency",
            panel_title="{} at once",
            limits=("rpc",),
            log=True,
        )


def _with_floor(rows: Rows, batches: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Those of so many blocks; and calls that carry none, at every size."""
    sizes = _drawn(rows, "block_bytes")
    for row in rows:
        if "block_bytes" in row:
            if row.get("batch") in batches:
                yield row
        elif row.get("batch", *batches) in batches if batches else False:
            yield from ({**row, "block_bytes": size} for size in sizes)


def nvme(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        depths = _drawn(result.measurements, "depth")
        plain = [
            row for row in result.measurements if row.get("compression") == "plain" and row.get("depth") in depths[-1:]
        ]
        yield from _over_sizes(
            plain,
            name=f"nvme-{number + 1}",
            title=f"NVMe tier at depth {depths[-1] if depths else '?'}",
            caption="GB/s by the size of a block, checksums on; dashed: fio on the same disk, in turn with it.",
            by="contestant",
            x="block_bytes",
            panel="operation",
            panel_title="{}",
            limits=(FIO,),
        )


def local(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        paths = lines(result.measurements, "path", "block_bytes", "gb_per_s")
        if paths:
            sizes = _drawn(result.measurements, "block_bytes")
            figure, (axes,) = panels(1, 3.6)
            draw_bars(
                axes, [shown_size(size) for size in sizes], _heights(paths, sizes), [*paths], (MEMCPY, MEMCPY_XXH3)
            )
            axes.set_ylabel("GB/s")
            axes.set_xlabel("size of a block")
            legend(figure, [axes])
            yield Picture(
                f"local-{number + 1}",
                "One host: store and load beside memcpy",
                "GB/s, median of the rounds, one thread each.",
                figure,
            )


def peers(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        contests = [each for each in ("get", "put", "transfer") if _of(result.measurements, "contest", each)]
        if not contests:
            continue
        figure, all_axes = panels(len(contests), 3.8)
        sizes = _drawn(result.measurements, "size_bytes")
        order = _drawn([row for row in result.measurements if row.get("contest") in contests], "contestant")
        for axes, contest in zip(all_axes, contests, strict=True):
            found = lines(_of(result.measurements, "contest", contest), "contestant", "size_bytes", "gb_per_s")
            draw_bars(axes, [shown_size(size) for size in sizes], _heights(found, sizes), order)
            axes.set_title(contest)
            axes.set_xlabel("size of a block")
        all_axes[0].set_ylabel("GB/s")
        legend(figure, all_axes)
        yield Picture(
            f"peers-{number + 1}",
            "Beside other systems",
            "GB/s, median of the rounds, in turn on the same machine. put: until another host can read it; get: from"
            " another host's memory; transfer: the libraries alone.",
            figure,
        )


def tiers(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        pairs = [row for row in result.measurements if at({**row, "x": 0}, "x", "gb_per_s") is not None]
        if not pairs:
            continue
        names = [f"{row.get('source', '?')} → {row.get('target', '?')}" for row in pairs]
        figure, (axes,) = panels(1, 3.8)
        bars = {"kvstore": _medians(pairs, "gb_per_s"), "limit": _medians(pairs, "limit_gb_per_s")}
        draw_bars(axes, [name.replace(" → ", "\n→ ") for name in names], bars, [*bars], ("limit",))
        axes.set_ylabel("GB/s")
        legend(figure, [axes])
        yield Picture(
            f"tiers-{number + 1}",
            "Between tiers",
            "GB/s of blocks from one tier to another, each beside what the machine itself can do on the same way in"
            " the same run (see the table for what that is). Pairs that this machine lacks are in the table alone.",
            figure,
        )


def _over_sizes(
    rows: Rows,
    *,
    name: str,
    title: str,
    caption: str,
    by: str,
    x: str,
    panel: str,
    panel_title: str,
    limits: Sequence[str],
    y: str = "gb_per_s",
    unit: str = "GB/s",
    log: bool = False,
) -> Iterator[Picture]:
    """A panel for each value of a column: the least, the greatest and one between where there are more than fit."""
    rows = [row for row in rows if at(row, x, y) is not None and by in row]
    values = _spaced(_drawn(rows, panel), _PANELS)
    if not values:
        return
    order = [*dict.fromkeys(str(row[by]) for row in rows)]
    figure, all_axes = panels(len(values))
    for axes, value in zip(all_axes, values, strict=True):
        mine = _of(rows, panel, value)
        drawn = lines(mine, by, x, y)
        draw_lines(axes, drawn, order, limits)
        size_axis(axes, _drawn(mine, x), "size of a block" if x == "block_bytes" else "size of a message")
        axes.set_title(panel_title.format(value))
        if log:
            axes.set_yscale("log")
            log_axis(axes.yaxis)
    if not log:
        all_axes[0].set_ylim(bottom=0)
    all_axes[0].set_ylabel(unit)
    legend(figure, all_axes)
    yield Picture(name, title, caption, figure)


def _heights(found: Lines, sizes: Sequence[int]) -> dict[str, list[float | None]]:
    return {
        name: [next((point.y for point in points if point.x == size), None) for size in sizes]
        for name, points in found.items()
    }


def _medians(rows: Iterable[Mapping[str, Any]], name: str) -> list[float | None]:
    found = [at({**row, "x": 0}, "x", name) for row in rows]
    return [point.y if point is not None else None for point in found]


def _of(rows: Iterable[dict[str, Any]], column: str, value: Any) -> Rows:
    return [row for row in rows if row.get(column) == value]


def _drawn(rows: Iterable[Mapping[str, Any]], column: str) -> list[Any]:
    """The different values of a column: numbers in order, names as they come."""
    found = [*dict.fromkeys(row[column] for row in rows if isinstance(row.get(column), int | float | str))]
    return sorted(found) if all(isinstance(value, int | float) for value in found) else found


def _spaced(values: list[Any], count: int) -> list[Any]:
    if len(values) <= count:
        return values
    return [values[round(place * (len(values) - 1) / (count - 1))] for place in range(count)]


PICTURES: dict[str, Callable[[Sequence[Result]], Iterator[Picture]]] = {
    "transfer": transfer,
    "ops": ops,
    "local": local,
    "nvme": nvme,
    "tiers": tiers,
    "peers": peers,
}
