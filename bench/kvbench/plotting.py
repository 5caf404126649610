"""How the pictures of a report look: colours that everybody can tell apart, axes with units, SVG of one kind."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kvbench import noise
from kvstore.cli.options import shown_size
from kvstore.errors import Unavailable

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import (
        FixedFormatter,
        FixedLocator,
        FormatStrFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )
except ImportError as error:
    raise Unavailable("matplotlib is not installed, and pictures need it: pip install 'kvstore[bench]'") from error

# Okabe and Ito's, without the yellow that is lost on white; in an order in which neighbours differ in lightness too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LIMIT_STYLES: tuple[Any, ...] = ("--", ":", "-.")
_LIMIT_COLOUR = "#333333"
_LIMIT_BARS = ("#AAAAAA", "#777777")
_AROUND_POINT = 0.8
_PANELS_MAX = 3
_LETTERS_PER_IN = 11
_SIGN_LETTERS = 6  # the piece of line before a legend's text, and what separates two of them
_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.hashsalt": "kvbench",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of a report. name: of its file. caption: what is to be seen, and how it was measured."""

    name: str
    title: str
    caption: str
    figure: Figure


class At(NamedTuple):
    """One point of a line; low and high: how far its repetitions reach."""

    x: float
    y: float
    low: float
    high: float


Lines = dict[str, list[At]]


def panels(count: int, height_in: float = 3.4) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels side by side (at most three) that share their vertical axis."""
    shown = min(count, _PANELS_MAX)
    with rc_context(_STYLE):
        figure = Figure(figsize=(max(6.4, 3.6 * shown), height_in), layout="constrained")
        axes = figure.subplots(1, shown, sharey=True, squeeze=False)
    return figure, [*axes[0]]


def svg(figure: Figure) -> str:
    """The same text for the same figure."""
    text = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def at(row: Mapping[str, Any], x: str, y: str) -> At | None:
    """A measurement as a point; None where it lacks one of the two."""
    where, figure = row.get(x), row.get(y)
    if not isinstance(where, int | float):
        return None
    if isinstance(figure, int | float):
        return At(where, figure, figure, figure)
    if not isinstance(figure, Mapping) or not noise.is_summary(figure):
        return None
    median, half = figure["median"], abs(figure["median"]) * figure["spread"] / 2
    return At(where, median, median - half, median + half)


def lines(rows: Iterable[Mapping[str, Any]], by: str, x: str, y: str) -> Lines:
    """Measurements as one line for each value of `by`, in the order in which those come."""
    found: Lines = {}
    for row in rows:
        point = at(row, x, y)
        if point is not None and by in row:
            found.setdefault(str(row[by]), []).append(point)
    return {name: sorted(points) for name, points in found.items()}


def draw_lines(axes: Axes, drawn: Lines, order: Sequence[str], limits: Sequence[str] = ()) -> None:
    """order: all lines of the figure, so that each has its colour in every panel. limits: those that are drawn as what
    the machine itself can do: grey, and dashed."""
    own = [name for name in order if name not in limits]
    for name, points in drawn.items():
        xs, ys = [point.x for point in points], [point.y for point in points]
        if name in limits:
            if len({*xs}) == 1:  # a line that has no length would not be seen
                xs, ys = [xs[0] * _AROUND_POINT, xs[0] / _AROUND_POINT], [ys[0], ys[0]]
            style = _LIMIT_STYLES[[*limits].index(name) % len(_LIMIT_STYLES)]
            axes.plot(xs, ys, linestyle=style, color=_LIMIT_COLOUR, label=name, linewidth=1.4)
            continue
        number = own.index(name)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(xs, ys, marker=_MARKERS[number % len(_MARKERS)], color=colour, label=name)
        lows, highs = [point.low for point in points], [point.high for point in points]
        axes.fill_between(xs, lows, highs, color=colour, alpha=0.13, linewidth=0)


def draw_bars(
    axes: Axes,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],
    order: Sequence[str],
    limits: Sequence[str] = (),
) -> None:
    """bars: heights by name, one for each group, each with its number above it. order and limits: as for lines, but
    that limits are grey bars."""
    own = [name for name in order if name not in limits]
    width = 0.8 / max(1, len(bars))
    for number, (name, heights) in enumerate(bars.items()):
        places = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(groups))]
        known = [(place, height) for place, height in zip(places, heights, strict=True) if height is not None]
        drawn = axes.bar(
            [place for place, _ in known],
            [height for _, height in known],
            width * 0.92,
            color=_limit_bar(limits.index(name)) if name in limits else _COLOURS[own.index(name) % len(_COLOURS)],
            label=name,
        )
        axes.bar_label(drawn, fmt="{:.2g}", padding=1.5, fontsize=7.5)
    axes.xaxis.set_major_locator(FixedLocator(range(len(groups))))
    axes.xaxis.set_major_formatter(FixedFormatter([*groups]))
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)


def _limit_bar(number: int) -> str:
    return _LIMIT_BARS[number % len(_LIMIT_BARS)]


def log_axis(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each power of ten where there are few of these, a few even ones in less than one; written
    as plain numbers."""
    low, high = axis.get_view_interval()
    few = LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,))
    axis.set_major_locator(few if high > 10 * low else MaxNLocator(4))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def size_axis(axes: Axes, sizes: Iterable[float], label: str) -> None:
    """Powers of two, written as they were asked for."""
    shown = sorted(set(sizes))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FixedFormatter([shown_size(int(size)) for size in shown]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.08)
    axes.set_xlabel(label)


def legend(figure: Figure, all_axes: Sequence[Axes]) -> None:
    """One for all panels, above them."""
    entries = {text: line for axes in all_axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        room = int(figure.get_figwidth() * _LETTERS_PER_IN) // (max(map(len, entries)) + _SIGN_LETTERS)
        columns = max(1, min(room, len(entries)))
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns, frameon=False)
