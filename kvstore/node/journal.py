"""What others must still be told: I/O for the tiers' memories, records for the control plane; and their buckets."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from kvstore.blocks.digest import BUCKETS, empty_digests, toggle
from kvstore.blocks.state import Tier
from kvstore.node.answers import Action, Prolong, Record
from kvstore.node.tree import Block, Tree

_HASHED_AT_ONCE = 65536
_TREE = attrgetter("tree")


class Journal:
    """Queues in the order of the decisions. The caller drains both soon after each call of the catalog."""

    def __init__(self) -> None:
        self._actions: list[Action] = []
        self._records: list[Record] = []
        self._digests = empty_digests()
        # Hashing is a third of what a commit costs, so it waits for the next tick, out of the writer's way.
        self._unhashed: deque[tuple[Tier, Tree, list[bytes]]] = deque()
        self._unfiled: list[Block] = []
        self._buckets: list[set[Block]] = [set() for _ in range(BUCKETS)]

    def do(self, actions: Iterable[Action]) -> None:
        self._actions += actions

    def added(self, blocks: Sequence[Block], tier: Tier, now_ns: int) -> None:
        """The blocks have a copy in the tier now."""
        self._enter(tier, blocks)
        self._records += [_addition(block, tier, now_ns) for block in blocks]

    def adopted(self, tier: Tier, blocks: Sequence[Block]) -> None:
        """The blocks had a copy in the tier before anybody listened: there is no record of it."""
        for tree, of_tree in groupby(blocks, key=_TREE):
            self._list(tier, tree, [block.key for block in of_tree])
        self._unfiled += blocks

    def _enter(self, tier: Tier, blocks: Sequence[Block]) -> None:
        """blocks: of one tree."""
        if blocks:
            self._list(tier, blocks[0].tree, [block.key for block in blocks])
        buckets = self._buckets
        for block in blocks:
            buckets[block.key[0]].add(block)

    def _list(self, tier: Tier, tree: Tree, keys: list[bytes]) -> None:
        """Records that came or went are hashed later."""
        last = self._unhashed[-1] if self._unhashed else None
        if last is not None and last[0] is tier and last[1] is tree:
            last[2].extend(keys)
        else:
            self._unhashed.append((tier, tree, keys))

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
        self._list(tier, tree, [block.key])
        self._records.append(Record(True, tier, tree.shard, tree.namespace.namespace_id, block.key, 0))
        if not block.slots:
            self._buckets[block.key[0]].discard(block)

    def take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions

    def take_records(self) -> list[Record]:
        records, self._records = self._records, []
        return records

    def hash_records(self, count: int) -> bool:
        """Brings the digests up to date by up to `count` records. True when there are more."""
        self._file(count)
        while self._unhashed and count > 0:
            tier, tree, keys = self._unhashed[0]
            taken = keys[:count]
            toggle(self._digests, taken, tier, tree.shard.rank, tree.shard.count)
            count -= len(taken)
            del keys[: len(taken)]
            if not keys:
                self._unhashed.popleft()
        return bool(self._unhashed)

    def _file(self, count: int) -> None:
        """Puts adopted blocks into their buckets; those that have gone meanwhile are in none."""
        buckets = self._buckets
        for block in self._unfiled[-count:]:
            if block.slots:
                buckets[block.key[0]].add(block)
        del self._unfiled[-count:]

    def digests(self) -> npt.NDArray[np.uint64]:
        while self.hash_records(_HASHED_AT_ONCE):
            pass
        return self._digests.copy()

    def held(self, buckets: Iterable[int]) -> Iterator[Block]:
        """The live blocks of some buckets."""
        self._file(len(self._unfiled))
        yield from self.filed(buckets)

    def filed(self, buckets: Iterable[int]) -> Iterator[Block]:
        """As `held`, without those that were adopted a moment ago: nothing is done for it."""
        for bucket in buckets:
            yield from self._buckets[bucket]

    def recounted(self, buckets: Iterable[int], now_ns: int) -> list[Record]:
        """All records of some buckets, as additions."""
        return [_addition(block, tier, now_ns) for block in self.held(buckets) for tier, _ in block.slots]


def _addition(block: Block, tier: Tier, now_ns: int) -> Record:
    tree = block.tree
    remaining_ns = max(0, block.deadline_ns - now_ns)
    return Record(False, tier, tree.shard, tree.namespace.namespace_id, block.key, remaining_ns)
