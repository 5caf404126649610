"""Kept: what this node relayed for another and will need itself, since the request goes on here.

A prefill node that loads history through its decode node's storage NIC names that node in its load. There the pieces
land in slots of whole blocks, are pushed on from there, and stay: the handoff then brings only the layers that are
missing. Bounded in bytes and in time; nobody can find these slots, and the decode engine verifies what it reads.
"""

from dataclasses import dataclass, field

from kvstore.blocks.layout import CHECKSUM_BYTES, Layout
from kvstore.node.catalog import Place, ShardId
from kvstore.node.custody import Custody
from kvstore.node.landing import Landing

_Name = tuple[bytes, ShardId, bytes]


@dataclass(eq=False, slots=True)
class KeptBlock:
    """One block's slot. begun: layers that are or were written to it, here: those that are there. holds: receives and
    sends under way, and the handoff that took it."""

    place_id: int
    place: Place
    checksums: bytes
    deadline_ns: int
    begun: set[int] = field(default_factory=set)
    here: set[int] = field(default_factory=set)
    holds: int = 0
    dropped: bool = False

    def covers(self, first_layer: int, layers: int) -> bool:
        return self.here.issuperset(range(first_layer, first_layer + layers))


class Kept:
    """All of them. Belongs to the event loop. keep_ns: how long a block waits for its handoff."""

    def __init__(self, custody: Custody, bytes_max: int, keep_ns: int) -> None:
        self._landing = Landing(custody, bytes_max)
        self._keep_ns = keep_ns
        self._clock = custody.clock
        self._blocks: dict[_Name, KeptBlock] = {}
        self.counters = {"kept_blocks": 0}

    @property
    def used_bytes(self) -> int:
        return self._landing.used_bytes

    def blocks(self) -> list[KeptBlock]:
        """Those that wait for their handoff."""
        return list(self._blocks.values())

    def find_room(
        self, namespace_id: bytes, shard: ShardId, key: bytes, tenant: str, layout: Layout, checksums: bytes
    ) -> KeptBlock | None:
        """The block's slot, made where there is none. None: there is no room, or its checksums are not known."""
        name = (namespace_id, shard, key)
        kept = self._blocks.get(name)
        if kept is not None or len(checksums) != layout.granules * CHECKSUM_BYTES:
            return kept
        room = self._landing.take_now(tenant, layout.block_bytes)
        if room is None:
            return None
        kept = self._blocks[name] = KeptBlock(*room, checksums, self._clock() + self._keep_ns)
        self.counters["kept_blocks"] += 1
        return kept

    def take(self, namespace_id: bytes, shard: ShardId, key: bytes) -> KeptBlock | None:
        """The block, for its handoff; it is held until `release`."""
        kept = self._blocks.pop((namespace_id, shard, key), None)
        if kept is None:
            return None
        kept.holds += 1
        kept.dropped = True
        return kept

    def hold(self, kept: KeptBlock) -> None:
        kept.holds += 1

    def release(self, kept: KeptBlock) -> None:
        """One hold less; the last one of a block that was dropped gives its slot back."""
        kept.holds -= 1
        self._give_back(kept)

    def tick(self) -> None:
        """Those whose handoff did not come in time go."""
        now_ns = self._clock()
        for name, kept in [entry for entry in self._blocks.items() if entry[1].deadline_ns <= now_ns]:
            del self._blocks[name]
            kept.dropped = True
            self._give_back(kept)

    def _give_back(self, kept: KeptBlock) -> None:
        if kept.dropped and kept.holds == 0:
            self._landing.give_back(kept.place_id)
