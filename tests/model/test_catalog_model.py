"""The catalog against a plain model, over random sequences of calls."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from kvstore.blocks.state import Outcome
from kvstore.errors import LeaseLost, PermissionRefused
from kvstore.node.catalog import ShardId
from kvstore.policy.policies import EVICTION
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.ttl import TtlKind, TtlRule
from tests.model.following import CAPACITY_BYTES, HOLD_NS, LEASE_NS, SHARDS, SLOT_BYTES, TENANTS, Following
from tests.model.world import ModelLease, Name, Path, key_of, sum_of

paths: st.SearchStrategy[Path] = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(lambda p: (0, *p[1:]))
tenants = st.sampled_from(["a", "a", "a", "b"])
shards = st.sampled_from([SHARDS[0], SHARDS[0], SHARDS[0], SHARDS[1]])
holders = st.sampled_from(["session:1", "peer:1", "node:send"])
picks = st.integers(0, 63)
times = st.sampled_from([30, 100, 100, 300])
bounds = st.sampled_from([(0, 0), (0, 0), (0, 50), (60, 0), (60, 200)])


class CatalogMachine(Following):
    """Every rule makes one call, follows it in the model, and compares."""

    # ---- puts --------------------------------------------------------------------------------------------------------

    @rule(
        tenant=tenants,
        shard=shards,
        path=paths,
        first=st.sampled_from([0, 0, 1, 2, 5]),
        holder=holders,
        ttl_ns=st.sampled_from([0, 0, 30, 300]),
        private_slots=st.sampled_from([0, 0, 1]),
    )
    def reserve(
        self, tenant: str, shard: ShardId, path: Path, first: int, holder: str, ttl_ns: int, private_slots: int
    ) -> None:
        """Grants a prefix; refuses only when nothing could make room."""
        self._reserve(self._chain(tenant, shard, path), min(first, len(path)), holder, ttl_ns, private_slots)

    def _reserve(self, chain: list[Name], first: int, holder: str, ttl_ns: int, private_slots: int) -> bytes:
        tenant, shard = chain[0].tenant, chain[0].shard
        world, now_ns = self.world, self.now_ns
        expected = [self._outlook(name) for name in chain[first:]] + [Outcome.GRANTED] * private_slots
        self.leaving |= {name for name in chain[first:] if name in world.live and not world.is_live(name, now_ns)}

        reservation = self.catalog.reserve(
            key_of(tenant, ()),
            shard,
            self._keys(chain),
            first,
            holder,
            now_ns,
            ttl_ns=ttl_ns,
            private_slots=private_slots,
        )

        world.touch(chain, now_ns, self.rules[tenant].ttl, ttl_ns)
        names: list[Name | None] = [*chain[first:], *[None] * private_slots]
        granted = [
            name for name, outcome in zip(names, reservation.outcomes, strict=True) if outcome is Outcome.GRANTED
        ]
        presents = [name for name, outcome in zip(names, expected, strict=True) if outcome is Outcome.PRESENT and name]
        lease = ModelLease(holder, now_ns + LEASE_NS, chain, ttl_ns, [], presents)
        world.leases[reservation.lease_id] = lease
        places = list(zip(granted, reservation.places, strict=True))
        self._settle(pressure=True, entering=[name for name in names if name], tenant=tenant)
        for name, place in places:
            world.check_new_place(place, tenant, TENANTS[tenant][0].block_bytes)
            lease.granted.append((name, place))

        sought = [outcome for outcome in expected if outcome is Outcome.GRANTED]
        refused = [Outcome.REFUSED] * (len(sought) - len(granted))
        answers = iter([Outcome.GRANTED] * len(granted) + refused)
        assert reservation.outcomes == [next(answers) if o is Outcome.GRANTED else o for o in expected]
        assert bool(refused) == (reservation.retry_after_ns > 0)
        if refused:
            self._check_no_room(tenant, chain)
        return reservation.lease_id

    @rule(tenant=tenants, shard=shards, path=paths, ttl_ns=st.sampled_from([0, 0, 0, 30, 300]))
    def store(self, tenant: str, shard: ShardId, path: Path, ttl_ns: int) -> None:
        """A whole put at once: most of what happens in life."""
        lease_id = self._reserve(self._chain(tenant, shard, path), 0, "session:w", ttl_ns, 0)
        self._commit(lease_id, self.world.leases[lease_id], "session:w", [True] * len(path))

    @precondition(lambda self: self.world.leases)
    @rule(
        pick=picks,
        written=st.lists(st.sampled_from([True, True, False]), min_size=6, max_size=6),
        stranger=st.sampled_from([False] * 9 + [True]),
    )
    def commit(self, pick: int, written: list[bool], stranger: bool) -> None:
        """Stores what was written; an expired lease is lost, and its slots are free then."""
        lease_id, lease = self._pick_lease(pick)
        self._commit(lease_id, lease, "session:stranger" if stranger else lease.holder, written)

    def _commit(self, lease_id: bytes, lease: ModelLease, holder: str, written: list[bool]) -> None:
        stranger = holder != lease.holder
        flags = written[: len(lease.granted)]
        checksums = [b"" if name is None else sum_of(name.path) for name, _ in lease.granted]
        try:
            outcomes = self.catalog.commit(lease_id, holder, flags, checksums, self.now_ns)
        except PermissionRefused:
            assert stranger
            return
        except LeaseLost:
            assert lease.quarantined or lease.deadline_ns <= self.now_ns
            del self.world.leases[lease_id]
            return
        assert not stranger
        assert not lease.quarantined
        assert lease.deadline_ns > self.now_ns
        assert outcomes == [Outcome.STORED if flag else Outcome.CANCELLED for flag in flags]
        del self.world.leases[lease_id]
        self._store(lease, flags)

    @precondition(lambda self: self.world.leases)
    @rule(pick=picks, again=st.sampled_from([True, True, False]))
    def renew_or_abort(self, pick: int, again: bool) -> None:
        """A sign of life in time prolongs a lease; an abort gives back, quarantined slots too, and twice is once."""
        lease_id, lease = self._pick_lease(pick)
        if not again:
            for _ in range(2):
                self.catalog.abort(lease_id, lease.holder, self.now_ns)
            del self.world.leases[lease_id]
            return
        alive = not lease.quarantined and lease.deadline_ns > self.now_ns
        try:
            self.catalog.renew(lease_id, lease.holder, self.now_ns)
            assert alive
            lease.deadline_ns = self.now_ns + LEASE_NS
        except LeaseLost:
            assert not alive

    # ---- readers -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.live)
    @rule(pick=picks, below=st.integers(0, 1), holder=holders, hold_ns=st.sampled_from([5, 50, 500]))
    def pin(self, pick: int, below: int, holder: str, hold_ns: int) -> None:
        """Pins exactly what is live and within its deadline."""
        tenant, shard, chain = self._pick_chain(pick, below)
        wanted = [bool(pick >> index & 1) for index in range(len(chain))]
        deadline_ns = self.now_ns + hold_ns
        pins = self.catalog.pin(key_of(tenant, ()), shard, self._keys(chain), wanted, holder, self.now_ns, deadline_ns)
        names = [name for name, want in zip(chain, wanted, strict=True) if want]
        assert pins.outcomes == [self._readability(name) for name in names]
        contents = [
            self.world.live[name].content if self._readability(name) is Outcome.READY else None for name in names
        ]
        for name, block in zip(names, pins.blocks, strict=True):
            assert block is None or block.checksums == sum_of(name.path)
        self.world.touch(chain, self.now_ns, self.rules[tenant].ttl)
        self._keep(pins, holder, hold_ns, contents)

    @precondition(lambda self: self.world.leases)
    @rule(pick=picks, holder=holders)
    def pin_lease(self, pick: int, holder: str) -> None:
        """A handoff pins slots that are being written, and what was there already."""
        lease_id, lease = self._pick_lease(pick)
        try:
            pins = self.catalog.pin_lease(lease_id, holder, self.now_ns, self.now_ns + 50)
        except LeaseLost:
            assert lease.quarantined or lease.deadline_ns <= self.now_ns
            return
        assert pins.outcomes.count(Outcome.READY) == len(lease.granted) + len(lease.presents)
        # No content is expected: these slots are being written, or belong to blocks that a lease has pinned.
        self._keep(pins, holder, 50, [None] * len(pins.blocks))

    @precondition(lambda self: self.world.pins)
    @rule(pick=picks, dead=st.sampled_from([True, False, False]))
    def unpin(self, pick: int, dead: bool) -> None:
        """Ends a pin, and twice is once; or its holder dies, and with it all its pins and leases, quarantine too."""
        pin_id, pin = list(self.world.pins.items())[pick % len(self.world.pins)]
        if not dead:
            for _ in range(2):
                self.catalog.unpin(pin_id)
            del self.world.pins[pin_id]
            return
        self.catalog.release_holder(pin.holder, self.now_ns)
        self.world.release(pin.holder)

    @precondition(lambda self: self.world.live)
    @rule(pick=picks, below=st.integers(0, 1))
    def match(self, pick: int, below: int) -> None:
        """The longest prefix that both shards have; nothing is touched unless the rules say so."""
        tenant, _, chain = self._pick_chain(pick, below)
        chains = [self._chain(tenant, shard, chain[-1].path) for shard in SHARDS]
        expected = 0
        while expected < len(chain) and all(self.world.is_live(chain[expected], self.now_ns) for chain in chains):
            expected += 1
        assert self.catalog.match(key_of(tenant, ()), 2, self._keys(chains[0]), self.now_ns) == expected
        if self.rules[tenant].probe_extends:
            for chain in chains:
                self.world.touch(chain[:expected], self.now_ns, self.rules[tenant].ttl)

    @rule(tenant=tenants, kind=st.sampled_from(TtlKind), ttl_ns=times, bounds=bounds, probe_extends=st.booleans())
    def set_rules(self, tenant: str, kind: TtlKind, ttl_ns: int, bounds: tuple[int, int], probe_extends: bool) -> None:
        """Other rules hold from now on, and change nothing at once."""
        self.rules[tenant] = NamespaceRules(TtlRule(kind, ttl_ns, *bounds), probe_extends)
        self.catalog.set_rules(key_of(tenant, ()), self.rules[tenant])

    # ---- the rest ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.world.landed) < 2)
    @rule(tenant=tenants, length=st.sampled_from([1, SLOT_BYTES, 2 * SLOT_BYTES]))
    def land(self, tenant: str, length: int) -> None:
        """A landing place is nobody else's."""
        place = self.catalog.land(tenant, length, self.now_ns)
        self._settle(pressure=True, entering=[], tenant=tenant)
        if place is not None:
            self.world.check_new_place(place, tenant, length)
            self.world.landed.append(place)

    @precondition(lambda self: self.world.landed)
    @rule(pick=picks)
    def unland(self, pick: int) -> None:
        """And is given back."""
        self.catalog.unland(self.world.landed.pop(pick % len(self.world.landed)))

    @precondition(lambda self: self.world.live)
    @rule(pick=picks, below=st.integers(0, 1))
    def drop(self, pick: int, below: int) -> None:
        """A corrupt block is gone at once, pinned or not."""
        tenant, shard, chain = self._pick_chain(pick, below)
        name = chain[-1]
        self.leaving.add(name)
        known = name in self.world.live
        assert self.catalog.drop(key_of(tenant, ()), shard, self._keys([name])[0], "corrupt") == known

    @rule(step_ns=st.sampled_from([0, 1, 10, 25, 45, 70]), tick=st.booleans())
    def advance(self, step_ns: int, tick: bool) -> None:
        """Time goes by. With a tick what is due ends, and only that."""
        self.now_ns += step_ns
        if tick:
            self._tick()

    @rule()
    def silence(self) -> None:
        """Long enough for leases and holds to be over, and short enough for blocks to live on."""
        self.now_ns += HOLD_NS
        self._tick()

    def _tick(self) -> None:
        self.catalog.tick(self.now_ns)
        for lease_id, lease in list(self.world.leases.items()):
            if lease.deadline_ns <= self.now_ns:
                lease.quarantined = True
                if not lease.granted:
                    del self.world.leases[lease_id]
        self._end_due_pins()
        self._settle()
        assert all(block.deadline_ns > self.now_ns for block in self.world.live.values())

    # ---- after every step --------------------------------------------------------------------------------------------

    @invariant()
    def keeps_its_laws(self) -> None:
        """The conservation laws hold; all that is known live is live, and nothing else."""
        self._settle()
        assert self.catalog.violations() == []
        listed = {self._name_of(record) for record in self.catalog.records(range(256), 0)}
        assert listed == set(self.world.live)
        usage = self.catalog.usage().tiers[0]
        assert usage.slab_bytes == sum(slab.slab_bytes for slab in self.world.slabs.values()) <= CAPACITY_BYTES
        assert usage.reserved_slots == len(self.world.writers())
        assert usage.leases == len(self.world.leases)
        assert usage.pins == sum(len(pin.held) for pin in self.world.pins.values())
        assert usage.live_slots >= len(self.world.live)
        assert usage.live_bytes + usage.reserved_bytes <= usage.slab_bytes

    @invariant()
    def readers_see_what_they_pinned(self) -> None:
        """A valid pin's slots keep generation and content."""
        for pin_id, pin in self.world.pins.items():
            assert self.catalog.pin_valid(pin_id)
            for place, content in pin.held:
                assert self.world.generations[place.slab_id, place.slot] == place.generation
                assert content is None or self.world.memory[place.slab_id, place.slot] == content


@pytest.mark.parametrize("policy", EVICTION)
def test_catalog_model(policy: str) -> None:
    """Whatever is evicted first."""
    machine = type("CatalogMachine", (CatalogMachine,), {"policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=200, stateful_step_count=50, deadline=None))
