"""Adoption: blocks that a device had already come into the catalog without a byte being moved.

A restart brings all blocks of all devices at once, so this takes them slab by slab and leaves what concerns whole
chains (parents, orphans, the order of eviction) to the end. A device that comes while the node serves brings as many;
then it is done in steps, between which others have their turn.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import Tier
from kvstore.node.answers import ShardId
from kvstore.node.reserve import shard_is_right
from kvstore.node.stock import Stock
from kvstore.node.storage.entry import Entry
from kvstore.node.tree import Block, Tree, link
from kvstore.policy.slots import SizeClass, Slab

Found = tuple[int, Entry]
_NS_PER_MS = 1_000_000
_ENTRY = itemgetter(1)
_KIND = itemgetter(*map(Entry._fields.index, ("namespace_id", "shard_rank", "shard_count", "block_bytes")))


class Adoption:
    """One device's blocks, or several devices'. By slabs: `open`, `fill` part by part, `close`; then `settle`, and at
    the end `orphan`. All at once, or with pauses between these steps, in which the catalog may be asked for anything;
    what was filled must be settled before a pause.

    now_ns: at its beginning. touched_ms: all times of a last touch that will come, ascending, in the time of the node's
    clock; needed where it is settled more than once."""

    def __init__(
        self,
        stock: Stock,
        counters: Counter[str],
        tier: Tier,
        now_ns: int,
        touched_ms: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._stock = stock
        self._counters = counters
        self._tier = tier
        self._now_ns = now_ns
        self._all_touched_ms = touched_ms
        self._first_touch = stock.take_touches(len(touched_ms)) if touched_ms is not None else 0
        self._fresh: list[Block] = []
        self._parents: list[bytes] = []
        self._touched_ms: list[npt.NDArray[np.int64]] = []
        self._joined: list[Block] = []
        self._doubtful: list[Block] = []
        self.blocks = 0

    def open(self, bank: int, size_class: SizeClass, generations: Sequence[int]) -> Slab:
        """A slab that a device had, with the generations of its slots. None of them is given before `close`."""
        return self._stock.spaces[self._tier].banks[bank].adopt(size_class, generations)

    def fill(self, slab: Slab, found: Sequence[Found], store_now_ms: int) -> list[tuple[int, int]]:
        """Some of what the index says that a slab's slots hold.

        store_now_ms: the time on the device's clock at the beginning. Answers (slot, generation) of what is not taken:
        blocks past their deadline, of a namespace, layout or tenant that is not known, or there already.
        """
        taken: list[int] = []
        rejected: list[tuple[int, int]] = []
        for kind, run in _runs(found):
            tree = self._tree(slab.size_class.tenant, *kind)
            if tree is None:
                rejected += [(index, entry.generation) for index, entry in run]
            else:
                before = len(taken)
                self._take(tree, slab, run, store_now_ms, taken, rejected)
                tree.namespace.hold(self._tier, len(taken) - before, slab.size_class.slot_bytes)
        self._stock.spaces[self._tier].banks[slab.bank].occupy(slab, taken)
        return rejected

    def close(self, slab: Slab) -> None:
        """All of it was filled."""
        self._stock.spaces[self._tier].banks[slab.bank].end_adopting(slab)

    def _tree(self, tenant: str, namespace_id: bytes, rank: int, count: int, length: int) -> Tree | None:
        """Where blocks of this kind belong; None where they are nobody's."""
        namespace = self._stock.namespaces.get(namespace_id)
        if namespace is None or namespace.tenant != tenant or not shard_is_right(rank, count):
            return None
        return namespace.tree(ShardId(rank, count)) if namespace.layout.block_bytes == length else None

    def _take(
        self,
        tree: Tree,
        slab: Slab,
        run: Iterable[Found],
        store_now_ms: int,
        indexes: list[int],
        rejected: list[tuple[int, int]],
    ) -> None:
        """Blocks of one tree. The innermost loop of a restart: nothing is looked up in it that can be known before."""
        touched_ms: list[int] = []
        tier, slots, blocks = self._tier, slab.slots, tree.blocks
        checksum_bytes = tree.namespace.layout.checksum_bytes
        usual_ms = tree.namespace.rules.ttl.of_store(0) // _NS_PER_MS
        base_ns = self._now_ns - store_now_ms * _NS_PER_MS
        fresh, parents, taken = self._fresh.append, self._parents.append, indexes.append
        touched = touched_ms.append
        last_ms = deadline_ns = -1
        for index, entry in run:
            _, _, _, key, parent_key, depth, generation, deadline_ms, ttl_ms, _, _, _, checksums, _ = entry
            if deadline_ms <= store_now_ms or len(checksums) != checksum_bytes:
                rejected.append((index, generation))
                continue
            slot = slots[index]
            # Nearly always it is not there: one look-up serves for both.
            block = blocks.setdefault(key, Block(tree, key, depth))
            if block.slots:
                # Stored again while the device was away: the same bytes are one more copy, others another block's.
                if block.slot_in(tier) is not None or block.checksums != checksums:
                    rejected.append((index, generation))
                else:
                    self._joined.append(block)
                    slot.owner = block
                    block.slots.append((tier, slot))
                    taken(index)
                continue
            slot.owner = block
            block.slots.append((tier, slot))
            block.checksums = checksums
            if deadline_ms != last_ms:  # of a chain they are mostly alike
                last_ms, deadline_ns = deadline_ms, base_ns + deadline_ms * _NS_PER_MS
            block.deadline_ns = block.published_ns = deadline_ns
            if ttl_ms != usual_ms:
                block.asked_ns = ttl_ms * _NS_PER_MS
            fresh(block)
            parents(parent_key)
            touched(deadline_ms - ttl_ms)
            taken(index)
        self._touched_ms.append(np.array(touched_ms, np.int64) + base_ns // _NS_PER_MS)

    # ---- the end -----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """What was filled since the last time can be found, and is in order.

        The control plane is not told: whoever calls has it compare buckets."""
        self._link()
        self._rank()
        self._doubtful += [block for block in self._fresh if _is_orphan(block)]
        self._stock.adopted(self._tier, self._fresh, self._joined)
        self.blocks += len(self._fresh) + len(self._joined)
        self._counters["adopted_blocks"] += len(self._fresh) + len(self._joined)
        self._fresh, self._parents, self._touched_ms, self._joined = [], [], [], []

    def orphan(self, count: int) -> bool:
        """Of what was settled, blocks whose ancestors have not survived are orphans: they go first. Looks at up to
        `count` that had no parent when they came; true when there are more."""
        for block in self._doubtful[-count:]:
            if block.slots and _is_orphan(block):
                self._stock.orphan(block)
        del self._doubtful[-count:]
        return bool(self._doubtful)

    def finish(self) -> int:
        """All at once; answers how many blocks there are."""
        self.settle()
        self.orphan(len(self._doubtful))
        return self.blocks

    def _link(self) -> None:
        previous: Block | None = None
        for block, parent_key in zip(self._fresh, self._parents, strict=True):
            before, previous = previous, block
            if not parent_key or block.depth == 0 or block.parent is not None:
                continue
            # Spill goes along chains, so the parent is mostly the one before.
            if before is not None and before.key == parent_key and before.tree is block.tree:
                parent = before
            else:
                parent = self._parent(block, parent_key)
            if parent.depth < block.depth:
                link(block, parent)

    def _parent(self, block: Block, key: bytes) -> Block:
        """The entry of a block's parent; a ghost where that has not survived."""
        blocks = block.tree.blocks
        parent = blocks.get(key)
        if parent is None:
            parent = blocks[key] = Block(block.tree, key, block.depth - 1)
        return parent

    def _rank(self) -> None:
        """In the order of their last touch, as far as the device knows it."""
        fresh = self._fresh
        if not fresh:
            return
        touched_ms = np.concatenate(self._touched_ms)
        if self._all_touched_ms is None:
            times, ranks = np.unique(touched_ms, return_inverse=True)
            first = self._stock.take_touches(len(times))
        else:
            ranks, first = np.searchsorted(self._all_touched_ms, touched_ms), self._first_touch
        for block, rank in zip(fresh, ranks.tolist(), strict=True):
            block.touched = touch = first + rank
            slab = block.slots[0][1].slab
            if touch > slab.touched:
                slab.touched = touch


def _is_orphan(block: Block) -> bool:
    return block.depth > 0 and (block.parent is None or not block.parent.slots)


def _runs(found: Sequence[Found]) -> Iterable[tuple[tuple[bytes, int, int, int], Iterable[Found]]]:
    """The entries by what is alike in them: namespace, shard rank and count, length. Mostly that is all of a slab."""
    kinds = set(map(_KIND, map(_ENTRY, found)))
    if len(kinds) == 1:
        return [(kinds.pop(), found)]
    return groupby(found, key=lambda each: _KIND(each[1]))
