"""The blocking twin: the same methods with the same parameters, from threads, and nothing left when it is closed."""

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, Client, buffers
from kvstore.client.aio import Pin
from kvstore.client.blocking import BlockingLoad, BlockingMatch, BlockingPin, BlockingWriter, _Loop
from kvstore.client.loading import LayerGroupReady, Load
from kvstore.client.storing import Writer
from kvstore.errors import Closed, InvalidInput, NodeUnavailable
from tests.cluster import LAYOUT, random_blocks
from tests.inprocess import site, tokens

TWINS = [(AsyncClient, Client), (Load, BlockingLoad), (Writer, BlockingWriter), (Pin, BlockingPin)]
OTHERWISE = {"on_done", "__aenter__", "__aexit__", "__aiter__"}  # for event loops; with, and for, are their twins


def public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(cls) if not name.startswith("_")}


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    return [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]


@pytest.mark.parametrize(("original", "twin"), TWINS, ids=lambda cls: cls.__name__)
def test_every_method_has_a_twin(original: type, twin: type) -> None:
    """With the same parameters, kinds and defaults, documented, and none of them a coroutine function."""
    for name, member in public(original).items():
        if name in OTHERWISE:
            continue
        other = getattr(twin, name)
        assert isinstance(member, property) == isinstance(other, property), name
        if not isinstance(member, property):
            assert parameters(member) == parameters(other), name
            assert other.__doc__, name
            assert not inspect.iscoroutinefunction(other), name


@pytest.fixture
def loop() -> Iterator[_Loop]:
    loop = _Loop()
    yield loop
    loop.close()


async def test_it_does_what_the_other_does(tmp_path: Path) -> None:
    """Store, match, load by layer groups, hand over: in a thread, while the node's loop runs here."""
    source = random_blocks(LAYOUT, 4)

    def engine(socket: str) -> None:
        with Client.connect(node=socket, namespace=Namespace.of("m", LAYOUT), layout=LAYOUT) as client:
            kv, target = buffers.contiguous(source, LAYOUT), np.zeros_like(source)
            into = buffers.contiguous(target, LAYOUT)
            prompt = client.chain(tokens(3.5))
            assert (client.layout, client.namespace.model) == (LAYOUT, "m")
            assert client.store(prompt, kv, ttl_s=60).stored == 3
            pending = client.start_match(prompt, hold_s=5)
            assert isinstance(pending, BlockingMatch)
            match = pending.result(timeout_s=5)
            assert pending.done
            client.unhold(match.hold_id)
            load = client.load(match, into)
            assert list(load) == [LayerGroupReady(0, LAYOUT.layers)]
            load.wait_layer(0)
            assert load.result().blocks == 3
            assert load.done
            assert np.array_equal(target[:3], source[:3])
            pin = client.pin(prompt)
            assert (pin.blocks, bool(pin.hold_id)) == (3, True)
            pin.release()

            handed = tokens(3.5, seed=1)
            ticket = client.offer(handed, deadline_s=5)
            receiving = client.receive(ticket, into, handed)
            writer = client.send(ticket, kv)
            assert writer.blocks == [0, 1, 2, 3]
            for layer in range(LAYOUT.layers):
                writer.write_layer(layer)
            writer.commit()
            assert receiving.result().tail
            other = client.begin_store(tokens(2, seed=2), kv)
            other.abort()
            with pytest.raises(InvalidInput):
                client.store([], kv)
            client.receive(client.offer(tokens(1, seed=3)), into, tokens(1, seed=3)).cancel()

    async with site(tmp_path) as here:
        node = await here.node()
        await asyncio.wait_for(asyncio.to_thread(engine, node.socket), 20)


def test_connecting_to_nobody(tmp_path: Path) -> None:
    """Raises, and leaves no thread."""
    before = threading.active_count()
    with pytest.raises(InvalidInput):
        Client.connect(node=f"unix:{tmp_path}/x", namespace=Namespace.of("m", LAYOUT), layout=LAYOUT, shard=(1, 1))
    assert threading.active_count() == before
    assert NodeUnavailable.__doc__


def test_work_from_many_threads(loop: _Loop) -> None:
    """Each caller gets his own result, errors too."""

    async def echo(value: int) -> int:
        await asyncio.sleep(0)
        if value % 3 == 0:
            raise ValueError(value)
        return value

    results: dict[int, object] = {}

    def caller(value: int) -> None:
        try:
            results[value] = loop.run(echo(value))
        except ValueError as error:
            results[value] = error.args[0]

    threads = [threading.Thread(target=caller, args=(value,)) for value in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert results == {value: value for value in range(20)}


def test_closing_ends_what_is_unfinished(loop: _Loop) -> None:
    """Who waits for it gets Closed, later calls do too, and the thread is gone."""
    unfinished = loop.start(asyncio.sleep(3600))
    loop.close()
    loop.close()
    with pytest.raises(Closed):
        unfinished.future.result(5)
    with pytest.raises(Closed):
        loop.run(asyncio.sleep(0))
    assert not loop._thread.is_alive()


def test_an_interrupt_waits_for_the_end(loop: _Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is raised once the call has let go of the caller's buffers, not before."""
    begun, ended = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            ended.set()

    def interrupted(self: object, timeout: float | None = None) -> None:
        assert begun.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr("kvstore.client.blocking.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(work())
    assert ended.is_set()
