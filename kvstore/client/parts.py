"""A long chain in parts, each of which fits one message."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.blocks.keys import Chain
from kvstore.rpc.channel import KEYS_PER_MESSAGE_MAX


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive keys of a chain.

    at: blocks of the chain before them. parent: the key before them, b"" for the first part of a whole chain. depth:
    how many blocks are before them, from the root. first: index of the first key that is asked for; those before it are
    ancestors. last: the chain's partial block comes with this part.
    """

    keys: tuple[bytes, ...]
    at: int
    parent: bytes
    depth: int
    first: int
    last: bool

    @property
    def packed(self) -> bytes:
        return b"".join(self.keys)

    @property
    def first_block(self) -> int:
        """The first block asked for, counted in the chain."""
        return self.at + self.first


def parts_of(chain: Chain, first_block: int = 0) -> Sequence[Part]:
    """At least one part, also of a chain without full blocks."""
    step = KEYS_PER_MESSAGE_MAX
    starts = range(0, max(1, len(chain)), step)
    return [
        Part(
            keys := chain.keys[at : at + step],
            at,
            chain.keys[at - 1] if at else chain.parent,
            chain.depth + at,
            min(max(first_block - at, 0), len(keys)),
            last=at == starts[-1],
        )
        for at in starts
    ]
