"""The directory: which nodes there are, and whose locations count. No I/O, no clock.

    (unknown) ──register──► alive ◄──heartbeat── lost        lost: silent for node_lost_ms; not answered, kept
                              └──────silence──────►│
    awaited ──register──► alive                    │ silent for FORGOTTEN_MS, or another incarnation registers
       └── after FORGOTTEN_MS ──► dead ◄───────────┘

awaited: the index has locations of it from before the control plane's own restart. dead: the sweep removes its
locations, then its record (`bury`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from kvstore.control.index.base import NodeRecord
from kvstore.errors import Refused
from kvstore.pb import control_pb2, types_pb2

FORGOTTEN_MS = 60 * 60 * 1000
NODES_MAX = 16_384
HELPERS_MAX = 64


@dataclass(slots=True)
class NodeState:
    """A registered node. Addresses, loads and tiers are kept as they came, for they leave the same way. events_heard,
    events_lost: numbers of its last report of events."""

    ref: int
    address: types_pb2.NodeAddress
    roles: tuple[str, ...]
    heard_ms: int
    load: types_pb2.NodeLoad = field(default_factory=types_pb2.NodeLoad)
    tiers: tuple[control_pb2.TierUse, ...] = ()
    events_heard: int = 0
    events_lost: int = 0
    draining: bool = False


class Directory:
    """Nodes by name and by ref. `node_lost_ms`: silence after which a node is not answered."""

    def __init__(self, node_lost_ms: int, records: Iterable[NodeRecord] = (), now_ms: int = 0) -> None:
        self._node_lost_ms = node_lost_ms
        self._by_id: dict[str, NodeState] = {}
        self._by_ref: dict[int, NodeState] = {}
        self._awaited = {record.ref: record.node_id for record in records}
        self._started_ms = now_ms
        self._dead: set[int] = set()

    def check_room(self, node_id: str) -> None:
        """Raises Refused when one more node is too many."""
        if node_id not in self._by_id and len(self._by_id) >= NODES_MAX:
            raise Refused(f"{NODES_MAX} nodes are registered", retry_after_s=60.0)

    def register(self, ref: int, address: types_pb2.NodeAddress, roles: Sequence[str], now_ms: int) -> None:
        """Makes a node known. Other incarnations of it are dead from now on."""
        node_id = address.node_id
        known = self.registered(node_id, address.incarnation)
        others = {awaited for awaited, name in self._awaited.items() if name == node_id}
        if node_id in self._by_id:
            others.add(self._by_id.pop(node_id).ref)
        for other in others:
            self._awaited.pop(other, None)
            self._by_ref.pop(other, None)
        self._dead |= others
        self._dead.discard(ref)
        state = NodeState(ref, address, tuple(roles), now_ms)
        if known is not None:
            state.events_heard, state.events_lost = known.events_heard, known.events_lost
            state.draining = known.draining
        self._by_id[node_id] = self._by_ref[ref] = state

    def heartbeat(
        self,
        node_id: str,
        incarnation: int,
        load: types_pb2.NodeLoad,
        tiers: Sequence[control_pb2.TierUse],
        now_ms: int,
        *,
        draining: bool = False,
    ) -> bool:
        """Notes a sign of life. False: this incarnation is not registered."""
        state = self.registered(node_id, incarnation)
        if state is None:
            return False
        state.heard_ms = now_ms
        state.load = load
        state.tiers = tuple(tiers)
        state.draining = draining
        return True

    def registered(self, node_id: str, incarnation: int) -> NodeState | None:
        """The state of this very incarnation; None when it is not registered."""
        state = self._by_id.get(node_id)
        return state if state is not None and state.address.incarnation == incarnation else None

    def nodes(self) -> list[NodeState]:
        return list(self._by_id.values())

    def by_ref(self, ref: int) -> NodeState | None:
        return self._by_ref.get(ref)

    def named(self, node_id: str, now_ms: int) -> NodeState | None:
        """A node that is alive, by its name."""
        state = self._by_id.get(node_id)
        return state if state is not None and self.alive(state, now_ms) else None

    def alive(self, state: NodeState, now_ms: int) -> bool:
        return now_ms - state.heard_ms < self._node_lost_ms

    def able(self, now_ms: int) -> list[NodeState]:
        """Nodes that are alive, have said what their tiers hold, and are to keep it."""
        return [state for state in self._by_id.values() if self._able(state, now_ms)]

    def keeping(self, ref: int, now_ms: int) -> bool:
        """Whether this node counts as a holder for those who keep copies: not one that is being drained."""
        state = self._by_ref.get(ref)
        return state is not None and not state.draining and self.alive(state, now_ms)

    def _able(self, state: NodeState, now_ms: int) -> bool:
        return bool(state.tiers) and not state.draining and self.alive(state, now_ms)

    def helpers(self, now_ms: int) -> list[NodeState]:
        """Nodes that could relay from storage, the least busy storage NICs first; at most HELPERS_MAX."""
        able = [
            state
            for state in self._by_id.values()
            if state.address.relays and not state.address.storage_node and self.alive(state, now_ms)
        ]
        able.sort(key=lambda state: sum(lane.queued_bytes for lane in state.load.lanes))
        return able[:HELPERS_MAX]

    def answerable(self, ref: int, now_ms: int) -> bool:
        """Whether a match may name this node."""
        state = self._by_ref.get(ref)
        return state is not None and self.alive(state, now_ms)

    def live_refs(self) -> set[int]:
        """Whose locations are kept: those of registered nodes, lost ones too, and of awaited ones."""
        return self._by_ref.keys() | self._awaited.keys()

    def dead_refs(self) -> set[int]:
        """Whose locations and record are still to be removed."""
        return set(self._dead)

    def bury(self, refs: Collection[int]) -> None:
        """Their records are removed."""
        self._dead.difference_update(refs)

    def expire(self, now_ms: int) -> list[str]:
        """Forgets nodes that have been silent for FORGOTTEN_MS; their names."""
        gone = [state for state in self._by_id.values() if now_ms - state.heard_ms >= FORGOTTEN_MS]
        for state in gone:
            del self._by_id[state.address.node_id]
            del self._by_ref[state.ref]
            self._dead.add(state.ref)
        names = [state.address.node_id for state in gone]
        if now_ms - self._started_ms >= FORGOTTEN_MS:
            names.extend(self._awaited.values())
            self._dead |= self._awaited.keys()
            self._awaited.clear()
        return names

    def __repr__(self) -> str:
        return f"Directory({len(self._by_id)} nodes, {len(self._awaited)} awaited, {len(self._dead)} dead)"
