"""The live blocks: how they come, are touched, and go.

Every way in which a block can leave ends in `_remove`: its slot becomes FREE, or RETIRED while somebody pins it; the
control plane is told; and the entry is pruned from its tree, which may make its parent the next candidate for eviction.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter

from kvstore.blocks.state import SlotState, Tier
from kvstore.node.answers import CloseSlab, Forget, Lifetime, OpenSlab, SetGeneration, ShardId
from kvstore.node.departures import Departures
from kvstore.node.journal import Journal
from kvstore.node.tree import Block, OpenNamespace, Tree
from kvstore.policy.evict import EvictionOrder, EvictionPolicy, Lru
from kvstore.policy.queue import RisingQueue
from kvstore.policy.slots import SizeClass, Slab, Slot, Space

# A sliding deadline is told to the control plane again when it has moved by this part of the block's time: the index
# forgets a block that much too early at worst, and a touch costs no record most of the time.
_PUBLISHED_PART = 8


class Stock:
    """Blocks and slots of all tiers. Every method that takes `now_ns` wants it not to fall from call to call.

    eviction: the policy of each tier; LRU for one that is not named. left: copies that went, by tier and reason (the
    name of its counter). on_pinned_gone: told of a block that lost a copy whose slot is pinned, and of the slot.
    """

    def __init__(
        self,
        spaces: Mapping[Tier, Space],
        journal: Journal,
        counters: Counter[str],
        eviction: Mapping[Tier, EvictionPolicy[Block]] | None = None,
    ) -> None:
        self.spaces = dict(spaces)
        self.journal = journal
        self.counters = counters
        self.namespaces: dict[bytes, OpenNamespace] = {}
        self.departures = Departures()
        self.left: Counter[tuple[Tier, str]] = Counter()
        self.owed: dict[Block, None] = {}
        self.owed_bytes = 0
        self.owed_from_hits = 0
        self.on_pinned_gone: Callable[[Block, Slot], None] = lambda block, slot: None
        self._eviction = {tier: (eviction or {}).get(tier) or Lru[Block]() for tier in self.spaces}
        self._learners = [policy for policy in dict.fromkeys(self._eviction.values()) if policy.learns]
        self._orders: dict[tuple[Tier, SizeClass], EvictionOrder[Block]] = {}
        self._expiry: RisingQueue[Block] = RisingQueue(attrgetter("deadline_ns"))
        self._touches = 0
        for tier, space in self.spaces.items():
            self._watch(tier, space)

    def _watch(self, tier: Tier, space: Space) -> None:
        def opened(slab: Slab) -> None:
            tenant, slot_bytes = slab.size_class
            self.journal.do([OpenSlab(tier, slab.slab_id, slab.slab_bytes, slot_bytes, tenant, slab.bank)])

        space.watch(opened, lambda slab: self.journal.do([CloseSlab(tier, slab.slab_id)]))

    # ---- slots -------------------------------------------------------------------------------------------------------

    def take_slots(self, tier: Tier, size_class: SizeClass, count: int) -> list[Slot]:
        """Up to `count` RESERVED slots: as many as there is room for without taking any from a block."""
        slots = self.spaces[tier].take(size_class, count)
        self.journal.do(SetGeneration(tier, slot.slab.slab_id, slot.index, slot.generation) for slot in slots)
        return slots

    def give_up(self, tier: Tier, slot: Slot) -> None:
        """A slot that holds no block (any more) becomes FREE, or RETIRED until its last pin ends."""
        self.spaces[tier].move((slot,), SlotState.RETIRED if slot.pins else SlotState.FREE)

    def pin(self, slot: Slot) -> None:
        slot.pins += 1

    def unpin(self, tier: Tier, slot: Slot) -> None:
        """One pin less; the last one frees a RETIRED slot and makes a live block a candidate again."""
        assert slot.pins > 0, slot
        slot.pins -= 1
        if slot.pins:
            return
        if slot.state is SlotState.RETIRED:
            self.spaces[tier].move((slot,), SlotState.FREE)
        elif slot.state is SlotState.LIVE:
            self.offer(slot.owner)

    # ---- blocks in ---------------------------------------------------------------------------------------------------

    def add(
        self,
        tier: Tier,
        copies: Sequence[tuple[Block, Slot, bytes]],
        asked_ns: int,
        now_ns: int,
        lifetimes: Mapping[bytes, Lifetime] | None = None,
    ) -> None:
        """Written slots become copies of blocks of one chain, given root first, with their checksums. The chain is to
        be touched then.

        asked_ns: the time that the store asked for; 0: the namespace's. lifetimes: by key, of copies from another node;
        they need no touch.
        """
        if not copies:
            return
        self.spaces[tier].move([slot for _, slot, _ in copies], SlotState.LIVE)
        ordinary = Lifetime(asked_ns, now_ns + copies[0][0].tree.namespace.rules.ttl.of_store(asked_ns))
        for block, slot, checksums in copies:
            asked_ns, deadline_ns = ordinary if lifetimes is None else lifetimes[block.key]
            if not block.slots:
                block.asked_ns = asked_ns
                block.guest = lifetimes is not None
            slot.owner = block
            block.slots.append((tier, slot))
            if len(block.slots) > 1:
                block.slots.sort(key=lambda copy: copy[0])
            if checksums:
                block.checksums = checksums
            if deadline_ns > block.deadline_ns:
                block.deadline_ns = block.published_ns = deadline_ns
        first, slot, _ = copies[0]
        first.tree.namespace.hold(tier, len(copies), slot.slab.size_class.slot_bytes)
        # Of those that end together the deepest go first, so that there is no hole even between two of them.
        self._expiry.add_all(block for block, _, _ in reversed(copies) if block not in self._expiry)
        self.journal.added([block for block, _, _ in copies], tier, now_ns)

    def join(self, tier: Tier, block: Block, slot: Slot, now_ns: int) -> None:
        """A written slot becomes one more copy of a live block. Its time stays."""
        self.spaces[tier].move((slot,), SlotState.LIVE)
        slot.owner = block
        block.slots.append((tier, slot))
        block.slots.sort(key=lambda copy: copy[0])
        slot.slab.touched = max(slot.slab.touched, block.touched)
        block.tree.namespace.hold(tier, 1, slot.slab.size_class.slot_bytes)
        self.journal.added([block], tier, now_ns)
        if tier is Tier.NVME:
            self.excuse(block)
        self.offer(block)

    def adopted(self, tier: Tier, fresh: Sequence[Block], joined: Sequence[Block]) -> None:
        """Blocks that a device had already are live: `fresh` ones as new blocks, `joined` ones by one more copy."""
        self._expiry.add_all(fresh)
        self.journal.adopted(tier, [*fresh, *joined])
        for block in joined:
            block.slots.sort(key=lambda copy: copy[0])
            self.excuse(block)
            self.offer(block)
        for block in fresh:
            if block.first_child is None:
                self.offer(block)

    def outlast(self, tree: Tree, lifetimes: Mapping[bytes, Lifetime], now_ns: int) -> None:
        """Copies of another node's blocks live as long as those do. One that is new here is touched first."""
        touch = self.take_touches(1)
        for key, lifetime in lifetimes.items():
            block = tree.blocks.get(key)
            if block is None or not block.slots:
                continue
            if not block.hits:
                block.touched, block.hits = touch, 1
                for _, slot in block.slots:
                    slot.slab.touched = touch
                if self.owed_from_hits == 1:
                    self._owe(block)
            if lifetime.deadline_ns > block.deadline_ns > now_ns:
                block.deadline_ns = lifetime.deadline_ns
                if block.deadline_ns - block.published_ns > (block.deadline_ns - now_ns) // _PUBLISHED_PART:
                    self.journal.prolonged(block, now_ns)

    def take_touches(self, count: int) -> int:
        """Numbers for so many touches, later than all before; answers the first."""
        first = self._touches + 1
        self._touches += count
        return first

    def touch(self, tree: Tree, keys: Sequence[bytes], now_ns: int, asked_ns: int | None = None) -> None:
        """The chain is in use: what is live of it becomes the most recent, and lives on by the namespace's rules.

        asked_ns: the time that a store asks for, 0: the namespace's; None: a reader touches. No deadline ever falls.
        """
        self._touches += 1
        touch = self._touches
        rule = tree.namespace.rules.ttl
        sliding = rule.sliding
        plain_ns = rule.of_store(0)
        least_ns = 0 if asked_ns is None else rule.of_ancestors(asked_ns)
        find = tree.blocks.get
        used: list[Block] = []
        for key in keys:
            block = find(key)
            if block is None or not block.slots or block.deadline_ns <= now_ns:
                continue
            block.touched = touch
            block.hits += 1
            block.guest &= asked_ns is None
            used.append(block)
            if block.hits == self.owed_from_hits:
                self._owe(block)
            for _, slot in block.slots:
                slot.slab.touched = touch
            ttl_ns = rule.of_store(block.asked_ns) if block.asked_ns else plain_ns
            if least_ns > ttl_ns:
                ttl_ns, block.asked_ns = least_ns, asked_ns or 0
            deadline_ns = now_ns + (ttl_ns if sliding else least_ns)
            if deadline_ns > block.deadline_ns:
                block.deadline_ns = deadline_ns
                if deadline_ns - block.published_ns > ttl_ns // _PUBLISHED_PART:
                    self.journal.prolonged(block, now_ns)
        for learner in self._learners:
            learner.used(used, now_ns)

    def set_deadline(self, block: Block, deadline_ns: int, now_ns: int) -> None:
        """An operator decides how long a live block lives; it may fall too."""
        falls = deadline_ns < block.deadline_ns
        block.deadline_ns = deadline_ns
        if falls:
            self._expiry.lower(block)
        self.journal.prolonged(block, now_ns)

    def touched_deadline_ns(self, block: Block, now_ns: int) -> int:
        """The deadline that a touch by a reader would give a block; 0: touches give none."""
        rule = block.tree.namespace.rules.ttl
        return now_ns + rule.of_store(block.asked_ns) if rule.sliding else 0

    def offer(self, block: Block) -> None:
        """The block may have turned a candidate for eviction."""
        for tier, slot in block.slots:
            if worth_evicting(block, slot):
                self._order(tier, slot.slab.size_class).offer(block)

    # ---- what is owed to NVMe ----------------------------------------------------------------------------------------

    def _owe(self, block: Block) -> None:
        """The block's DRAM slot must stay until it is on NVMe too."""
        slot = block.slot_in(Tier.DRAM)
        if slot is not None and block.owed is None and block.slot_in(Tier.NVME) is None:
            block.owed = slot
            self.owed[block] = None
            self.owed_bytes += slot.slab.size_class.slot_bytes

    def excuse(self, block: Block) -> None:
        """The block is on NVMe, or will not get there: its DRAM slot is like any other."""
        slot = block.owed
        if slot is not None:
            block.owed = None
            del self.owed[block]
            self.owed_bytes -= slot.slab.size_class.slot_bytes
            self.offer(block)

    # ---- blocks out --------------------------------------------------------------------------------------------------

    def expire(self, now_ns: int, blocks_max: int) -> bool:
        """Removes up to `blocks_max` blocks that are past their deadline. True when there were any."""
        removed = 0
        while removed < blocks_max:
            block = self._expiry.first()
            if block is None or block.deadline_ns > now_ns:
                break
            self.remove(block, "expired")
            removed += 1
        return removed > 0

    def remove(self, block: Block, counter: str) -> None:
        """Removes all copies of a block, whoever descends from it: those become orphans and go before all others."""
        self.counters[counter] += 1
        for tier, slot in list(block.slots):
            self._remove(block, tier, slot, counter)
        self._orphan_descendants(block)

    def remove_copy(self, block: Block, tier: Tier, slot: Slot, counter: str) -> None:
        """Removes one copy; with the last one the block goes, as by `remove`."""
        if len(block.slots) == 1:
            self.remove(block, counter)
            return
        self.counters[counter] += 1
        self._remove(block, tier, slot, counter)
        if tier is Tier.NVME:
            self._owe(block)
        self.offer(block)

    def shed(self, blocks: Sequence[Block], counter: str) -> set[bytes]:
        """Removes those that came as copies, that nobody holds or writes, and that nothing here descends from; the
        deepest go first. Answers the keys of those that went."""
        shed = set()
        for block in sorted(blocks, key=lambda block: -block.depth):
            held = block.writer is not None or any(slot.pins for _, slot in block.slots)
            if block.guest and block.first_child is None and not held:
                shed.add(block.key)
                self.remove(block, counter)
        return shed

    def lose(self, tier: Tier, bank: int, count: int, counter: str) -> int:
        """Removes up to `count` of the copies that a device has; answers how many."""
        slabs = (slab for slab in self.spaces[tier].slabs() if slab.bank == bank and slab.live)
        live = (slot for slab in slabs for slot in slab.slots if slot.state is SlotState.LIVE)
        copies = [(slot.owner, slot) for slot in islice(live, count)]
        copies.sort(key=lambda copy: -copy[0].depth)
        for block, slot in copies:
            self._remove(block, tier, slot, counter)
            self._owe(block)
            self.offer(block)
        gone = {block for block, _ in copies if not block.slots}
        for block in gone:
            # Below another one that has gone, or an orphan, all is looked at already: a chain is walked once.
            if block.first_child is not None and block.touched and block.parent not in gone:
                self._orphan_descendants(block)
        self.counters[counter] += len(copies)
        return len(copies)

    def orphan(self, block: Block) -> None:
        """Its ancestors are not here: it goes first, with all that hangs on it."""
        block.touched = 0
        for tier, slot in block.slots:
            self._order(tier, slot.slab.size_class).orphaned(block)
        self._orphan_descendants(block)

    def _orphan_descendants(self, block: Block) -> None:
        for descendant in _not_orphaned(block):
            descendant.touched = 0
            for tier, slot in descendant.slots:
                self._order(tier, slot.slab.size_class).orphaned(descendant)

    def classes(self, tier: Tier, tenant: str) -> list[SizeClass]:
        """Of a tenant's blocks that ever were candidates in the tier."""
        return [known for held, known in self._orders if held is tier and known.tenant == tenant]

    def evict_next(self, tier: Tier, size_class: SizeClass, count: int, counter: str = "evicted_pressure") -> bool:
        """Evicts up to `count` of the class's candidates from the tier. False when there was none."""

        def is_candidate(block: Block) -> bool:
            slot = block.slot_in(tier)
            return slot is not None and worth_evicting(block, slot)

        order = self._order(tier, size_class)
        evicted = 0
        while evicted < count and (block := order.take(is_candidate)) is not None:
            slot = block.slot_in(tier)
            assert slot is not None
            self.evict(block, tier, slot, counter)
            evicted += 1
        return evicted > 0

    def evict(self, block: Block, tier: Tier, slot: Slot, counter: str = "evicted_pressure") -> None:
        """Removes one copy for its room."""
        assert evictable(block, slot), block
        self.counters[counter] += 1
        self._remove(block, tier, slot, counter)

    def _remove(self, block: Block, tier: Tier, slot: Slot, reason: str) -> None:
        if slot is block.owed:
            self.excuse(block)
        block.slots.remove((tier, slot))
        order = self._orders.get((tier, slot.slab.size_class))
        if order is not None:
            order.forget(block)
        slot.owner = None
        namespace = block.tree.namespace
        namespace.hold(tier, -1, slot.slab.size_class.slot_bytes)
        self.left[tier, reason] += 1
        self.give_up(tier, slot)
        if tier is Tier.NVME:
            self.journal.do([Forget(tier, slot.slab.slab_id, slot.index, slot.generation)])
        self.journal.withdrawn(block, tier)
        if not block.slots:
            namespace.gone[reason] += 1
            self.departures.note(block.tree, (block.key,), reason)
            self._expiry.discard(block)
            block.checksums = b""
            block.deadline_ns = block.asked_ns = block.hits = block.uses = 0
            block.tree.prune(block)
        if slot.pins:
            self.on_pinned_gone(block, slot)

    def _order(self, tier: Tier, size_class: SizeClass) -> EvictionOrder[Block]:
        order = self._orders.get((tier, size_class))
        if order is None:
            order = self._orders[tier, size_class] = self._eviction[tier].new_order()
        return order

    # ---- looking -----------------------------------------------------------------------------------------------------

    @property
    def block_count(self) -> int:
        return len(self._expiry)

    def tree(self, namespace_id: bytes, shard: ShardId) -> Tree | None:
        """The tree of a shard; None when nothing was ever reserved in it."""
        namespace = self.namespaces.get(namespace_id)
        return None if namespace is None else namespace.trees.get(shard)

    def trees(self) -> Iterator[Tree]:
        for namespace in self.namespaces.values():
            yield from namespace.trees.values()

    def waits_for_eviction(self, block: Block, tier: Tier, slot: Slot) -> bool:
        """Whether the block is in its class's order (for checks)."""
        order = self._orders.get((tier, slot.slab.size_class))
        return order is not None and block in order


def evictable(block: Block, slot: Slot) -> bool:
    """Whether pressure may take this copy: nobody holds it, it is not owed to NVMe, and no descendant here is left
    without its ancestor."""
    return (
        slot.pins == 0
        and slot.state is SlotState.LIVE
        and slot is not block.owed
        and (block.first_child is None or len(block.slots) > 1)
    )


def worth_evicting(block: Block, slot: Slot) -> bool:
    """Whether there is room for another block then: not where the slab is only read."""
    return evictable(block, slot) and not slot.slab.read_only


def _not_orphaned(block: Block) -> Iterator[Block]:
    """The descendants that are no orphans yet. Below an orphan all are, unless they were touched since."""
    waiting = list(block.children())
    while waiting:
        child = waiting.pop()
        if child.slots and child.touched == 0:
            continue
        yield child
        waiting.extend(child.children())
