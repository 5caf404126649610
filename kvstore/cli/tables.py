"""Tables on standard output, the same for every command."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

_PIPE_COLUMNS = 200
_BAR = 20


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    """A table of plain text: brackets in a name are no markup. Short rows are filled up."""
    made = Table(*columns, title=title, title_justify="left")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def show(*parts: Table | str) -> None:
    """Prints tables and lines. Into a pipe or a file, which have no width, lines are long enough for any key."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_COLUMNS)
    for part in parts:
        console.print(Text(part) if isinstance(part, str) else part)


def show_or_json(said: Mapping[str, Any], as_json: bool, *parts: Table | str) -> None:
    """What a command has done: tables and lines, or one JSON object."""
    if as_json:
        print(json.dumps(said))
    else:
        show(*parts)


@contextmanager
def progress_of_bytes(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, as long as the block runs; gives what is told of so many bytes more."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def shown_bytes(count: float) -> str:
    """A size to read, three digits: 1.25 GB."""
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count:.0f} B"


def bar(part: float, whole: float) -> str:
    """How much of the whole a part is, to be seen: ━━━━━╌╌╌ 60%."""
    done = min(1.0, part / whole) if whole else 0.0
    return f"{'━' * round(done * _BAR)}{'╌' * (_BAR - round(done * _BAR))} {done:.0%}"
