"""Two processes that move bytes from one to the other, one order at a time."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from kvstore.errors import Unavailable

ORDER_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Point:
    """What is moved: messages of one size, a number of them in flight at a time."""

    size_bytes: int
    in_flight: int
    total_bytes: int

    @property
    def count(self) -> int:
        """Messages; never fewer than are in flight."""
        return max(self.total_bytes // self.size_bytes, self.in_flight)

    @property
    def moved_bytes(self) -> int:
        return self.count * self.size_bytes


Move = Callable[[Point], float]
"""Moves a point's bytes and returns the seconds that it took."""


@contextmanager
def pair(receive: Callable[..., None], send: Callable[..., None], *arguments: object) -> Iterator[Callable[..., Any]]:
    """Starts `receive(orders, link, *arguments)` and `send(link, *arguments)` in processes of their own.

    Yields a function that hands its arguments to the receiver as one order and returns what comes back;
    it raises Unavailable when a process has ended or does not answer. Both processes end with the context.
    """
    context = multiprocessing.get_context("spawn")
    ours, orders = context.Pipe()
    near, far = context.Pipe()
    processes = [
        context.Process(target=receive, args=(orders, near, *arguments), daemon=True),
        context.Process(target=send, args=(far, *arguments), daemon=True),
    ]

    def order(*what: object) -> Any:
        try:
            ours.send(what)
            if not ours.poll(ORDER_DEADLINE_S):
                raise Unavailable("a bench process does not answer")
            return ours.recv()
        except (EOFError, ConnectionError) as error:
            raise Unavailable("a bench process has ended") from error

    try:
        for process in processes:
            process.start()
        # Ours alone is left open here, so that each process sees the other's end.
        for end in (orders, near, far):
            end.close()
        yield order
    finally:
        for process in processes:
            process.kill()
            process.join()
        ours.close()


def orders_of(connection: Connection) -> Iterator[tuple[object, ...]]:
    """What comes, until the other side has gone."""
    while True:
        try:
            yield connection.recv()
        except EOFError:
            return
