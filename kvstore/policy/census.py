"""On how many nodes blocks are: what the holders of some blocks come to. Pure, on columns.

Of the nodes that hold a block the first by name counts it, so that the figures of all nodes add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


class Survey(NamedTuple):
    """Columns, one entry per block. nodes: those that have it, this one included. known: those of which the control
    plane knows it. durable: those that have it on NVMe. first: whether this node is the first of them."""

    nodes: Counts
    known: Counts
    durable: Counts
    first: npt.NDArray[np.bool_]


def survey(
    blocks: int,
    own: str,
    names: Sequence[str],
    holder_block: npt.NDArray[np.integer],
    holder_node: npt.NDArray[np.integer],
    holder_durable: npt.NDArray[np.bool_],
) -> Survey:
    """What a node that has all of these blocks makes of the control plane's answer: `names[holder_node[i]]` holds block
    `holder_block[i]`, each pair once. The answer need not know yet that this node, `own`, has them."""
    other = np.array([name != own for name in names], np.bool_)[holder_node]
    before = np.array([name < own for name in names], np.bool_)[holder_node]
    return Survey(
        nodes=1 + np.bincount(holder_block[other], minlength=blocks),
        known=np.bincount(holder_block, minlength=blocks),
        durable=np.bincount(holder_block[holder_durable], minlength=blocks),
        first=np.bincount(holder_block[before], minlength=blocks) == 0,
    )


@dataclass(slots=True)
class Tally:
    """Of one namespace. blocks_on: on 1, 2, … `wanted` nodes, and on more. durable_blocks: on NVMe at `wanted` nodes or
    more."""

    wanted: int
    blocks_on: list[int] = field(default_factory=list)
    durable_blocks: int = 0

    def __post_init__(self) -> None:
        self.blocks_on = self.blocks_on or [0] * (self.wanted + 1)

    def add(self, nodes: Counts, durable: Counts) -> None:
        """Blocks that this node counts."""
        on = np.bincount(np.minimum(nodes, self.wanted + 1) - 1, minlength=self.wanted + 1)
        self.blocks_on = [had + more for had, more in zip(self.blocks_on, on.tolist(), strict=True)]
        self.durable_blocks += int((durable >= self.wanted).sum())

    @property
    def copies_owed(self) -> int:
        """That are still to be made."""
        return sum((self.wanted - nodes) * blocks for nodes, blocks in enumerate(self.blocks_on[: self.wanted], 1))
