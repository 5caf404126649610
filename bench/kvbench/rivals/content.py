"""Blocks whose bytes follow from their names, so that whoever reads them can tell whether they are the right ones."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Blocks:
    """`count` blocks of one size. seed: their name; another seed is other blocks."""

    seed: int
    count: int
    block_bytes: int

    @property
    def bytes(self) -> int:
        return self.count * self.block_bytes

    @property
    def keys(self) -> list[str]:
        """Names for stores of keys; the size is in them, for one of them keeps the old value of a key that is there."""
        return [f"kvbench-{self.block_bytes}-{self.seed}-{number}" for number in range(self.count)]


def fill(blocks: Blocks, memory: Bytes) -> None:
    """memory: [block, byte], of `blocks` at its beginning."""
    for number in range(blocks.count):
        memory[number] = _block(blocks, number)


def differing(blocks: Blocks, memory: Bytes) -> int:
    """Blocks that are not what they should be."""
    return sum(not np.array_equal(memory[number], _block(blocks, number)) for number in range(blocks.count))


def _block(blocks: Blocks, number: int) -> Bytes:
    # One random KiB per block, repeated with a counter beside it: each KiB of each block is unlike every other.
    words = np.random.default_rng((blocks.seed, number)).integers(0, 2**64, 128, dtype=np.uint64)
    rows = -(-blocks.block_bytes // words.nbytes)
    made = np.broadcast_to(words, (rows, words.size)) + np.arange(rows, dtype=np.uint64)[:, None]
    return made.reshape(-1).view(np.uint8)[: blocks.block_bytes]
