"""Purge: an operator has blocks dropped from all tiers, or asks what would be.

In steps of a bounded number of blocks, between which the catalog may be asked for anything. Descendants go before what
they hang on, so that no step has to look for orphans below it; of a namespace, blocks are found by their buckets, which
are small whatever the node holds.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.state import Tier
from kvstore.node.leases import LeaseTable
from kvstore.node.operatorpins import OperatorPins
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, OpenNamespace, Tree

PURGED = "purged"
_CHILDREN_AT_ONCE = 64


@dataclass(slots=True)
class Purged:
    """What went, or would go: blocks, and their copies and slots' bytes by tier; of that what readers hold, whose room
    comes when they end. What stays: blocks that operators pinned, with the bytes of all their copies, and blocks that
    are being written."""

    blocks: int = 0
    copies: "Counter[Tier]" = field(default_factory=Counter)
    slot_bytes: "Counter[Tier]" = field(default_factory=Counter)
    read_blocks: int = 0
    read_bytes: int = 0
    pinned_blocks: int = 0
    pinned_bytes: int = 0
    writing_blocks: int = 0


class _Family:
    """The children of a block that has very many, a few at a time. The one that is next may have gone meanwhile: then
    they are gone through anew, but for those that were given."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._next = block.first_child
        self._given: set[Block] = set()

    def take(self) -> list[Block]:
        """Some of those that were not given yet; none only where there are no more."""
        child = self._next
        if child is not None and child.parent is not self._block:
            child = self._block.first_child
        taken: list[Block] = []
        while child is not None and len(taken) < _CHILDREN_AT_ONCE:
            if child not in self._given:
                taken.append(child)
            child = child.next_sibling
        self._next = child
        self._given.update(taken)
        return taken


class Purge:
    """One of them. seeds: blocks that are to go with all that hangs on them; None: one that was looked at, and is not.
    dry: only counts. whole: every block is a seed."""

    def __init__(
        self, stock: Stock, operator_pins: OperatorPins, seeds: Iterator[Block | None], *, dry: bool, whole: bool
    ) -> None:
        self._stock = stock
        self._operator_pins = operator_pins
        self._seeds = seeds
        self._dry = dry
        self._expand = not (dry and whole)
        self._waiting: list[tuple[Block, bool]] = []  # a stack of blocks, and whether what hangs on them is above them
        self._family: _Family | None = None  # of the block that was looked at last
        self._staying: set[Block] = set()
        self.purged = Purged()

    def step(self, blocks_max: int) -> bool:
        """Looks at up to `blocks_max` blocks. True when there are more."""
        for _ in range(blocks_max):
            if self._family is not None:
                self._descend(self._family)
                continue
            if self._waiting:
                self._look(*self._waiting.pop())
                continue
            try:
                seed = next(self._seeds)
            except StopIteration:
                return False
            if seed is not None and seed not in self._staying:
                self._waiting.append((seed, not self._expand))
        return True

    def _look(self, block: Block, expanded: bool) -> None:
        if expanded:
            self._end(block)
            return
        self._waiting.append((block, True))
        if block.first_child is not None:
            self._family = _Family(block)

    def _descend(self, family: _Family) -> None:
        children = family.take()
        self._waiting += [(child, False) for child in children if child not in self._staying]
        if len(children) < _CHILDREN_AT_ONCE:
            self._family = None

    def _end(self, block: Block) -> None:
        """Everything below it is done with."""
        purged = self.purged
        if block.writer is not None and not block.slots:
            self._staying.add(block)
            purged.writing_blocks += 1
        elif block.slots and block in self._operator_pins:
            self._staying.add(block)
            purged.pinned_blocks += 1
            purged.pinned_bytes += sum(slot.slab.size_class.slot_bytes for _, slot in block.slots)
        elif block.slots:
            self._count(block)
            if not self._dry:
                self._stock.remove(block, PURGED)

    def _count(self, block: Block) -> None:
        purged = self.purged
        purged.blocks += 1
        held_bytes = 0
        for tier, slot in block.slots:
            slot_bytes = slot.slab.size_class.slot_bytes
            purged.copies[tier] += 1
            purged.slot_bytes[tier] += slot_bytes
            held_bytes += slot_bytes if slot.pins else 0
        purged.read_blocks += held_bytes > 0
        purged.read_bytes += held_bytes


def of_namespaces(stock: Stock, leases: LeaseTable, namespaces: Collection[OpenNamespace]) -> Iterator[Block | None]:
    """Every block of some namespaces that is stored or being written, as they are when its bucket comes. Walks all
    blocks of the node."""
    chosen = set(namespaces)
    yield from [block for lease in leases.table if lease.tree.namespace in chosen for block in lease.blocks]
    for bucket in range(BUCKETS):
        for block in list(stock.journal.held([bucket])):
            yield block if block.tree.namespace in chosen else None


def of_prefix(trees: Iterable[Tree], namespace_id: bytes, keys: Collection[bytes]) -> Iterator[Block | None]:
    """The blocks of these keys, but for those that hang on another of them. namespace_id: b"": of any."""
    for tree in trees:
        if namespace_id in (b"", tree.namespace.namespace_id):
            yield from _tops({block for key in keys if (block := tree.blocks.get(key)) is not None})


def _tops(blocks: set[Block]) -> list[Block]:
    """Those with none of the others above them. Looks at each entry above them once."""
    below: dict[Block, bool] = {}
    tops = []
    for block in blocks:
        path: list[Block] = []
        above = block.parent
        while above is not None and above not in blocks and above not in below:
            path.append(above)
            above = above.parent
        is_below = above is not None and (above in blocks or below[above])
        below.update(dict.fromkeys(path, is_below))
        if not is_below:
            tops.append(block)
    return tops
