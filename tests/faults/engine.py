"""An engine in a process of its own, to be killed, stopped or interrupted at a point that it reaches by itself.

`python -m tests.faults.engine SCENARIO NODE_SOCKET key=value …` says on standard output where it is, line by line.
`StopsItself` stops the whole process (SIGSTOP) in the middle of a copy to or from mapped slots: no other way is exact.
"""

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.blocks.namespace import Namespace
from kvstore.client import AsyncClient, Client, Match, buffers
from kvstore.client.buffers import KVBuffers
from kvstore.config import ClientConfig
from kvstore.errors import KVStoreError
from tests.cluster import LAYOUT, random_blocks

Bytes = npt.NDArray[np.uint8]
GARBAGE = 0xEE


def prompt(blocks: int, seed: int, tail: int = 0) -> npt.NDArray[np.uint32]:
    """Tokens of so many full blocks and `tail` more, unlike those of any other seed."""
    return np.random.default_rng(seed).integers(0, 2**32, blocks * 64 + tail, dtype=np.uint32)


def say(point: str, **values: Any) -> None:
    print(point, json.dumps(values), flush=True)


class StopsItself:
    """Buffers whose n-th copy stops the process first; from then on garbage is written in place of what they hold."""

    def __init__(self, blocks: Bytes, at: int) -> None:
        self._inner = buffers.contiguous(blocks, LAYOUT)
        self._left = at
        self.blocks, self.writable, self.device = self._inner.blocks, True, "cpu"

    def gather(self, block: int, first_layer: int, layers: int, out: Bytes, pages: int | None = None) -> None:
        if self._stopped():
            out[:] = GARBAGE
        else:
            self._inner.gather(block, first_layer, layers, out, pages)

    def scatter(self, block: int, first_layer: int, layers: int, source: Bytes, pages: int | None = None) -> None:
        self._stopped()
        self._inner.scatter(block, first_layer, layers, source, pages)

    def _stopped(self) -> bool:
        """Whether the stop lies behind; comes back late when it is now."""
        self._left -= 1
        if self._left == 0:
            # At this thread: it stops before the call returns, and takes the whole process with it.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass(frozen=True, slots=True)
class Engine:
    """What a scenario has: its options, and a client that is attached."""

    options: dict[str, str]
    client: AsyncClient

    @classmethod
    async def attach(cls, node: str, options: dict[str, str]) -> "Engine":
        config = ClientConfig(verify=options.get("verify", "yes") == "yes")
        namespace = Namespace.of("test", LAYOUT)
        return cls(options, await AsyncClient.connect(node=node, namespace=namespace, layout=LAYOUT, config=config))

    def number(self, name: str) -> int:
        return int(self.options[name])


async def hold(engine: Engine) -> None:
    """Holds what a process can hold: pins of three kinds, a half-written put, an offer; then waits to be killed."""
    client, seed = engine.client, engine.number("seed")
    tokens = prompt(4, seed)
    await client.store(tokens, buffers.contiguous(random_blocks(LAYOUT, 4, seed), LAYOUT))
    match = await client.match(tokens, hold_s=60)
    pin = await client.pin(tokens)
    writer = await client.begin_store(prompt(3, seed + 1), buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT))
    await writer.write_layers(0, 2)
    ticket = await client.offer(prompt(2, seed + 2, tail=7), deadline_s=60)
    sender = await client.send(ticket, buffers.contiguous(random_blocks(LAYOUT, 3), LAYOUT))
    await sender.write_layers(0, 1)
    never, entered = threading.Event(), threading.Event()

    class Stuck(StopsItself):
        def _stopped(self) -> bool:
            entered.set()
            return never.wait()

    load = client.load(match, Stuck(np.zeros((4, LAYOUT.block_bytes), np.uint8), at=1))
    await asyncio.to_thread(entered.wait)
    say("holds", blocks=pin.blocks)
    await load.result()


async def write(engine: Engine) -> None:
    """Is stopped in the middle of writing its slots, and goes on with garbage until it commits."""
    blocks = engine.number("blocks")
    kv = StopsItself(random_blocks(LAYOUT, blocks), at=engine.number("at"))
    writer = await engine.client.begin_store(prompt(blocks, engine.number("seed")), kv)
    say("leased", blocks=len(writer.blocks))

    async def put() -> str:
        await writer.write_layers(0, LAYOUT.layers)
        return f"stored {(await writer.commit()).stored}"

    say("over", answer=await answer(put))
    await asyncio.Event().wait()


async def read(engine: Engine) -> None:
    """Is stopped in the middle of reading a load's places, and says what it then believes to have."""
    blocks, seed = engine.number("blocks"), engine.number("seed")
    source, target = random_blocks(LAYOUT, blocks, seed), np.zeros((blocks, LAYOUT.block_bytes), np.uint8)
    kv = StopsItself(target, at=engine.number("at"))
    match = Match.from_json(engine.options["match"])
    load = engine.client.load(match, kv, deadline_s=float(engine.options["deadline_s"]))
    groups: list[int] = []
    ready = 0

    async def get() -> str:
        nonlocal ready
        async for group in load:
            groups.append(group.first_layer)
        result = await load.result()
        ready = result.blocks
        return " ".join(sorted({missing.outcome.name for missing in result.missing})) or "READY"

    said = await answer(get)
    right = [bool(np.array_equal(source[i], target[i])) for i in range(blocks)]
    say("over", answer=said, ready=ready, groups=len(groups), right=right)
    await asyncio.Event().wait()


async def answer(work: Callable[[], Awaitable[str]]) -> str:
    """What a call came to: its answer, or the name of its error."""
    try:
        return await work()
    except KVStoreError as error:
        return type(error).__name__


def interrupt(node: str, options: dict[str, str]) -> None:
    """Is interrupted (SIGINT) in the main thread in the middle of a blocking client's calls, one after the other."""
    seed = int(options["seed"])
    source = random_blocks(LAYOUT, 4, seed)

    def come(number: int, frame: object) -> None:
        Slow.come.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, come)
    with Client.connect(node=node, namespace=Namespace.of("test", LAYOUT), layout=LAYOUT) as client:
        stored = prompt(4, seed)
        client.store(stored, buffers.contiguous(source, LAYOUT))
        target = np.zeros_like(source)

        def load(kv: KVBuffers) -> None:
            loading = client.load(client.chain(stored), kv)
            try:
                for _ in loading:
                    pass
            finally:
                loading.cancel()

        works: dict[str, Callable[[KVBuffers], object]] = {
            "store": lambda kv: client.store(prompt(4, seed + 1), kv),
            "load": load,
            "write": lambda kv: client.begin_store(prompt(4, seed + 2), kv).write_layers(0, LAYOUT.layers),
        }
        for name, work in works.items():
            Slow.come.clear()
            kv = Slow(target, name)
            try:
                work(kv)
            except KeyboardInterrupt:
                say("interrupted", busy=kv.busy)
        client.load(client.chain(stored), buffers.contiguous(target, LAYOUT)).result()
        say("over", right=bool(np.array_equal(source, target)))
        sys.stdin.read(1)  # attached still: nothing may be left meanwhile
    say("closed", threads=[thread.name for thread in threading.enumerate() if thread.name.startswith("kvstore")])


class Slow(StopsItself):
    """Buffers whose first copy says so, and lasts until the interrupt has come and a while longer."""

    come = threading.Event()

    def __init__(self, blocks: Bytes, name: str) -> None:
        super().__init__(blocks, at=0)
        self._name = name
        self.busy = False

    def _stopped(self) -> bool:
        self.busy = True
        if self._name:
            say("copying", what=self._name)
            self._name = ""
            assert Slow.come.wait(10), "the interrupt did not come"
            threading.Event().wait(0.1)
        self.busy = False
        return False


def main() -> None:
    scenario, node, *rest = sys.argv[1:]
    options = dict(option.split("=", 1) for option in rest)
    if scenario == "interrupt":
        interrupt(node, options)
    else:
        asyncio.run(_attached({"hold": hold, "write": write, "read": read}[scenario], node, options))


async def _attached(work: Callable[[Engine], Awaitable[None]], node: str, options: dict[str, str]) -> None:
    await work(await Engine.attach(node, options))


if __name__ == "__main__":
    main()
