"""What a library that moves bytes between processes must do to be compared, and the program around it.

Both sides own one memory of the same size, each block of which goes to the same place on the other side.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from kvbench.rivals.content import Blocks, Bytes, differing, fill
from kvbench.rivals.speech import Action, answer, own_output


class Mover(Protocol):
    """One side. Calls block; what fails raises."""

    def address(self) -> str:
        """What the other side needs to join."""
        ...

    def join(self, peer: str) -> None:
        """Connects to the other side, which joins at the same time."""
        ...

    def give(self, blocks: Blocks) -> None:
        """Sends the memory's first blocks; returns when its memory may be changed."""
        ...

    def take(self, blocks: Blocks) -> None:
        """Returns when the blocks are there; at once where the giver knows that, and this side has no part in it."""
        ...

    def close(self) -> None: ...


def serve(make: Callable[[Bytes], Mover], total_bytes: int) -> None:
    """Makes one side, with its memory, and answers kvbench until it closes the pipe."""
    output = own_output()
    # Touched, so that no page is made while it is measured.
    memory = np.full(total_bytes, 0xA5, np.uint8)
    mover = make(memory)
    try:
        answer(actions(mover, memory), output)
    finally:
        mover.close()


def actions(mover: Mover, memory: Bytes) -> dict[str, Action]:
    """What kvbench may ask of one side."""

    def parts(blocks: Blocks) -> Bytes:
        return memory[: blocks.bytes].reshape(blocks.count, blocks.block_bytes)

    def fill_blocks(**names: str) -> dict[str, Any]:
        fill(_blocks(**names), parts(_blocks(**names)))
        return {}

    def differing_blocks(**names: str) -> dict[str, Any]:
        found = differing(_blocks(**names), parts(_blocks(**names)))
        memory[:] = 0xA5  # so that nothing counts twice
        return {"blocks": found}

    def join(peer: str) -> dict[str, Any]:
        mover.join(peer)
        return {}

    def give(**names: str) -> dict[str, Any]:
        began_s = time.monotonic()
        mover.give(_blocks(**names))
        return {"began_s": began_s, "ended_s": time.monotonic()}

    def take(**names: str) -> dict[str, Any]:
        mover.take(_blocks(**names))
        return {"ended_s": time.monotonic()}

    return {
        "address": lambda: {"address": mover.address()},
        "join": join,
        "fill": fill_blocks,
        "differing": differing_blocks,
        "give": give,
        "take": take,
    }


def _blocks(seed: str, count: str, block_bytes: str) -> Blocks:
    return Blocks(int(seed), int(count), int(block_bytes))
