"""How far a bench is: a bar on standard error, where that is a terminal, and nothing elsewhere."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


class Bar:
    """One bar; `step` says what is done now, or that something was."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def now(self, description: str) -> None:
        self._progress.update(self._task, description=description)

    def done(self, count: float = 1) -> None:
        self._progress.advance(self._task, count)

    def expect(self, total: float) -> None:
        """How much there is in all, where that changes."""
        self._progress.update(self._task, total=total)


@contextmanager
def bar(description: str, total: float) -> Iterator[Bar]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(description, total=total))


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, with a bar of how many were taken."""
    with bar(description, total) as shown:
        for item in items:
            yield item
            shown.done()
