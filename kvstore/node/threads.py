"""Threads for work that may hang: a read from a file system whose server has gone returns when it likes, or never.

Nobody waits for them, not even the process when it ends; whoever asked learns of the end of his work alone.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any


class Threads:
    """At most `count`, begun as they are needed. One thread submits."""

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._begun: list[threading.Thread] = []

    def submit(self, work: Callable[[], Any]) -> "Future[Any]":
        """The future has its result or exception; its callbacks run in the thread."""
        future: Future[Any] = Future()
        self._work.put((future, work))
        if len(self._begun) < self._count:
            thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._begun)}", daemon=True)
            self._begun.append(thread)
            thread.start()
        return future

    def end(self) -> None:
        """Each ends after what it has begun and what was submitted before."""
        for _ in self._begun:
            self._work.put(None)

    def join(self) -> None:
        """Waits, blocking, until they have ended."""
        for thread in self._begun:
            thread.join()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del item, future, work  # nothing is kept alive by a thread that waits
