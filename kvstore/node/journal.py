"""What others must still be told: I/O for the tiers' memories, records for the control plane; and their buckets."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from kvstore.blocks.digest import BUCKETS, empty_digests, toggle
from kvstore.blocks.state import Tier
from kvstore.node.answers import Action, Prolong, Record
from kvstore.node.tree import Block, Tree


class Journal:
    """Queues in the order of the decisions. The caller drains both soon after each call of the catalog."""

    def __init__(self) -> None:
        self._actions: list[Action] = []
        self._records: list[Record] = []
        self._digests = empty_digests()
        # Hashing is a third of what a commit costs, so it waits for the next tick, out of the writer's way.
        self._unhashed: list[tuple[Tier, Tree, bytes]] = []
        self._buckets: list[set[Block]] = [set() for _ in range(BUCKETS)]

    def do(self, actions: Iterable[Action]) -> None:
        self._actions += actions

    def added(self, blocks: Sequence[Block], tier: Tier, now_ns: int) -> None:
        """The blocks have a copy in the tier now."""
        self._unhashed += [(tier, block.tree, block.key) for block in blocks]
        self._records += [_addition(block, tier, now_ns) for block in blocks]
        for block in blocks:
            self._buckets[block.key[0]].add(block)

    def prolonged(self, block: Block, now_ns: int) -> None:
        """The deadline of a block has moved far from the one that the control plane and its device know."""
        self._records += [_addition(block, tier, now_ns) for tier, _ in block.slots]
        slot = block.slot_in(Tier.NVME)
        if slot is not None:
            self._actions.append(Prolong(Tier.NVME, slot.slab.slab_id, slot.index, block.deadline_ns))
        block.published_ns = block.deadline_ns

    def withdrawn(self, block: Block, tier: Tier) -> None:
        """A copy of the block is gone (it is no longer among its slots)."""
        tree = block.tree
        self._unhashed.append((tier, tree, block.key))
        self._records.append(Record(True, tier, tree.shard, tree.namespace.namespace_id, block.key, 0))
        if not block.slots:
            self._buckets[block.key[0]].discard(block)

    def take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def take_records(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def hash_records(self) -> None:
        """Brings the digests up to date."""
        unhashed, self._unhashed = self._unhashed, []
        for (tier, tree), batch in groupby(unhashed, key=lambda entry: entry[:2]):
            toggle(self._digests, [key for _, _, key in batch], tier, tree.shard.rank, tree.shard.count)

    def digests(self) -> npt.NDArray[np.uint64]:
        self.hash_records()
        return self._digests.copy()

    def held(self, buckets: Iterable[int]) -> Iterator[Block]:
        """The live blocks of some buckets."""
        for bucket in buckets:
            yield from self._buckets[bucket]

    def recounted(self, buckets: Iterable[int], now_ns: int) -> list[Record]:
        """All records of some buckets, as additions."""
        return [_addition(block, tier, now_ns) for block in self.held(buckets) for tier, _ in block.slots]


def _addition(block: Block, tier: Tier, now_ns: int) -> Record:
    tree = block.tree
    remaining_ns = max(0, block.deadline_ns - now_ns)
    return Record(False, tier, tree.shard, tree.namespace.namespace_id, block.key, remaining_ns)
