"""The catalog: sole authority over a node's slots. It decides and never awaits.

Every method is synchronous, does no I/O and knows no clock: what must still be done to memories is queued as actions
(`take_actions`), what the control plane must be told as records (`take_records`). The caller does the actions of a call
before it awaits anything; so each decision is atomic and needs no lock. All methods belong to one thread; `now_ns` is
monotonic. Errors are raised before anything is changed, LeaseLost from `commit` apart.

    policy.slots   slots, slabs, size classes      node.stock   how live blocks come, are touched, and go
    node.tree      who descends from whom          node.room    takes room from others
    node.leases    unfinished puts                 node.pins    readers' holds; node.operatorpins  operators'
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from kvstore.blocks.digest import BUCKETS
from kvstore.blocks.layout import Layout
from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import InvalidInput, UnknownNamespace
from kvstore.node.adopt import Adoption
from kvstore.node.answers import (
    ROOT,
    Above,
    Action,
    CloseSlab,
    Damaged,
    Forget,
    Lifetime,
    Listed,
    OpenSlab,
    PinnedBlock,
    PinnedByOperator,
    Pins,
    Place,
    Prolong,
    Record,
    Reservation,
    SetGeneration,
    ShardId,
    Standing,
    TierUsage,
    Usage,
    Whereabouts,
    place_of,
)
from kvstore.node.audit import Audit
from kvstore.node.copies import Copy, CopyTable
from kvstore.node.departures import DECLINED
from kvstore.node.journal import Journal
from kvstore.node.leases import LeaseTable
from kvstore.node.operatorpins import OperatorPin, OperatorPins, chain_of
from kvstore.node.pins import PinTable
from kvstore.node.purge import Purge, of_namespaces, of_prefix
from kvstore.node.quotas import Quotas, Used
from kvstore.node.reading import Reading, Visit
from kvstore.node.reserve import Reserving, check_shard
from kvstore.node.room import Room
from kvstore.node.stock import Stock
from kvstore.node.tree import Block, OpenNamespace
from kvstore.policy.evict import EvictionPolicy
from kvstore.policy.quotas import Quota
from kvstore.policy.rules import DEFAULT_RULES, NamespaceRules
from kvstore.policy.slots import BankedSpace, Slot, Space

__all__ = [
    "Action",
    "Catalog",
    "CloseSlab",
    "Copy",
    "Damaged",
    "Forget",
    "OpenSlab",
    "PinnedBlock",
    "Pins",
    "Place",
    "Prolong",
    "Record",
    "Reservation",
    "SetGeneration",
    "ShardId",
    "TierUsage",
    "Usage",
    "Visit",
]

_EXPIRED_PER_TICK_MAX = 4096
_HASHED_PER_TICK_MAX = 4096
_TRIMMED_PER_TICK_MAX = 256
_DAMAGE = ("corrupt", "unreadable")


class Catalog:
    """Blocks, slots, leases and pins of one node.

    spaces: the slots of each tier. lease_ns: how long an unfinished put may be silent. hold_ns_max: longest time of a
    pin. pinned_bytes_max: bytes that same-host readers may keep pinned past their deadline. new_id: 16 bytes that were
    never given before. operator_pinned_bytes_max: bytes that operators' pins may keep. rules: of namespaces that are
    opened without. spill_from_hits: at which touch a block in DRAM is owed to NVMe (1: its own store, 2: the first one
    after it); 0: never. eviction: the policy of each tier; LRU where none is named.
    """

    def __init__(
        self,
        spaces: Mapping[Tier, Space],
        *,
        lease_ns: int,
        hold_ns_max: int,
        pinned_bytes_max: int,
        new_id: Callable[[], bytes],
        operator_pinned_bytes_max: int = 0,
        rules: NamespaceRules = DEFAULT_RULES,
        spill_from_hits: int = 0,
        eviction: Mapping[Tier, EvictionPolicy[Block]] | None = None,
    ) -> None:
        self._rules = rules
        self._counters: Counter[str] = Counter()
        self.namespace_changes = 0
        self._journal = Journal()
        self._damaged: list[Damaged] = []
        self._stock = Stock(spaces, self._journal, self._counters, eviction)
        self._stock.owed_from_hits = spill_from_hits
        self._pins = PinTable(
            self._stock, self._counters, hold_ns_max=hold_ns_max, pinned_bytes_max=pinned_bytes_max, new_id=new_id
        )
        self._operator_pins = OperatorPins(self._stock, operator_pinned_bytes_max)
        self._leases = LeaseTable(self._stock, self._counters, lease_ns=lease_ns, new_id=new_id)
        self._quotas = Quotas(self._stock, self._leases)
        self._room = Room(self._stock, self._pins, self._quotas)
        self._reserving = Reserving(self._stock, self._leases, self._pins, self._room, self._quotas, self._counters)
        self._reading = Reading(self._stock, self._pins)
        self._landed: dict[tuple[int, int], Slot] = {}
        self._copies = CopyTable(self._stock, self._room)
        self._quotas.copied_slots = self._copies.targets
        self._audit = Audit(
            self._stock, self._leases, self._pins, self._operator_pins, self._copies, self._landed.values()
        )

    # ---- namespaces --------------------------------------------------------------------------------------------------

    def open_namespace(
        self, namespace_id: bytes, tenant: str, layout: Layout, rules: NamespaceRules | None = None
    ) -> None:
        """Makes a namespace known. Again is allowed, and may bring other rules, as `set_rules` does.

        Raises InvalidInput when it was opened with another layout or tenant.
        """
        known = self._stock.namespaces.get(namespace_id)
        if known is None:
            self._stock.namespaces[namespace_id] = OpenNamespace(
                namespace_id, tenant, layout, rules or self._rules, self._stock.offer
            )
            self.namespace_changes += 1
            return
        if known.layout != layout or known.tenant != tenant:
            raise InvalidInput(f"namespace {namespace_id.hex()} was opened before, with another layout or tenant")
        if rules is not None:
            self.set_rules(namespace_id, rules)

    def set_rules(self, namespace_id: bytes, rules: NamespaceRules) -> None:
        """Other rules from now on. What is stored already follows them from its next touch; no deadline ever falls.

        Raises UnknownNamespace.
        """
        namespace = self._namespace(namespace_id)
        if namespace.rules != rules:
            namespace.rules = rules
            self.namespace_changes += 1

    def rules(self, namespace_id: bytes) -> NamespaceRules:
        """Raises UnknownNamespace."""
        return self._namespace(namespace_id).rules

    def namespaces(self) -> Iterator[OpenNamespace]:
        """All that were opened. `namespace_changes` tells whether they, or their rules, are others than before."""
        return iter(self._stock.namespaces.values())

    def keys(self, namespace_id: bytes) -> list[tuple[ShardId, list[bytes]]]:
        """Of all blocks that the namespace has, or had a moment ago, by shard; parents mostly before their children."""
        namespace = self._stock.namespaces.get(namespace_id)
        return [] if namespace is None else [(shard, list(tree.blocks)) for shard, tree in namespace.trees.items()]

    def listed(self, namespace_id: bytes, bucket: int, now_ns: int) -> list[Listed]:
        """The live blocks of a namespace in one bucket, in no order. Walks the blocks of the bucket."""
        return [
            Listed(block.tree.shard, block.key, above_of(block))
            for block in self._journal.held((bucket,))
            if block.tree.namespace.namespace_id == namespace_id and block.deadline_ns > now_ns
        ]

    def layout(self, namespace_id: bytes) -> Layout:
        """Raises UnknownNamespace."""
        return self._namespace(namespace_id).layout

    def knows(self, namespace_id: bytes) -> bool:
        """Whether a namespace was opened here."""
        return namespace_id in self._stock.namespaces

    def may_use(self, tenant: str, namespace_id: bytes) -> bool:
        """Whether a namespace is the tenant's, or nobody's yet."""
        known = self._stock.namespaces.get(namespace_id)
        return known is None or known.tenant == tenant

    def expect_own(self, tenant: str, namespace_id: bytes) -> None:
        """Raises UnknownNamespace, in the same words, for one that is not known and for another tenant's."""
        if self._namespace(namespace_id).tenant != tenant:
            raise _unknown(namespace_id)

    def tenant(self, namespace_id: bytes) -> str:
        """Raises UnknownNamespace."""
        return self._namespace(namespace_id).tenant

    # ---- tenants' quotas ---------------------------------------------------------------------------------------------

    def set_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """What tenants may hold from now on, in place of what was set before; see `kvstore.node.quotas`. What is over
        it goes with the next ticks."""
        self._quotas.set(quotas)

    def quotas(self) -> tuple[Mapping[str, Quota], Used]:
        """What is set, and what each tenant holds or has taken. Walks namespaces and leases."""
        return self._quotas.all(), self._quotas.used()

    # ---- puts --------------------------------------------------------------------------------------------------------

    def reserve(
        self,
        namespace_id: bytes,
        shard: ShardId,
        keys: Sequence[bytes],
        first: int,
        holder: str,
        now_ns: int,
        *,
        ttl_ns: int = 0,
        private_slots: int = 0,
        tier: Tier = Tier.DRAM,
        lease_id: bytes = b"",
        above: Above = ROOT,
        lifetimes: Mapping[bytes, Lifetime] | None = None,
        grant: bool = True,
    ) -> Reservation:
        """Slots for the blocks of keys[first:]; keys[:first] are their ancestors. Touches the whole chain.

        Per block: PRESENT (a copy is in the tier, or on NVMe; pinned until the lease settles), IN_PROGRESS (another
        lease writes it), GRANTED or REFUSED. What is granted is the longest prefix that there is room for. Room comes
        from capacity, expired blocks, eviction and overdue pins (see `room`). Private slots come last; nobody can find
        them.

        ttl_ns: how long the blocks and at least their ancestors live, within the bounds; 0: the namespace's.
        lease_id: drawn by the writer; b"": by the node. above: of a chain that is stored in parts.
        lifetimes: of every key, when the blocks are copies of another node's: nothing is touched then, and they live as
        long as those. grant: else nothing is given, whatever room there is.

        Raises UnknownNamespace; InvalidInput for keys that are not 16 bytes or come twice, `first` beyond the keys, a
        rank outside its count, a tier that is not here, a lease's id that is not new; TooLarge when one slot can never
        fit.
        """
        return self._reserving.reserve(
            self._namespace(namespace_id),
            shard,
            keys,
            first,
            holder,
            now_ns,
            ttl_ns,
            private_slots,
            tier,
            lease_id,
            above,
            lifetimes,
            grant,
        )

    def renew(self, lease_id: bytes, holder: str, now_ns: int) -> None:
        """The writer gave a sign of life. Raises LeaseLost, PermissionRefused."""
        self._leases.renew(lease_id, holder, now_ns)

    def commit(
        self, lease_id: bytes, holder: str, written: Sequence[bool], checksums: Sequence[bytes], now_ns: int
    ) -> list[Outcome]:
        """The writer writes no more: what it has written becomes readable, the rest is given back.

        written, checksums: one per GRANTED, private slots included; 8 bytes per granule, or b"": none known. Outcomes:
        STORED or CANCELLED. A private slot is given up either way; those who pin it may finish.

        Raises LeaseLost when the lease is unknown or has expired (its slots are FREE then, quarantined ones too);
        PermissionRefused and InvalidInput change nothing.
        """
        return self._leases.commit(lease_id, holder, written, checksums, now_ns)

    def abort(self, lease_id: bytes, holder: str, now_ns: int) -> None:
        """The writer writes no more, and nothing becomes readable. May come twice. Raises PermissionRefused."""
        self._leases.abort(lease_id, holder)

    # ---- readers -----------------------------------------------------------------------------------------------------

    def pin(
        self,
        namespace_id: bytes,
        shard: ShardId,
        keys: Sequence[bytes],
        wanted: Sequence[bool],
        holder: str,
        now_ns: int,
        deadline_ns: int,
        prefer: Tier | None = None,
        touch: bool = True,
    ) -> Pins:
        """Pins one copy of each wanted key that is here: READY, EXPIRED or MISSING. Touches the whole chain, if at all.

        prefer: the tier whose copy to take where there is one; the fastest otherwise. The deadline is cut to the
        longest hold. What it means depends on the holder: see `kvstore.node.pins`. Raises InvalidInput for flags that
        do not fit the keys and a rank outside its count. An unknown namespace has no blocks.
        """
        check_shard(shard)
        if len(wanted) != len(keys):
            raise InvalidInput(f"pin: {len(wanted)} flags for {len(keys)} keys")
        tree = self._stock.tree(namespace_id, shard)
        return self._reading.pin_chain(tree, keys, wanted, holder, now_ns, deadline_ns, prefer, touch)

    def standings(
        self, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes], now_ns: int
    ) -> list[Standing | None]:
        """Of each key's block; None where none is live here. Touches nothing."""
        tree = self._stock.tree(namespace_id, shard)
        blocks = {} if tree is None else tree.blocks
        return [_standing(blocks.get(key), now_ns) for key in keys]

    def whereabouts(self, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes], now_ns: int) -> list[Whereabouts]:
        """Where each key is, or why it is not, as far as this node remembers. Touches nothing.

        namespace_id: b"": whichever namespace has the key, for a key is of one alone. Raises InvalidInput for a rank
        outside its count."""
        check_shard(shard)
        return [self._reading.whereabouts(namespace_id, shard, key, now_ns) for key in keys]

    def declined(self, namespace_id: bytes, keys: Sequence[bytes]) -> None:
        """A client found blocks not worth loading; remembered for `whereabouts`."""
        self._stock.departures.note(namespace_id, keys, DECLINED)
        self._counters["declined_blocks"] += len(keys)

    def pin_lease(self, lease_id: bytes, holder: str, now_ns: int, deadline_ns: int) -> Pins:
        """Pins what an open lease has of its blocks, for a handoff: per outcome of its reservation READY for GRANTED
        (the private ones too) and PRESENT, the outcome itself for what it does not have. Raises LeaseLost."""
        return self._reading.pin_lease(self._leases.opened(lease_id, now_ns), holder, now_ns, deadline_ns)

    def unpin(self, pin_id: bytes) -> None:
        """Ends a pin. May come twice, and after the pin was revoked."""
        pin = self._pins.table.find(pin_id)
        if pin is not None:
            self._pins.end(pin)

    def pin_valid(self, pin_id: bytes) -> bool:
        """Whether the pin still holds its slots: it was neither ended nor revoked."""
        return self._pins.table.find(pin_id) is not None

    def release_holder(self, holder: str, now_ns: int) -> None:
        """The holder's process is dead, or its connection closed: its pins and leases end, quarantine too."""
        self._leases.release_holder(holder)
        self._pins.release_holder(holder)

    # ---- operators' pins ---------------------------------------------------------------------------------------------

    def pin_by_operator(
        self, pin_id: bytes, namespace_id: bytes, keys: Sequence[bytes], now_ns: int, end_ns: int
    ) -> PinnedByOperator | None:
        """Keeps what is here of these keys and their ancestors, in all shards, until `end_ns`; see
        `kvstore.node.operatorpins`. None: nothing is. An id that is known keeps its end.

        namespace_id: b"": whichever namespace has the keys. Raises TooLarge, and Refused while others' pins keep the
        bytes; nothing is changed then."""
        blocks = chain_of(self._stock.trees(), namespace_id, keys, now_ns)
        pin = self._operator_pins.add(pin_id, blocks, now_ns, end_ns)
        return None if pin is None else self._pinned_by_operator(pin, now_ns)

    def unpin_by_operator(self, pin_id: bytes, now_ns: int) -> PinnedByOperator | None:
        """Ends an operator's pin before its time; answers what it kept, None where it is not known."""
        pin = self._operator_pins.find(pin_id)
        if pin is None:
            return None
        kept = self._pinned_by_operator(pin, now_ns)
        self._operator_pins.end(pin, now_ns)
        return kept

    def operator_pins(self, now_ns: int) -> list[PinnedByOperator]:
        """All that have not ended."""
        return [self._pinned_by_operator(pin, now_ns) for pin in self._operator_pins if pin.end_ns > now_ns]

    @property
    def operator_pinned_bytes(self) -> tuple[int, int]:
        """What operators' pins keep, and what they may."""
        return self._operator_pins.used_bytes, self._operator_pins.bytes_max

    def _pinned_by_operator(self, pin: OperatorPin, now_ns: int) -> PinnedByOperator:
        remaining_ns = max(0, pin.end_ns - now_ns)
        return PinnedByOperator(pin.id, pin.namespace_id, pin.last_key, len(pin.blocks), pin.bytes, remaining_ns)

    # ---- loads' landing places ---------------------------------------------------------------------------------------

    def land(self, tenant: str, length: int, now_ns: int) -> Place | None:
        """A RESERVED slot in DRAM that nobody can find, with room found as `reserve` does; None: no room now.

        It stays until `unland`. Raises InvalidInput for no bytes, TooLarge for more than ever fit.
        """
        if length <= 0:
            raise InvalidInput(f"land: {length} bytes")
        size_class = self._stock.spaces[Tier.DRAM].size_class(tenant, length)
        slots = self._room.take(Tier.DRAM, size_class, 1, now_ns, counted=False)
        if not slots:
            self._counters["refused_landings"] += 1
            return None
        slot = slots[0]
        self._landed[slot.slab.slab_id, slot.index] = slot
        return place_of(Tier.DRAM, slot)

    def unland(self, place: Place) -> None:
        """Gives a landing place back. No request may be posted on it any more."""
        slot = self._landed.pop((place.slab_id, place.slot), None)
        assert slot is not None, f"{place} is no landing place"
        self._stock.give_up(Tier.DRAM, slot)

    # ---- copies between this node's tiers ----------------------------------------------------------------------------

    def next_spills(self, count: int, now_ns: int) -> list[Copy]:
        """Begins copies to NVMe of up to `count` blocks that are owed there, first come first served."""
        copies: list[Copy] = []
        for block in self._stock.owed:
            if len(copies) == count:
                break
            copy = self._copies.begin(block, Tier.DRAM, Tier.NVME, now_ns)
            if copy is not None:
                copies.append(copy)
        return copies

    def begin_copy(
        self, namespace_id: bytes, shard: ShardId, key: bytes, source: Tier, target: Tier, now_ns: int
    ) -> Copy | None:
        """Begins a copy between two tiers. None when there is nothing to copy, or it is there or being made."""
        tree = self._stock.tree(namespace_id, shard)
        block = None if tree is None else tree.blocks.get(key)
        return None if block is None else self._copies.begin(block, source, target, now_ns)

    def find_room(self, copy: Copy, length: int, now_ns: int) -> Place | None:
        """A slot for `length` bytes of the copy, with room found as `reserve` does; None: no room now.

        Raises TooLarge when there can never be any."""
        return self._copies.find_room(copy, length, now_ns)

    def finish_copy(self, copy: Copy, checksums: bytes, now_ns: int, *, keep: bool = False) -> bool:
        """The target holds the bytes, whose checksums these are, and can be found. False: the block has gone meanwhile,
        or the target's device, and so has the copy. keep: the target stays pinned in either case, until
        `release_copy`."""
        return self._copies.finish(copy, checksums, now_ns, keep=keep)

    def release_copy(self, copy: Copy) -> None:
        """Nobody reads a kept target any more."""
        self._copies.release(copy)

    def abandon_copy(self, copy: Copy) -> None:
        """No copy comes of it."""
        self._copies.abandon(copy)

    def excuse(self, copy: Copy) -> None:
        """No later try comes either: the block's DRAM slot need not wait for one."""
        self._stock.excuse(copy.block)

    def excuse_all(self) -> int:
        """Nothing is owed to NVMe any more; answers how many blocks were."""
        owing = list(self._stock.owed)
        for block in owing:
            self._stock.excuse(block)
        return len(owing)

    @property
    def owed_bytes(self) -> int:
        """Slots in DRAM that wait to be copied to NVMe."""
        return self._stock.owed_bytes

    # ---- devices -----------------------------------------------------------------------------------------------------

    def adopt(self, tier: Tier, now_ns: int, touched_ms: npt.NDArray[np.int64] | None = None) -> Adoption:
        """Begins to bring in what the devices of a tier had already; see `kvstore.node.adopt`."""
        return Adoption(self._stock, self._counters, tier, now_ns, touched_ms)

    def hold_bank(self, tier: Tier, bank: int, *, held: bool) -> None:
        """A device gives no slots for now; or does again."""
        self._stock.spaces[tier].banks[bank].in_service = not held

    # ---- blocks ------------------------------------------------------------------------------------------------------

    def drop(self, namespace_id: bytes, shard: ShardId, key: bytes, reason: str) -> bool:
        """Removes a block at once, in all tiers ("corrupt"); counted as dropped_<reason>. False: not here."""
        tree = self._stock.tree(namespace_id, shard)
        block = None if tree is None else tree.blocks.get(key)
        if block is None or not block.slots:
            return False
        self._stock.remove(block, f"dropped_{reason}")
        self._note_damage(Damaged(namespace_id, key, None, reason))
        return True

    def drop_copy(self, namespace_id: bytes, shard: ShardId, key: bytes, place: Place, reason: str) -> bool:
        """Removes the copy of a block that lies at a place; counted as dropped_<reason>. False: it is gone."""
        tree = self._stock.tree(namespace_id, shard)
        block = None if tree is None else tree.blocks.get(key)
        slot = None if block is None else block.slot_in(place.tier)
        if block is None or slot is None or place_of(place.tier, slot) != place:
            return False
        self._stock.remove_copy(block, place.tier, slot, f"dropped_{reason}")
        self._note_damage(Damaged(namespace_id, key, place, reason))
        return True

    def _note_damage(self, damaged: Damaged) -> None:
        if damaged.reason in _DAMAGE:
            self._damaged.append(damaged)

    def shed(self, namespace_id: bytes, shard: ShardId, keys: Sequence[bytes]) -> set[bytes]:
        """More nodes than are wanted have these blocks: gives up those that came as copies and that nothing here needs
        (nobody holds them, nothing descends from them); counted as shed_blocks. Answers their keys."""
        tree = self._stock.tree(namespace_id, shard)
        known = [] if tree is None else [block for key in keys if (block := tree.blocks.get(key)) and block.slots]
        return self._stock.shed(known, "shed_blocks")

    def purge_namespaces(self, namespaces: Collection[OpenNamespace], *, dry: bool) -> Purge:
        """Begins to drop all that is stored in some namespaces, or only to count it (dry); see `kvstore.node.purge`."""
        seeds = of_namespaces(self._stock, self._leases, namespaces)
        return Purge(self._stock, self._operator_pins, seeds, dry=dry, whole=True)

    def purge_prefix(self, namespace_id: bytes, keys: Collection[bytes], *, dry: bool) -> Purge:
        """The same for the blocks of some keys and all that descend from them, in all shards. namespace_id: b"":
        whichever namespace has them."""
        seeds = of_prefix(list(self._stock.trees()), namespace_id, keys)
        return Purge(self._stock, self._operator_pins, seeds, dry=dry, whole=False)

    def resize_bank(self, tier: Tier, bank: int, capacity_bytes: int) -> None:
        """A device has room for so many bytes now; for what its slabs take in any case."""
        self._stock.spaces[tier].banks[bank].resize(capacity_bytes)

    def clear_bank(self, tier: Tier, bank: int) -> None:
        """Gives back the slabs of a device that was lost, as far as nobody holds a slot of them."""
        self._stock.spaces[tier].banks[bank].close_empty()

    def add_read_only_bank(self, tier: Tier, slab_bytes: int) -> int:
        """One more device of a tier, which is only read; out of service until it is reopened. Answers its number."""
        space = self._stock.spaces[tier]
        assert isinstance(space, BankedSpace), tier
        return space.add_read_only(slab_bytes)

    def reopen_bank(self, tier: Tier, bank: int, capacity_bytes: int) -> None:
        """A device that has no slabs is in service again."""
        self._stock.spaces[tier].banks[bank].reopen(capacity_bytes)

    def lose_bank(self, tier: Tier, bank: int, count: int) -> int:
        """A device is gone: it is given no more blocks, and what it had is withdrawn, up to `count` copies at once.
        Answers how many; to be called again until there are none."""
        self._stock.spaces[tier].banks[bank].in_service = False
        return self._stock.lose(tier, bank, count, "lost_with_device")

    def match(self, namespace_id: bytes, shard_count: int, keys: Sequence[bytes], now_ns: int) -> int:
        """How many leading keys are live in all shards here. Touches nothing, unless the namespace's rules have a probe
        extend what it finds."""
        check_shard(ShardId(0, shard_count))
        trees = [self._stock.tree(namespace_id, ShardId(rank, shard_count)) for rank in range(shard_count)]
        return self._reading.match(trees, keys, now_ns)

    def tick(self, now_ns: int) -> None:
        """What time has brought: blocks and remote pins end, leases lapse, same-host pins become revocable, slabs that
        stood empty are given back. Does a bounded number of blocks at once."""
        self._stock.departures.now_ns = now_ns
        self._leases.lapse_due(now_ns)
        self._pins.end_due(now_ns)
        self._operator_pins.end_due(now_ns)
        self._stock.expire(now_ns, _EXPIRED_PER_TICK_MAX)
        self._quotas.trim(_TRIMMED_PER_TICK_MAX)
        self.hash_records(_HASHED_PER_TICK_MAX)
        for space in self._stock.spaces.values():
            space.sweep(now_ns)

    # ---- what is still to do, what others are told -------------------------------------------------------------------

    def take_actions(self) -> list[Action]:
        """The I/O still to do, in order; to be done before anything is awaited."""
        return self._journal.take_actions()

    def refuse_slab(self, tier: Tier, slab_id: int) -> None:
        """A tier's memory could not make a slab: it is gone from the tier, and the decision that got slots of it is
        undone. Leases end, landing places are given back, copies have no room. To be told before anybody is given
        these slots; nothing happens for a slab that was given back already."""
        space = self._stock.spaces[tier]
        slab = space.find(slab_id)
        if slab is None:
            return
        self._leases.end_on(slab)
        self._copies.lose_room(slab)
        for name, slot in list(self._landed.items()):
            if slot.slab is slab:
                del self._landed[name]
                self._stock.give_up(tier, slot)
        self._counters["refused_slabs"] += 1
        space.discard(slab)

    def take_records(self) -> list[Record]:
        """Additions and withdrawals since the last call, in order."""
        return self._journal.take_records()

    def take_damaged(self) -> list[Damaged]:
        """What was dropped for its bytes since the last call."""
        damaged, self._damaged = self._damaged, []
        return damaged

    def gone(self) -> Counter[str]:
        """Blocks that went since the start, by reason."""
        gone: Counter[str] = Counter()
        for each in self._stock.namespaces.values():
            gone.update(each.gone)
        return gone

    def hash_records(self, count: int) -> bool:
        """Brings the digests up to date by up to `count` records, a microsecond each. True when there are more."""
        return self._journal.hash_records(count)

    def digests(self) -> npt.NDArray[np.uint64]:
        """The digests of all records, per bucket (uint64[256]); see `kvstore.blocks.digest`."""
        return self._journal.digests()

    def records(self, buckets: Collection[int], now_ns: int) -> list[Record]:
        """All that is live in some buckets, as additions. Walks the blocks of these buckets."""
        self._stock.expire(now_ns, self._stock.block_count)
        return self._journal.recounted(buckets, now_ns)

    @property
    def block_count(self) -> int:
        """Live blocks."""
        return self._stock.block_count

    def usage(self) -> Usage:
        """Numbers per tier, and counters since the start. Walks the pins and leases."""
        return self._audit.usage(self._counters)

    def lifetimes(self, now_ns: int) -> Iterator[int]:
        """How long each block still lives, by buckets of their keys, which are random. To be read before anything
        changes; those that were adopted a moment ago may be missing."""
        return (max(0, block.deadline_ns - now_ns) for block in self._journal.filed(range(BUCKETS)))

    def live_slots(self, tier: Tier, bank: int | None = None) -> int:
        """Blocks in a tier or on one of its devices, and those that are only held by pins. On NVMe: as many as the
        indexes name."""
        space = self._stock.spaces[tier]
        return sum(slab.live for slab in (space if bank is None else space.banks[bank]).slabs())

    def nvme_slabs(self, bank: int | None = None) -> list[int]:
        """The ids of the slabs on NVMe, or on one of its devices."""
        space = self._stock.spaces[Tier.NVME]
        return [slab.slab_id for slab in (space if bank is None else space.banks[bank]).slabs()]

    def visit_nvme(self, after: tuple[int, int], now_ns: int, bank: int | None = None) -> Visit | None:
        """Pins the block on NVMe, or on one of its devices, that comes after a slot (slab id, index), in the order of
        the slabs' openings; None behind the last one. The pin is the node's own, and ends by `unpin`."""
        return self._reading.visit(Tier.NVME, after, now_ns, bank)

    def visit_block(self, namespace_id: bytes, shard: ShardId, key: bytes, tier: Tier, now_ns: int) -> Visit | None:
        """Pins a block's copy in a tier, as `visit_nvme` does; None where it has none. Touches nothing. Raises
        InvalidInput for a rank outside its count."""
        check_shard(shard)
        return self._reading.visit_block(self._stock.tree(namespace_id, shard), key, tier, now_ns)

    def usage_of_banks(self, tier: Tier) -> list[tuple[int, int]]:
        """(capacity, used) bytes of each device of a tier; used: by slabs."""
        return [(bank.capacity_bytes, bank.used_bytes) for bank in self._stock.spaces[tier].banks]

    def violations(self) -> list[str]:
        """Everything that should never be, found by a full recount; empty is good. For checks: walks everything."""
        return self._audit.violations()

    def _namespace(self, namespace_id: bytes) -> OpenNamespace:
        namespace = self._stock.namespaces.get(namespace_id)
        if namespace is None:
            raise _unknown(namespace_id)
        return namespace


def _unknown(namespace_id: bytes) -> UnknownNamespace:
    return UnknownNamespace(f"namespace {namespace_id.hex()} was not opened here")


def above_of(block: Block) -> Above:
    """Where a block hangs in its chain, as far as that is known."""
    return ROOT if block.parent is None else Above(block.parent.key, block.depth)


def _standing(block: Block | None, now_ns: int) -> Standing | None:
    if block is None or not block.slots or block.deadline_ns <= now_ns:
        return None
    pinned = any(slot.pins for _, slot in block.slots)
    return Standing(above_of(block), Lifetime(block.asked_ns, block.deadline_ns), pinned, block.hits)
