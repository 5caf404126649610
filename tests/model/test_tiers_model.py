"""The catalog over two tiers against a plain model: spill, promotion, lost devices, restarts, in random order.

The model has the bytes of every slot of both tiers and what the devices' indexes say, and follows the catalog's actions
as a node would. What it asks after every step: nothing is served but what was stored; what a device remembers is what
the catalog says of it; pressure leaves no hole; and what is owed to NVMe is not given up.
"""

from dataclasses import dataclass, field
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import TooLarge
from kvstore.node.catalog import (
    Catalog,
    CloseSlab,
    Copy,
    Forget,
    OpenSlab,
    Pins,
    Place,
    Prolong,
    SetGeneration,
    ShardId,
)
from kvstore.node.storage.entry import PLAIN, Entry
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import BankedSpace, SizeClass, SlotSpace
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.model.following import layout
from tests.model.world import Path, chain_of, key_of

SLOT_BYTES = 4096
BANKS = 2
SLAB_SLOTS = 2
TENANT = "a"
NAMESPACE = key_of(TENANT, ())
SHARD = ShardId(0, 1)
LAYOUT = layout(SLOT_BYTES)
TTL_NS = 100_000_000_000
DRAM, NVME = Tier.DRAM, Tier.NVME

paths = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(lambda path: (0, *path[1:]))
picks = st.integers(0, 63)


@dataclass
class Slab:
    """A slab of a device, as it would lie there."""

    bank: int
    size_class: SizeClass
    generations: dict[int, int] = field(default_factory=dict)
    entries: dict[int, Entry] = field(default_factory=dict)


class TiersMachine(RuleBasedStateMachine):
    """Every rule makes one call, and follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ns = 1_000_000_000
        self.slabs: dict[int, Slab] = {}  # of NVMe
        self.memory: dict[tuple[int, int], str] = {}
        self.writes = count()
        self.ids = count(1)
        self.copies: list[Copy] = []
        self.kept: list[Copy] = []
        self.pins: list[tuple[Pins, list[str]]] = []
        self.contents: dict[bytes, str] = {}  # of the blocks that were stored last under their keys
        self.names: dict[bytes, Path] = {}
        self.lost_banks: set[int] = set()
        self._start()

    def _start(self) -> None:
        slab_ids = count(1)
        self.banks = [
            SlotSpace(3 * 3 * SLOT_BYTES, SLAB_SLOTS * SLOT_BYTES, slab_ids, file_overhead_bytes=SLOT_BYTES, bank=bank)
            for bank in range(BANKS)
        ]
        self.catalog = Catalog(
            {DRAM: SlotSpace(6 * SLOT_BYTES, 2 * SLOT_BYTES, slab_ids), NVME: BankedSpace(self.banks)},
            rules=NamespaceRules(TtlRule(TtlKind.SLIDING, TTL_NS)),
            lease_ns=TTL_NS,
            hold_ns_max=TTL_NS,
            pinned_bytes_max=0,
            new_id=lambda: next(self.ids).to_bytes(16, "big"),
            spill_from_hits=1,
        )
        self.catalog.open_namespace(NAMESPACE, TENANT, LAYOUT)
        self.told: set[tuple[bytes, Tier]] = set()

    # ---- following ---------------------------------------------------------------------------------------------------

    def _settle(self, *, pressure: bool = False, gone: set[bytes] = frozenset()) -> None:  # type: ignore[assignment]
        for action in self.catalog.take_actions():
            if isinstance(action, SetGeneration):
                self.memory.pop((action.slab_id, action.slot), None)
            if action.tier is NVME:
                self._note(action)
        before = set(self.told)
        for record in self.catalog.take_records():
            (self.told.discard if record.withdraw else self.told.add)((record.key, record.tier))
        lost = {key for key, _ in before} - {key for key, _ in self.told}
        if pressure:
            for key in lost - gone:
                children = [other for other, _ in self.told if self.names[other][:-1] == self.names[key]]
                assert not children, f"{self.names[key]} was evicted before its children"

    def _note(self, action: OpenSlab | CloseSlab | SetGeneration | Forget | Prolong) -> None:
        if isinstance(action, OpenSlab):
            assert action.bank not in self.lost_banks
            self.slabs[action.slab_id] = Slab(action.bank, SizeClass(action.tenant, action.slot_bytes))
        elif isinstance(action, CloseSlab):
            assert not self.slabs.pop(action.slab_id).entries
        elif isinstance(action, Forget):
            slab = self.slabs[action.slab_id]
            entry = slab.entries.pop(action.slot)
            assert entry.generation == action.generation
            slab.generations[action.slot] = action.generation
        elif isinstance(action, Prolong):
            slab = self.slabs[action.slab_id]
            entry = slab.entries[action.slot]
            slab.entries[action.slot] = entry._replace(deadline_ms=action.deadline_ns // 1_000_000)

    def _keys(self, path: Path) -> list[bytes]:
        keys = [key_of(TENANT, part) for part in chain_of(path)]
        self.names.update(zip(keys, chain_of(path), strict=True))
        return keys

    def _content(self, place: Place) -> str | None:
        return self.memory.get((place.slab_id, place.slot))

    # ---- calls -------------------------------------------------------------------------------------------------------

    @rule(path=paths)
    def store(self, path: Path) -> None:
        """What is on NVMe is not written again; what is owed is not given up for it."""
        keys = self._keys(path)
        owed = {block.key for block in self.catalog._stock.owed if block.deadline_ns > self.now_ns}
        reservation = self.catalog.reserve(NAMESPACE, SHARD, keys, 0, "session:w", self.now_ns)
        self._settle(pressure=True)
        assert owed <= {key for key, tier in self.told if tier is DRAM}
        places = iter(reservation.places)
        for key, outcome in zip(keys, reservation.outcomes, strict=True):
            assert (outcome is Outcome.PRESENT) == ((key, DRAM) in self.told or (key, NVME) in self.told)
            if outcome is Outcome.GRANTED:
                place = next(places)
                self.contents[key] = self.memory[place.slab_id, place.slot] = f"{path} {next(self.writes)}"
        granted = [key for key, o in zip(keys, reservation.outcomes, strict=True) if o is Outcome.GRANTED]
        sums = [self.contents[key].encode().ljust(8)[:8] for key in granted]
        self.catalog.commit(reservation.lease_id, "session:w", [True] * len(granted), sums, self.now_ns)
        self._settle()

    @rule(blocks=st.integers(1, 4))
    def begin_spill(self, blocks: int) -> None:
        """Copies begin, as far as there is room for them."""
        for copy in self.catalog.next_spills(blocks, self.now_ns):
            try:
                place = self.catalog.find_room(copy, SLOT_BYTES, self.now_ns)
            except TooLarge:
                place = None
            self._settle(pressure=True)
            if place is None:
                self.catalog.excuse(copy)
                self.catalog.abandon_copy(copy)
            else:
                self.copies.append(copy)
        self._settle(pressure=True)

    @precondition(lambda self: self.contents)
    @rule(pick=picks)
    def begin_promotion(self, pick: int) -> None:
        """From NVMe to DRAM, where there is room."""
        key = list(self.contents)[pick % len(self.contents)]
        copy = self.catalog.begin_copy(NAMESPACE, SHARD, key, NVME, DRAM, self.now_ns)
        if copy is None:
            return
        if self.catalog.find_room(copy, SLOT_BYTES, self.now_ns) is None:
            self.catalog.abandon_copy(copy)
        else:
            self.copies.append(copy)
        self._settle(pressure=True)

    @precondition(lambda self: self.copies)
    @rule(pick=picks, works=st.sampled_from([True, True, True, False]), keep=st.booleans())
    def end_copy(self, pick: int, works: bool, keep: bool) -> None:
        """The bytes are there, or the write failed; a block that has gone meanwhile gets no copy."""
        copy = self.copies.pop(pick % len(self.copies))
        if not works:
            self.catalog.abandon_copy(copy)
            self._settle()
            return
        content = self._content(copy.source.place)
        assert content is not None
        place, block = copy.place, copy.block
        self.memory[place.slab_id, place.slot] = content
        if place.tier is NVME and self.slabs[place.slab_id].bank not in self.lost_banks:
            self._enter(copy, place)
        alive = copy.alive and not (place.tier is NVME and self.slabs[place.slab_id].bank in self.lost_banks)
        keep = keep and copy.target is DRAM
        assert self.catalog.finish_copy(copy, copy.source.checksums, self.now_ns, keep=keep) == alive
        if keep:
            self.kept.append(copy)
        if not alive and place.tier is NVME:
            self.slabs[place.slab_id].entries.pop(place.slot, None)
        assert not alive or block.slot_in(place.tier) is not None
        self._settle()

    def _enter(self, copy: Copy, place: Place) -> None:
        block = copy.block
        self.slabs[place.slab_id].entries[place.slot] = Entry(
            NAMESPACE,
            *SHARD,
            copy.key,
            block.parent_key,
            block.depth,
            place.generation,
            block.deadline_ns // 1_000_000,
            TTL_NS // 1_000_000,
            SLOT_BYTES,
            SLOT_BYTES,
            PLAIN,
            copy.source.checksums,
            b"",
        )

    @precondition(lambda self: self.kept)
    @rule()
    def release(self) -> None:
        """The reader of a promoted block is through."""
        self.catalog.release_copy(self.kept.pop())
        self._settle()

    @precondition(lambda self: self.contents)
    @rule(pick=picks, prefer=st.sampled_from([DRAM, NVME]))
    def pin(self, pick: int, prefer: Tier) -> None:
        """A reader finds the bytes that were stored, in whatever tier."""
        key = list(self.contents)[pick % len(self.contents)]
        keys = self._keys(self.names[key])
        pins = self.catalog.pin(NAMESPACE, SHARD, keys, [True] * len(keys), "node:r", self.now_ns, self.now_ns, prefer)
        contents = []
        for name, block in zip(keys, pins.blocks, strict=True):
            assert (block is not None) == ((name, DRAM) in self.told or (name, NVME) in self.told)
            if block is not None:
                assert self._content(block.place) == self.contents[name]
                contents.append(self.contents[name])
        self.pins.append((pins, contents))
        self._settle()

    @precondition(lambda self: self.pins)
    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        """Until then the slots keep their bytes."""
        pins, _ = self.pins.pop(pick % len(self.pins))
        self.catalog.unpin(pins.pin_id)
        self._settle()

    @precondition(lambda self: self.contents)
    @rule(pick=picks, everywhere=st.booleans())
    def drop(self, pick: int, everywhere: bool) -> None:
        """A corrupt block goes from all tiers, or a corrupt copy from its own."""
        key = list(self.contents)[pick % len(self.contents)]
        if everywhere:
            self.catalog.drop(NAMESPACE, SHARD, key, "corrupt")
        elif (visit := self.catalog.visit_nvme((0, -1), self.now_ns)) is not None:
            source = visit.source
            assert self._content(source.place) == self.contents[visit.key]
            assert self.catalog.drop_copy(NAMESPACE, SHARD, visit.key, source.place, "corrupt")
            self.catalog.unpin(visit.pin_id)
        self._settle()

    @precondition(lambda self: len(self.lost_banks) < BANKS)
    @rule(bank=st.integers(0, BANKS - 1), rarely=st.integers(0, 3))
    def lose_bank(self, bank: int, rarely: int) -> None:
        """A device goes: its copies alone."""
        if rarely or bank in self.lost_banks:
            return
        self.lost_banks.add(bank)
        kept = {key for key, tier in self.told if tier is DRAM}
        while self.catalog.lose_bank(NVME, bank, 2):
            self._settle()
        if len(self.lost_banks) == BANKS:
            self.catalog.excuse_all()
        self._settle()
        assert kept <= {key for key, _ in self.told}
        assert not any(slab.entries for slab in self.slabs.values() if slab.bank == bank)

    @rule(step_ns=st.sampled_from([1, TTL_NS // 10, TTL_NS // 3]))
    def advance(self, step_ns: int) -> None:
        """Time goes by, and what it has brought is done."""
        self.now_ns += step_ns
        self.catalog.tick(self.now_ns)
        self._settle()

    @rule(rarely=st.integers(0, 3))
    def restart(self, rarely: int) -> None:
        """All that the devices remember is there again, with its bytes; nothing else is."""
        if rarely:
            return
        slabs, memory = self.slabs, self.memory
        self.slabs, self.memory, self.lost_banks = {}, {}, set()
        self.copies, self.kept, self.pins = [], [], []
        self._start()
        adoption = self.catalog.adopt(NVME, self.now_ns)
        now_ms = self.now_ns // 1_000_000
        expected = {}
        for number, slab in slabs.items():
            if not slab.entries:
                continue
            generations = [
                slab.entries[slot].generation if slot in slab.entries else slab.generations.get(slot, 0)
                for slot in range(SLAB_SLOTS)
            ]
            adopted = adoption.open(slab.bank, slab.size_class, generations)
            rejected = adoption.fill(adopted, sorted(slab.entries.items()), now_ms)
            adoption.close(adopted)
            assert {slot for slot, _ in rejected} == {
                slot for slot, entry in slab.entries.items() if entry.deadline_ms <= now_ms
            }
            kept = {slot: entry for slot, entry in slab.entries.items() if entry.deadline_ms > now_ms}
            slab_id = adopted.slab_id
            self.slabs[slab_id] = Slab(slab.bank, slab.size_class, dict(enumerate(generations)), kept)
            for slot, entry in kept.items():
                self.memory[slab_id, slot] = memory[number, slot]
                expected[entry.key] = memory[number, slot]
        assert adoption.finish() == len(expected)
        self.contents = expected
        self.told = {(key, NVME) for key in expected}
        self._settle()

    # ---- after every step --------------------------------------------------------------------------------------------

    @invariant()
    def keeps_its_laws(self) -> None:
        """The conservation laws hold over both tiers; what is told is what is there."""
        self._settle()
        assert self.catalog.violations() == []
        records = {(record.key, record.tier) for record in self.catalog.records(range(256), self.now_ns)}
        self._settle()
        assert {record for record in records if record in self.told} == self.told
        for usage in self.catalog.usage().tiers:
            assert usage.slab_bytes <= usage.capacity_bytes

    @invariant()
    def devices_remember_what_is_there(self) -> None:
        """A restart would find exactly the copies that are told to be on NVMe."""
        remembered = {entry.key for slab in self.slabs.values() for entry in slab.entries.values()}
        assert remembered == {key for key, tier in self.told if tier is NVME}

    @invariant()
    def readers_see_what_they_pinned(self) -> None:
        """A pinned slot keeps its bytes, whatever becomes of its block."""
        for pins, contents in self.pins:
            held = [block for block in pins.blocks if block is not None]
            assert [self._content(block.place) for block in held] == contents


TestTiersModel = TiersMachine.TestCase
TestTiersModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
