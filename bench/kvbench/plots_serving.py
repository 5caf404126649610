"""Pictures of what requests see: the gain of DualPath, goodput and latencies of engines, hit ratios, matches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from kvbench.plotting import At, Lines, Picture, draw_bars, draw_lines, legend, lines, log_axis, panels
from kvbench.result import Result

_SLO_SHARE = 0.9
_LATENCIES = {"ttft_s": "time to first token", "tpot_s": "time per token", "second_token_s": "time to second token"}


def dualpath(results: Sequence[Result]) -> Iterator[Picture]:
    """Over all runs together: one point for each number of storage NICs beside the reader's own."""
    gains: Lines = {"DualPath": []}
    bounds: dict[int, float] = {}
    for result in results:
        rates = result.settings.get("snic_mbit")
        gain = result.ratios.get("dual_vs_single")
        plain = not result.settings.get("fault") and not result.settings.get("background_share")
        if isinstance(rates, Mapping) and gain is not None and plain and len(set(rates.values())) == 1:
            helpers = sum(not name.startswith("prefill") for name in rates)
            readers = len(rates) - helpers
            if readers:
                gains["DualPath"].append(At(helpers, gain, gain, gain))
                bounds[helpers] = len(rates) / readers
    if bounds:
        figure, (axes,) = panels(1)
        reach = range(max(bounds) + 1)
        limit = "all NICs to the full"
        gains = {name: sorted(points) for name, points in gains.items()}
        ideal = [At(count, bounds.get(count, count + 1), 0, 0) for count in reach]
        draw_lines(axes, gains | {limit: ideal}, [*gains, limit], [limit])
        axes.set_xticks([*reach])
        axes.set_xlabel("helpers (nodes that lend their storage NIC)")
        axes.set_ylabel("speed, of the load over\nthe reader's own NIC alone")
        axes.set_ylim(bottom=0)
        legend(figure, [axes])
        yield Picture(
            "dualpath-gain",
            "DualPath: gain over helpers",
            "How many times as fast a history is read where helpers lend their storage NICs, all alike, on hosts of a"
            " testbed; dashed: what these NICs can carry. Runs with a fault or background load are in the tables.",
            figure,
        )


def serving(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        ways = [str(row.get("way", "?")) for row in result.measurements]
        yield from _goodput(result, ways, f"{result.bench}-{number + 1}")
        yield from _latencies(result, ways, f"{result.bench}-{number + 1}")


def _goodput(result: Result, ways: Sequence[str], name: str) -> Iterator[Picture]:
    tried = {
        str(row.get("way", "?")): sorted(
            At(one["rate"], one["attained"], one["attained"], one["attained"])
            for one in row.get("tried", [])
            if isinstance(one.get("rate"), int | float) and isinstance(one.get("attained"), int | float)
        )
        for row in result.measurements
    }
    if not any(tried.values()):
        return
    figure, (axes,) = panels(1)
    draw_lines(axes, tried, ways)
    axes.axhline(_SLO_SHARE, linestyle="--", color="#333333", linewidth=1.2, label=f"{_SLO_SHARE:.0%}: goodput ends")
    axes.set_ylim(0, 1.04)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel("requests within both aims")
    axes.set_xlabel("requests per second")
    legend(figure, [axes])
    yield Picture(
        f"{name}-goodput",
        f"{result.bench}: goodput over rate",
        f"The part of the requests that met both the time to the first token ({_aim(result, 'ttft')}) and the time per"
        f" token ({_aim(result, 'tpot')}), at each rate that was tried. Goodput is the highest rate at which it is"
        f" {_SLO_SHARE:.0%} or more.",
        figure,
    )


def _aim(result: Result, what: str) -> str:
    found = [
        f"{value:g} {name.rpartition('_')[2]}"
        for name, value in result.settings.items()
        if name.startswith(what) and isinstance(value, int | float)
    ]
    return found[0] if found else "as set"


def _latencies(result: Result, ways: Sequence[str], name: str) -> Iterator[Picture]:
    curves = {
        which: {
            str(row.get("way", "?")): [At(x, share, share, share) for x, share in row["curves"][which]]
            for row in result.measurements
            if isinstance(row.get("curves"), Mapping) and row["curves"].get(which)
        }
        for which in _LATENCIES
    }
    shown = [which for which in _LATENCIES if curves[which]]
    if not shown:
        return
    figure, all_axes = panels(len(shown))
    for axes, which in zip(all_axes, shown, strict=True):
        for way, points in curves[which].items():
            _curve(axes, points, ways, way)
        axes.set_title(_LATENCIES[which])
        axes.set_xscale("log")
        log_axis(axes.xaxis)
        axes.set_xlabel("seconds")
    all_axes[0].set_ylim(0, 1.02)
    all_axes[0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    all_axes[0].set_ylabel("of the requests")
    legend(figure, all_axes)
    yield Picture(
        f"{name}-latencies",
        f"{result.bench}: latencies at the goodput of each way",
        "The part of the requests that were served within so many seconds, at the highest rate at which each way met"
        " its aims: the rates differ, so compare the shapes, and the rates above.",
        figure,
    )


def _curve(axes: Any, points: Sequence[At], ways: Sequence[str], way: str) -> None:
    """Without markers: there are a hundred points."""
    draw_lines(axes, {way: [*points]}, ways)
    axes.lines[-1].set_marker("")


def replay(results: Sequence[Result]) -> Iterator[Picture]:
    for number, result in enumerate(results):
        rows = result.measurements
        ideal = result.extras.get("ideal_hit_ratio")
        ttls = {row.get("ttl_s") for row in rows}
        sizes = {row.get("tier_blocks") for row in rows}
        if sizes - {0, None}:
            longest = 0 if 0 in ttls else max(ttl for ttl in ttls if ttl is not None)
            mine = [row for row in rows if row.get("ttl_s") == longest and row.get("tier_blocks")]
            found = lines(mine, "policy", "tier_blocks", "hit_ratio")
            belady = lines(
                [{**row, "policy": "Belady (knows the future)"} for row in mine], "policy", "tier_blocks", "belady"
            )
            belady = {name: sorted(set(points)) for name, points in belady.items()}
            yield _hit_ratio(
                found | belady,
                [*belady],
                ideal,
                "blocks that fit",
                f"replay-capacity-{number + 1}",
                "Hit ratio over capacity",
            )
        if len(ttls - {0, None}) > 1:
            largest = 0 if 0 in sizes else max(size for size in sizes if size is not None)
            mine = [row for row in rows if row.get("tier_blocks") == largest and row.get("ttl_s")]
            found = lines(mine, "policy", "ttl_s", "hit_ratio")
            yield _hit_ratio(
                found,
                [],
                ideal,
                f"time to live, s ({result.settings.get('ttl_kind', '')})",
                f"replay-ttl-{number + 1}",
                "Hit ratio over time to live",
            )


def _hit_ratio(drawn: Lines, limits: list[str], ideal: Any, label: str, name: str, title: str) -> Picture:
    figure, (axes,) = panels(1)
    if isinstance(ideal, int | float):
        unbounded = "no bounds at all"
        xs = [point.x for points in drawn.values() for point in points]
        drawn = drawn | {unbounded: [At(x, ideal, ideal, ideal) for x in sorted({min(xs), max(xs)})]}
        limits = [*limits, unbounded]
    draw_lines(axes, drawn, [*drawn], limits)
    axes.set_xscale("log")
    xs = sorted({point.x for points in drawn.values() for point in points})
    axes.set_xticks(xs, [f"{x:,g}" for x in xs])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(label)
    axes.set_ylabel("of the prompts' blocks found")
    legend(figure, [axes])
    caption = "Of a trace that is replayed through the node's own catalog; exact on any machine."
    return Picture(name, title, caption, figure)


def match(results: Sequence[Result]) -> Iterator[Picture]:
    parts = []
    for result in results:
        found = lines([{**row, "x": 0} for row in result.measurements], "part", "x", "ms")
        if found:
            medians = {part: points[0].y for part, points in found.items()}
            parts.append((f"{result.settings.get('blocks', 0):,} blocks", medians))
    if parts:
        figure, (axes,) = panels(1, 3.6)
        names = [*dict.fromkeys(part for _, found in parts for part in found)]
        bars = {name: [found.get(part) for part in names] for name, found in parts}
        draw_bars(axes, [part.replace(" ", "\n") for part in names], bars, [*bars])
        axes.set_ylabel("ms, median")
        legend(figure, [axes])
        yield Picture(
            "match-parts",
            "A match, and its parts",
            "Milliseconds of a client's match of a whole prompt, and of its parts timed alone.",
            figure,
        )


PICTURES: dict[str, Callable[[Sequence[Result]], Iterator[Picture]]] = {
    "dualpath": dualpath,
    "goodput": serving,
    "agents": serving,
    "replay": replay,
    "match": match,
}
