"""Contestant: plain Python sockets, one stream, with the best of several buffer settings."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

from kvbench.pair import Move, Point, orders_of, pair

BUFFER_BYTES = (0, 256 * 1024, 1024 * 1024, 4 * 1024 * 1024)
"""Of the kernel, each way; 0: its own choice."""
TRIALS = 2


@contextmanager
def sockets(host: str) -> Iterator[Move]:
    """Two processes, one connection per buffer setting. Each size has its trials once, and then its best setting."""
    with pair(_receive, _send, host) as order:
        best: dict[tuple[int, int], int] = {}

        def move(point: Point) -> float:
            key = point.size_bytes, point.in_flight
            if key not in best:
                took = {index: min(order(point, index) for _ in range(TRIALS)) for index in range(len(BUFFER_BYTES))}
                best[key] = min(took, key=took.__getitem__)
            seconds: float = order(point, best[key])
            return seconds

        yield move


def _receive(orders: Connection, link: Connection, host: str) -> None:
    with socket.create_server((host, 0)) as server:
        link.send(server.getsockname()[1])
        streams = []
        for buffer_bytes in BUFFER_BYTES:
            _tune(server, socket.SO_RCVBUF, buffer_bytes)
            link.send(buffer_bytes)
            streams.append(server.accept()[0])
    for order in orders_of(orders):
        point, index = cast(tuple[Point, int], order)
        targets = _buffers(point)
        link.send((point, index))
        link.recv()
        began = time.perf_counter()
        link.send("go")
        for number in range(point.count):
            view = targets[number % point.in_flight]
            while view:
                view = view[streams[index].recv_into(view) :]
        orders.send(time.perf_counter() - began)


def _send(link: Connection, host: str) -> None:
    port = link.recv()
    streams = []
    for _ in BUFFER_BYTES:
        stream = socket.socket()
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _tune(stream, socket.SO_SNDBUF, link.recv())
        stream.connect((host, port))
        streams.append(stream)
    for order in orders_of(link):
        point, index = cast(tuple[Point, int], order)
        sources = _buffers(point)
        link.send("ready")
        link.recv()
        for number in range(point.count):
            streams[index].sendall(sources[number % point.in_flight])


def _tune(stream: socket.socket, option: int, buffer_bytes: int) -> None:
    # Before the connection is made: the window's scale follows from it.
    if buffer_bytes:
        stream.setsockopt(socket.SOL_SOCKET, option, buffer_bytes)


def _buffers(point: Point) -> list[memoryview]:
    """As many as the others have in flight: the same memory is touched."""
    return [memoryview(bytearray(b"\x01") * point.size_bytes) for _ in range(point.in_flight)]
