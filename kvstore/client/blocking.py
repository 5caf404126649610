"""The blocking twin of the client: the same object, run on an event loop in a thread of its own.

There is no second copy of the logic, nor of parameters and defaults: every method is made from its asynchronous twin,
hands its coroutine to that loop and waits.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from kvstore.blocks.keys import Chain
from kvstore.blocks.layout import Layout
from kvstore.blocks.namespace import Namespace
from kvstore.client import aio
from kvstore.client.growing import Growing
from kvstore.client.loading import LayerGroupReady, Load
from kvstore.client.matching import Match
from kvstore.client.storing import Writer
from kvstore.errors import Closed, KVStoreError
from kvstore.policy.recompute import Speed

P = ParamSpec("P")
Inner = TypeVar("Inner")
Other = TypeVar("Other")
Result = TypeVar("Result")
_END_S = 5.0


class _Work(Generic[Result]):
    """A coroutine on the loop, seen from other threads."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Result]) -> None:
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[Result] | None = None
        self.future: Future[Result] = Future()
        loop.call_soon_threadsafe(self._begin)

    def cancel(self) -> None:
        """Asks it to end; `future` tells when it has, not when it was asked."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._work)
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        assert self._task is not None, "begun before: the loop keeps the order of its calls"
        self._task.cancel()

    def _ended(self, task: "asyncio.Task[Result]") -> None:
        if task.cancelled():
            self.future.set_exception(Closed("the call was cancelled"))
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()  # what is started is begun before the loop stops, or refused
        self._closed = False
        self._thread = threading.Thread(target=self._live, name="kvstore-client", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, Result]) -> _Work[Result]:
        """Raises Closed after `close`."""
        with self._lock:
            if not self._closed:
                return _Work(self._loop, work)
        work.close()
        raise Closed("the client is closed")

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for the work. An interrupt (Ctrl-C) cancels it, and is raised once it has ended."""
        begun = self.start(work)
        try:
            return begun.future.result()
        except BaseException:
            if not begun.future.done():
                begun.cancel()
                wait([begun.future], _END_S)
            raise

    def call(self, function: Callable[[], Result]) -> Result:
        """Runs a plain function on the loop."""

        async def work() -> Result:
            return function()

        return self.run(work())

    def close(self) -> None:
        """Ends what is unfinished, the loop and its thread. May be called twice."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _live(self) -> None:
        self._loop.run_forever()
        try:
            self._loop.run_until_complete(_end_others())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


class _Twin(Generic[Inner]):
    """An object of the client's loop, for threads."""

    def __init__(self, loop: _Loop, inner: Inner) -> None:
        self._loop = loop
        self._inner = inner


def _waited(
    method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[_Twin[Inner], P], Result]:
    """The method, with its parameters and its documentation, waited for."""

    @wraps(method)
    def call(self: _Twin[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Result:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def _waited_as(
    twin: Callable[[_Loop, Result], Other], method: Callable[Concatenate[Inner, P], Coroutine[Any, Any, Result]]
) -> Callable[Concatenate[_Twin[Inner], P], Other]:
    """The same for a method whose result is of the loop too."""

    @wraps(method)
    def call(self: _Twin[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Other:
        return twin(self._loop, self._loop.run(method(self._inner, *args, **kwargs)))

    return call


def _begun_as(
    twin: Callable[[_Loop, Result], Other], method: Callable[Concatenate[Inner, P], Result]
) -> Callable[Concatenate[_Twin[Inner], P], Other]:
    """The same for a method that begins something on the loop and does not wait."""

    @wraps(method)
    def call(self: _Twin[Inner], /, *args: P.args, **kwargs: P.kwargs) -> Other:
        return twin(self._loop, self._loop.call(lambda: method(self._inner, *args, **kwargs)))

    return call


class BlockingLoad(_Twin[Load]):
    """See `kvstore.client.Load`; iterating blocks for each layer group."""

    def __iter__(self) -> Iterator[LayerGroupReady]:
        groups = aiter(self._inner)
        while (group := self._loop.run(_next(groups))) is not None:
            yield group

    @property
    def done(self) -> bool:
        return self._inner.done

    result = _waited(Load.result)
    wait_layer = _waited(Load.wait_layer)
    cancel = _waited(Load.cancel)


class BlockingWriter(_Twin[Writer]):
    """See `kvstore.client.Writer`."""

    @property
    def blocks(self) -> list[int]:
        return self._inner.blocks

    write_layers = _waited(Writer.write_layers)
    write_layer = _waited(Writer.write_layer)
    commit = _waited(Writer.commit)
    abort = _waited(Writer.abort)


class BlockingGrowing(_Twin[Growing]):
    """See `kvstore.client.Growing`."""

    @property
    def blocks_done(self) -> int:
        return self._inner.blocks_done

    @property
    def error(self) -> KVStoreError | None:
        return self._inner.error

    def append(self, tokens: aio.Tokens) -> None:
        """See `Growing.append`."""
        self._loop.call(lambda: self._inner.append(tokens))

    close = _waited(Growing.close)
    cancel = _waited(Growing.cancel)


class BlockingPin(_Twin[aio.Pin]):
    """See `kvstore.client.Pin`."""

    @property
    def blocks(self) -> int:
        return self._inner.blocks

    @property
    def hold_id(self) -> bytes:
        return self._inner.hold_id

    release = _waited(aio.Pin.release)


class BlockingMatch:
    """A match that runs beside the caller. `done` never blocks, `result` does."""

    def __init__(self, work: _Work[Match]) -> None:
        self._work = work

    @property
    def done(self) -> bool:
        return self._work.future.done()

    def result(self, timeout_s: float | None = None) -> Match:
        """Waits for it. Raises what the match raised, Closed when it was cancelled, TimeoutError."""
        return self._work.future.result(timeout_s)

    def cancel(self) -> None:
        self._work.cancel()


def _connected(connect: Callable[P, Coroutine[Any, Any, aio.AsyncClient]]) -> Callable[P, "Client"]:
    """`connect`, on a loop of the client's own."""

    @wraps(connect)
    def call(*args: P.args, **kwargs: P.kwargs) -> "Client":
        loop = _Loop()
        try:
            return Client(loop, loop.run(connect(*args, **kwargs)))
        except BaseException:
            loop.close()
            raise

    return call


class Client(_Twin[aio.AsyncClient]):
    """A client for threads. Methods and errors are those of `kvstore.client.AsyncClient`; calls may come from any
    thread, and wait."""

    connect = staticmethod(_connected(aio.AsyncClient.connect))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """See `AsyncClient.close`. May be called twice; calls that come later raise Closed."""
        with contextlib.suppress(Closed):
            self._loop.run(self._inner.close())
        self._loop.close()

    @property
    def layout(self) -> Layout:
        return self._inner.layout

    @property
    def namespace(self) -> Namespace:
        return self._inner.namespace

    @property
    def key_seed(self) -> bytes:
        """See `AsyncClient.key_seed`."""
        return self._inner.key_seed

    @property
    def node_id(self) -> str:
        return self._inner.node_id

    def chain(self, tokens: aio.Tokens, extra: bytes | Mapping[int, bytes] = b"") -> Chain:
        """See `AsyncClient.chain`; runs in the calling thread."""
        return self._inner.chain(tokens, extra)

    def start_match(
        self,
        what: "Chain | aio.Tokens",
        hold_s: float | None = None,
        prefill: Speed | None = None,
        first_block: int = 0,
    ) -> BlockingMatch:
        """`match`, begun and not waited for."""
        return BlockingMatch(self._loop.start(self._inner.match(what, hold_s, prefill, first_block)))

    match = _waited(aio.AsyncClient.match)
    pin = _waited_as(BlockingPin, aio.AsyncClient.pin)
    unhold = _waited(aio.AsyncClient.unhold)
    load = _begun_as(BlockingLoad, aio.AsyncClient.load)
    receive = _begun_as(BlockingLoad, aio.AsyncClient.receive)
    store = _waited(aio.AsyncClient.store)
    grow = _begun_as(BlockingGrowing, aio.AsyncClient.grow)
    begin_store = _waited_as(BlockingWriter, aio.AsyncClient.begin_store)
    offer = _waited(aio.AsyncClient.offer)
    send = _waited_as(BlockingWriter, aio.AsyncClient.send)


async def _next(groups: Any) -> LayerGroupReady | None:
    return await anext(groups, None)


async def _end_others() -> None:
    """Cancels all that is unfinished on this loop."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
