"""The threads of the TCP fabric: one connection carries messages one way, and a thread of its own moves them.

A thread spends its time in `sendmsg` and `recv`, which give up the interpreter's lock, and takes one call for a whole
message where the other side keeps up. It is ended by `shutdown` of its socket, which wakes it from either call.
"""

import asyncio
import contextlib
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from kvstore.errors import PeerLost

_HEADER = struct.Struct("<QQ")
"""A message's tag and length; its bytes follow."""
_SCRATCH_BYTES = 256 * 1024


@dataclass(eq=False, slots=True)
class Operation:
    """A send or a receive."""

    tag: int
    view: memoryview
    future: "asyncio.Future[None]"


class Calls:
    """Calls into the event loop from other threads, many at a time: what comes while one is under way joins it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._called = False

    def add(self, call: Callable[..., None], *args: Any) -> None:
        self._waiting.append((call, args))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is gone: the process is ending
                self._loop.call_soon_threadsafe(self._make)

    def _make(self) -> None:
        self._called = False  # first: what is added from here on calls again
        try:
            while self._waiting:
                call, args = self._waiting.popleft()
                call(*args)
        finally:
            if self._waiting:  # one has raised; the others do not wait for it
                self._loop.call_soon(self._make)


class Hangups:
    """Tells which connections the other side has ended, where this side only sends and may have nothing to send.

    An epoll of its own: the event loop makes a socket that it watches one that does not block (libuv's
    `uv_poll_init`), for its thread as well.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._told: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._tell)

    def watch(self, descriptor: int, told: Callable[[], None]) -> None:
        """Calls once, on the event loop."""
        self._told[descriptor] = told
        self._epoll.register(descriptor, select.EPOLLRDHUP)

    def forget(self, descriptor: int) -> None:
        """Before the descriptor is closed."""
        if self._told.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _tell(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            told = self._told[descriptor]
            self.forget(descriptor)
            told()


class _Stream:
    """A connection and its thread, whose name says which way it goes."""

    name = "tcp"

    def __init__(self, connection: socket.socket, calls: Calls) -> None:
        connection.setblocking(True)
        self._connection, self._calls = connection, calls
        self.done: Callable[[Operation, PeerLost | None], None] = _nothing
        """Called on the event loop with what has ended."""
        self.lost: Callable[[str | None], None] = _nothing
        """Called on the event loop when the connection has ended, with the reason; None: between two messages."""
        self.ended = asyncio.Event()
        """The thread touches no buffer any more."""

    def start(self) -> None:
        """Where no thread can be made the connection ends, soon."""
        try:
            threading.Thread(target=self._run, name=self.name, daemon=True).start()
        except RuntimeError as error:
            self._calls.add(self._finish, str(error))

    def shut(self) -> None:
        """Ends the thread, soon."""
        with contextlib.suppress(OSError):  # it has ended by itself
            self._connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        reason: str | None = "its thread failed"
        try:
            self._move()
            reason = None
        except OSError as error:
            reason = error.strerror or str(error)
        finally:
            self._calls.add(self._finish, reason)

    def _finish(self, reason: str | None) -> None:
        try:
            self.lost(reason)
        finally:
            self.discard()

    def discard(self) -> None:
        """Without a thread, or after it."""
        self._connection.close()
        self.ended.set()

    def _move(self) -> None:
        raise NotImplementedError


class SendStream(_Stream):
    """Sends what is put into its queue, in that order."""

    name = "tcp-send"

    def __init__(self, connection: socket.socket, calls: Calls, posted: "SimpleQueue[Operation | None]") -> None:
        super().__init__(connection, calls)
        self._posted = posted

    def fileno(self) -> int:
        return self._connection.fileno()

    def shut(self) -> None:
        super().shut()
        self._posted.put(None)

    def _move(self) -> None:
        while (operation := self._posted.get()) is not None:
            view = operation.view
            sent = self._connection.sendmsg((_HEADER.pack(operation.tag, view.nbytes), view)) - _HEADER.size
            while sent < 0:  # part of a header: not seen, but allowed
                sent += self._connection.send(_HEADER.pack(operation.tag, view.nbytes)[sent:])
            while sent < view.nbytes:
                sent += self._connection.send(view[sent:])
            self._calls.add(self.done, operation, None)
            del operation, view  # the buffer is the caller's again


class ReceiveStream(_Stream):
    """Receives messages into what `claim` gives for their tags; those that nobody wants are read and forgotten."""

    name = "tcp-receive"

    def __init__(self, connection: socket.socket, calls: Calls, number: int) -> None:
        """number: orders the connections of one fabric."""
        super().__init__(connection, calls)
        self.number = number
        self.claim: Callable[[int], Operation | None] = _nothing
        """Called in the thread."""

    def _move(self) -> None:
        header, scratch = memoryview(bytearray(_HEADER.size)), memoryview(bytearray(_SCRATCH_BYTES))
        while self._fill(header, may_end=True):
            tag, length = _HEADER.unpack(header)
            operation = self.claim(tag)
            if operation is not None and length <= operation.view.nbytes:
                self._fill(operation.view[:length])
                self._calls.add(self.done, operation, None)
            else:
                for begin in range(0, length, _SCRATCH_BYTES):
                    self._fill(scratch[: length - begin])
                if operation is not None:
                    text = f"a message of {length} bytes for a buffer of {operation.view.nbytes}"
                    self._calls.add(self.done, operation, PeerLost(text))
            del operation  # the buffer is the caller's again

    def _fill(self, view: memoryview, may_end: bool = False) -> bool:
        """False where the connection ends before the first byte and may. Raises ConnectionResetError elsewhere."""
        received = 0
        while received < view.nbytes:
            more = self._connection.recv_into(view[received:], 0, socket.MSG_WAITALL)
            if more == 0:
                if may_end and received == 0:
                    return False
                raise ConnectionResetError("the connection ended within a message")
            received += more
        return True


def _nothing(*_: object) -> None:
    return None
