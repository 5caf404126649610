"""Adoption: blocks that a device had already come into the catalog without a byte being moved.

A restart brings all blocks of all devices at once, so this takes them slab by slab and leaves what concerns whole
chains (parents, orphans, the order of eviction) to the end.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby

from kvstore.blocks.state import SlotState, Tier
from kvstore.node.answers import ShardId
from kvstore.node.reserve import shard_is_right
from kvstore.node.stock import Stock
from kvstore.node.storage.entry import Entry
from kvstore.node.tree import Block, Tree, link
from kvstore.policy.slots import SizeClass


class Adoption:
    """One round of it: slabs, then `finish`; nothing else may be asked of the catalog between them."""

    def __init__(self, stock: Stock, counters: Counter[str], tier: Tier, now_ns: int) -> None:
        self._stock = stock
        self._counters = counters
        self._tier = tier
        self._now_ns = now_ns
        self._fresh: list[Block] = []
        self._parents: list[bytes] = []
        self._touched_ns: list[int] = []
        self._joined: list[Block] = []

    def add(
        self,
        bank: int,
        size_class: SizeClass,
        generations: Sequence[int],
        found: Sequence[tuple[int, Entry]],
        store_now_ms: int,
    ) -> tuple[int, list[tuple[int, int]]]:
        """A slab that a device had: the generations of its slots, and what the index says that they hold.

        store_now_ms: the time on the device's clock. Answers the slab's id, and (slot, generation) of what is not
        taken: blocks past their deadline, of a namespace, layout or tenant that is not known, or there already.
        """
        space = self._stock.spaces[self._tier].banks[bank]
        slab = space.adopt(size_class, generations)
        base_ns = self._now_ns - store_now_ms * 1_000_000
        rejected: list[tuple[int, int]] = []
        taken: list[int] = []
        for (namespace_id, rank, count), run in groupby(found, key=_shard_of):
            tree = self._tree(size_class.tenant, namespace_id, rank, count)
            for index, entry in run:
                block = self._block(tree, entry, store_now_ms, base_ns)
                if block is None:
                    rejected.append((index, entry.generation))
                    continue
                slot = slab.slots[index]
                slot.owner = block
                block.slots.append((self._tier, slot))
                taken.append(index)
        space.move(space.occupy(slab, taken), SlotState.LIVE)
        return slab.slab_id, rejected

    def _tree(self, tenant: str, namespace_id: bytes, rank: int, count: int) -> Tree | None:
        namespace = self._stock.namespaces.get(namespace_id)
        if namespace is None or namespace.tenant != tenant or not shard_is_right(rank, count):
            return None
        return namespace.tree(ShardId(rank, count))

    def _block(self, tree: Tree | None, entry: Entry, store_now_ms: int, base_ns: int) -> Block | None:
        """The block's entry in its tree; None where it is not taken."""
        if tree is None or entry.deadline_ms <= store_now_ms:
            return None
        layout = tree.namespace.layout
        if (entry.block_bytes, len(entry.checksums)) != (layout.block_bytes, layout.checksum_bytes):
            return None
        block = tree.blocks.get(entry.key)
        if block is None:
            block = tree.blocks[entry.key] = Block(tree, entry.key, entry.depth)
        elif block.slots:
            # Stored again while the device was away: the same bytes are one more copy, others are another block's.
            if block.slot_in(self._tier) is not None or block.checksums != entry.checksums:
                return None
            self._joined.append(block)
            return block
        block.checksums = entry.checksums
        block.deadline_ns = block.published_ns = base_ns + entry.deadline_ms * 1_000_000
        ttl_ns = entry.ttl_ms * 1_000_000
        if ttl_ns != tree.namespace.rules.ttl.of_store(0):
            block.asked_ns = ttl_ns
        self._fresh.append(block)
        self._parents.append(entry.parent_key)
        self._touched_ns.append(block.deadline_ns - ttl_ns)
        return block

    # ---- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> int:
        """The blocks can be found; answers how many. Those whose ancestors did not survive are orphans: they go first.

        The control plane is not told: whoever calls has it compare buckets."""
        self._link()
        self._rank()
        for top in self._orphan_tops():
            top.touched = 0
            for block in top.descendants():
                block.touched = 0
        self._stock.adopted(self._tier, self._fresh, self._joined)
        count = len(self._fresh) + len(self._joined)
        self._counters["adopted_blocks"] += count
        return count

    def _link(self) -> None:
        for block, parent_key in zip(self._fresh, self._parents, strict=True):
            if not parent_key or block.depth == 0 or block.parent is not None:
                continue
            blocks = block.tree.blocks
            parent = blocks.get(parent_key)
            if parent is None:
                parent = blocks[parent_key] = Block(block.tree, parent_key, block.depth - 1)
            if parent.depth < block.depth:
                link(block, parent)

    def _rank(self) -> None:
        """In the order of their last touch, as far as the device knows it."""
        touched_ns, fresh = self._touched_ns, self._fresh
        first = self._stock.take_touches(len(fresh))
        for touch, at in enumerate(sorted(range(len(fresh)), key=touched_ns.__getitem__), first):
            fresh[at].touched = touch
            slab = fresh[at].slots[0][1].slab
            slab.touched = touch

    def _orphan_tops(self) -> Iterator[Block]:
        for block in self._fresh:
            if block.depth and (block.parent is None or not block.parent.slots):
                yield block


def _shard_of(found: tuple[int, Entry]) -> tuple[bytes, int, int]:
    entry = found[1]
    return entry.namespace_id, entry.shard_rank, entry.shard_count
