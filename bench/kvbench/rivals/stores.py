"""What a store of blocks must do to be compared, and the program around it.

All that is asked of a store is here once: the same bytes, the same clock, the same way to count a failure. Times are of
`CLOCK_MONOTONIC`, which all processes of a machine share.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from kvbench.rivals.content import Blocks, Bytes, differing, fill
from kvbench.rivals.speech import Action, answer, own_output

_POLL_S = 0.0005


class Store(Protocol):
    """A client of a store. Calls block; what fails raises, or counts less."""

    def registered(self, memory: Bytes) -> None:
        """Is called once for each memory that blocks are put from and got into, before it is used."""
        ...

    def put(self, blocks: Blocks, source: Bytes, copies: int) -> int:
        """Stores blocks that are new; returns how many are stored. source: [block, byte]."""
        ...

    def readable(self, blocks: Blocks) -> int:
        """How many of the blocks, from the first on, could be got now."""
        ...

    def copies(self, blocks: Blocks) -> int:
        """The least number of places that any of the blocks is in."""
        ...

    def get(self, blocks: Blocks, target: Bytes) -> int:
        """Returns how many of the blocks, from the first on, are in `target` ([block, byte])."""
        ...

    def forget(self, blocks: Blocks) -> None:
        """These will not be asked for again; a store that makes room by itself does nothing."""
        ...

    def close(self) -> None: ...


def serve(make: Callable[[], Store]) -> None:
    """Makes the store and answers kvbench until it closes the pipe."""
    output = own_output()
    store = make()
    try:
        answer(actions(store), output)
    finally:
        store.close()


def actions(store: Store) -> dict[str, Action]:
    """What kvbench may ask of a client."""
    asked = _Asked(store)
    return {
        "fill": asked.fill,
        "put": asked.put,
        "readable": asked.readable,
        "copied": asked.copied,
        "get": asked.get,
        "differing": asked.differing,
        "forget": asked.forget,
        "watch": asked.watch,
    }


class _Asked:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._memory: Bytes = np.empty(0, np.uint8)

    def fill(self, seed: str, count: str, block_bytes: str) -> dict[str, Any]:
        blocks = _blocks(seed, count, block_bytes)
        fill(blocks, self._room(blocks))
        return {}

    def put(self, seed: str, count: str, block_bytes: str, copies: str = "1") -> dict[str, Any]:
        """Of what was filled before."""
        blocks = _blocks(seed, count, block_bytes)
        memory = self._room(blocks)
        began_s = time.monotonic()
        stored = self._store.put(blocks, memory, int(copies))
        return {"blocks": stored, "began_s": began_s, "ended_s": time.monotonic()}

    def readable(self, seed: str, count: str, block_bytes: str, within_s: str) -> dict[str, Any]:
        """Waits until all of them are."""
        blocks = _blocks(seed, count, block_bytes)
        found = _awaited(lambda: self._store.readable(blocks), blocks.count, float(within_s))
        return {"blocks": found, "ended_s": time.monotonic()}

    def copied(self, seed: str, count: str, block_bytes: str, copies: str, within_s: str) -> dict[str, Any]:
        """Waits until each of them is in so many places."""
        blocks = _blocks(seed, count, block_bytes)
        return {"copies": _awaited(lambda: self._store.copies(blocks), int(copies), float(within_s))}

    def get(self, seed: str, count: str, block_bytes: str) -> dict[str, Any]:
        blocks = _blocks(seed, count, block_bytes)
        memory = self._room(blocks)
        began_s = time.monotonic()
        got = self._store.get(blocks, memory)
        return {"blocks": got, "began_s": began_s, "ended_s": time.monotonic()}

    def differing(self, seed: str, count: str, block_bytes: str) -> dict[str, Any]:
        """Of what was got last; then the memory is spoilt, so that nothing counts twice."""
        blocks = _blocks(seed, count, block_bytes)
        memory = self._room(blocks)
        found = differing(blocks, memory)
        memory[:] = 0xA5
        return {"blocks": found}

    def forget(self, seed: str, count: str, block_bytes: str) -> dict[str, Any]:
        self._store.forget(_blocks(seed, count, block_bytes))
        return {}

    def watch(self, seeds: str, count: str, block_bytes: str, seconds: str) -> dict[str, Any]:
        """Reads one set of blocks after the other, again and again, each once: what an engine meets.

        Returns a row per read: when it began, how long it took, and what became of it ("" when all came, and right).
        """
        sets = [_blocks(seed, count, block_bytes) for seed in seeds.split(",")]
        memory = self._room(sets[0])
        reads: list[tuple[float, float, str]] = []
        until = time.monotonic() + float(seconds)
        while (began_s := time.monotonic()) < until:
            blocks = sets[len(reads) % len(sets)]
            try:
                got = self._store.get(blocks, memory)
                failure = "" if got == blocks.count else f"{got} of {blocks.count} blocks"
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"[:120]
            took_s = time.monotonic() - began_s
            if not failure and differing(blocks, memory):
                failure = "wrong bytes"
            reads.append((began_s, took_s, failure))
            if failure:
                time.sleep(0.01)  # an engine that computes instead does not ask again at once either
        return {"reads": reads}

    def _room(self, blocks: Blocks) -> Bytes:
        """The one memory that all blocks are put from and got into, as [block, byte]."""
        if self._memory.size < blocks.bytes:
            self._memory = np.zeros(blocks.bytes, np.uint8)
            self._store.registered(self._memory)
        return self._memory[: blocks.bytes].reshape(blocks.count, blocks.block_bytes)


def _awaited(count: Callable[[], int], wanted: int, deadline_s: float) -> int:
    deadline = time.monotonic() + deadline_s
    while (found := count()) < wanted and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def _blocks(seed: str, count: str, block_bytes: str) -> Blocks:
    return Blocks(int(seed), int(count), int(block_bytes))
