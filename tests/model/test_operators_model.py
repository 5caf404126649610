"""What operators do, between all that clients and disks do: pins keep, purges drop, quotas bound, and no law breaks."""

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from kvstore.blocks.state import Outcome, Tier
from kvstore.errors import LeaseLost, Refused, TooLarge
from kvstore.node.answers import Reservation
from kvstore.node.purge import Purge
from tests.node.small_catalog import SHARD, SLOT_BYTES, SmallCatalog, key, namespace

chains = st.sampled_from(["a", "ab", "abc", "abcd", "abg", "e", "ef", "eh"])
tenants = st.sampled_from(["one", "one", "two", "wide"])
picks = st.integers(0, 63)
PINNED_SLOTS_MAX = 4
NAMES = "abcdefgh"


class OperatorsMachine(RuleBasedStateMachine):
    """Tenant "one" is the one with pins and purges by prefix. kept: until when the model knows a block pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.small = SmallCatalog(
            slots=12, slab_slots=2, nvme_files=[3], spill_from_hits=1, operator_pinned_slots_max=PINNED_SLOTS_MAX
        )
        self.catalog = self.small.catalog
        self.pins: dict[bytes, tuple[int, set[str]]] = {}
        self.leases: list[Reservation] = []
        self.readers: list[bytes] = []
        self.quotas: dict[str, dict[Tier, int]] = {}
        self.purge: Purge | None = None
        self.serial = 0

    # ---- clients and disks -------------------------------------------------------------------------------------------

    @rule(chain=chains)
    def put(self, chain: str) -> None:
        """Most of what happens in life."""
        self.small.commit(self._reserve(chain, "one"))

    @rule(chain=chains, tenant=tenants)
    def reserve(self, chain: str, tenant: str) -> None:
        self.leases.append(self._reserve(chain, tenant))

    def _reserve(self, chain: str, tenant: str) -> Reservation:
        """No tenant has more after it than its quota, unless it had before."""
        before = self._used()
        reservation = self.small.reserve(chain, tenant=tenant)
        quota = self.quotas.get(tenant, {}).get(Tier.DRAM)
        if quota is not None:
            assert self._used()[tenant, Tier.DRAM] <= max(quota, before[tenant, Tier.DRAM])
        assert (Outcome.REFUSED in reservation.outcomes) == (reservation.retry_after_ns > 0)
        return reservation

    @precondition(lambda self: self.leases)
    @rule(pick=picks, ends_well=st.booleans())
    def settle(self, pick: int, ends_well: bool) -> None:
        """Too late perhaps."""
        lease = self.leases.pop(pick % len(self.leases))
        if ends_well:
            with contextlib.suppress(LeaseLost):
                self.small.commit(lease)
        else:
            self.catalog.abort(lease.lease_id, "session:w", self.small.now_ns)

    @rule(chain=chains)
    def read(self, chain: str) -> None:
        self.readers.append(self.small.pin(chain, holder="node:r").pin_id)

    @precondition(lambda self: self.readers)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        self.catalog.unpin(self.readers.pop(pick % len(self.readers)))

    @rule()
    def spill(self) -> None:
        for copy in self.catalog.next_spills(4, self.small.now_ns):
            if self.catalog.find_room(copy, SLOT_BYTES, self.small.now_ns) is None:
                self.catalog.excuse(copy)
                self.catalog.abandon_copy(copy)
            else:
                self.catalog.finish_copy(copy, copy.source.checksums, self.small.now_ns)

    @rule(name=st.sampled_from(NAMES))
    def spoil(self, name: str) -> None:
        if self.catalog.drop(namespace("one"), SHARD, key(name), "corrupt"):
            self._let_go(name)

    @rule(count=st.integers(1, 3))
    def lose_copies(self, count: int) -> None:
        """The device loses some of what it has, and is in service again."""
        live = self.small.live(NAMES)
        self.catalog.lose_bank(Tier.NVME, 0, count)
        self.catalog.hold_bank(Tier.NVME, 0, held=False)
        for name in set(live) - set(self.small.live(NAMES)):
            self._let_go(name)

    @rule(by=st.sampled_from([1, 50, 100, 600, 600, 1100]))
    def pass_time(self, by: int) -> None:
        self.small.tick(self.small.now_ns + by)
        self.pins = {pin_id: pin for pin_id, pin in self.pins.items() if pin[0] > self.small.now_ns}

    # ---- operators ---------------------------------------------------------------------------------------------------

    @rule(chain=chains, for_ns=st.sampled_from([60, 500, 3000, 3000]))
    def put_and_pin(self, chain: str, for_ns: int) -> None:
        """As an operator does who has just warmed a prompt up."""
        self.put(chain)
        self.pin(chain, for_ns)

    @rule(chain=chains, for_ns=st.sampled_from([60, 500, 3000, 3000]))
    def pin(self, chain: str, for_ns: int) -> None:
        """What is here of a chain is kept, or it is refused for the budget's sake."""
        self.serial += 1
        pin_id, live = self.serial.to_bytes(8, "big"), set(self.small.live(chain))
        try:
            pinned = self.small.pin_by_operator(chain, for_ns, pin_id=pin_id)
        except (Refused, TooLarge):
            kept = set().union(*(names for _, names in self.pins.values()))
            assert len(kept | live) > PINNED_SLOTS_MAX
            return
        assert pinned >= len(live)
        if pinned:
            self.pins[pin_id] = self.small.now_ns + for_ns, live

    @precondition(lambda self: self.pins)
    @rule(pick=picks)
    def unpin(self, pick: int) -> None:
        pin_id = sorted(self.pins)[pick % len(self.pins)]
        del self.pins[pin_id]
        self.catalog.unpin_by_operator(pin_id, self.small.now_ns)

    @rule(tenant=tenants, tier=st.sampled_from([Tier.DRAM, Tier.NVME]), slots=st.sampled_from([0, 2, 4, 9, None, None]))
    def set_quota(self, tenant: str, tier: Tier, slots: int | None) -> None:
        quota = self.quotas.setdefault(tenant, {})
        quota.pop(tier, None)
        if slots is not None:
            quota[tier] = slots * SLOT_BYTES
        self.catalog.set_quotas(self.quotas)

    @precondition(lambda self: self.purge is None)
    @rule(prefix=st.sampled_from(["d", "b", "cd", "fh", "fh", "a", ""]))
    def begin_purge(self, prefix: str) -> None:
        """Goes on in steps, between whatever else happens."""
        if prefix:
            self.purge = self.catalog.purge_prefix(namespace("one"), [key(name) for name in prefix], dry=False)
        else:
            chosen = [each for each in self.catalog.namespaces() if each.tenant == "one"]
            self.purge = self.catalog.purge_namespaces(chosen, dry=False)

    @precondition(lambda self: self.purge is not None)
    @rule(blocks=st.sampled_from([1, 3, 1000]))
    def purge_on(self, blocks: int) -> None:
        assert self.purge is not None
        if not self.purge.step(blocks):
            self.purge = None

    @precondition(lambda self: self.purge is None)
    @rule(whole=st.sampled_from([False, False, False, True]))
    def purge_whole(self, whole: bool) -> None:
        """At once nothing stays but what is pinned by an operator."""
        if not whole:
            return
        chosen = [each for each in self.catalog.namespaces() if each.tenant == "one"]
        live = set(self.small.live(NAMES))
        purge = self.catalog.purge_namespaces(chosen, dry=False)
        while purge.step(64):
            pass
        left = set(self.small.live(NAMES))
        assert left == live & self._pinned()

    # ---- what always holds -------------------------------------------------------------------------------------------

    def _pinned(self) -> set[str]:
        """By what the catalog says; a pin that names a block keeps what is above it too."""
        table = self.catalog._operator_pins
        tree = self.catalog._stock.tree(namespace("one"), SHARD)
        return (
            set()
            if tree is None
            else {name for name in NAMES if (block := tree.blocks.get(key(name))) in table and block}
        )

    def _used(self) -> dict[tuple[str, Tier], int]:
        return self.catalog.quotas()[1]

    def _let_go(self, name: str) -> None:
        for _, names in self.pins.values():
            names.discard(name)

    @invariant()
    def pinned_blocks_are_here(self) -> None:
        kept = set().union(*(names for _, names in self.pins.values()))
        assert kept <= set(self.small.live("".join(kept)))
        used_bytes, bytes_max = self.catalog.operator_pinned_bytes
        assert used_bytes <= bytes_max

    @invariant()
    def no_law_is_broken(self) -> None:
        assert self.catalog.violations() == []


def test_operators_between_everything_else() -> None:
    """Any sequence of calls."""
    chosen = settings(max_examples=150, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(OperatorsMachine, settings=chosen)
