"""What other nodes' lanes were loaded with when they last answered this one. No I/O, no clock.

A match tells the loads of the last heartbeat; each answer to a transfer tells those of its moment. Where a node has
answered lately its answers count, as a moving average: one of them is the length of a queue at one instant.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from kvstore.pb import types_pb2

FRESH_NS = 500_000_000
"""About a heartbeat: after that the match knows better."""
_WEIGHT = 0.5
_NODES_MAX = 1024


@dataclass(slots=True)
class _Lane:
    """The last one that was told, with the average of its queue."""

    told: types_pb2.LaneLoad
    queued_bytes: float
    at_ns: int


class Heard:
    """By node and lane; of those nodes that answered last. Every method wants a `now_ns` that does not fall."""

    def __init__(self) -> None:
        self._nodes: OrderedDict[str, dict[str, _Lane]] = OrderedDict()

    def note(self, node_id: str, lanes: Iterable[types_pb2.LaneLoad], now_ns: int) -> None:
        """A node has answered."""
        known = self._nodes.setdefault(node_id, {})
        for lane in lanes:
            last, queued = known.get(lane.lane), float(lane.queued_bytes)
            if last is not None and now_ns - last.at_ns < FRESH_NS:
                queued = last.queued_bytes + _WEIGHT * (queued - last.queued_bytes)
            known[lane.lane] = _Lane(lane, queued, now_ns)
        self._nodes.move_to_end(node_id)
        if len(self._nodes) > _NODES_MAX:
            self._nodes.popitem(last=False)

    def fresher(self, helper: types_pb2.Helper, now_ns: int) -> types_pb2.Helper:
        """The helper with those of its lanes that were heard of lately as they were told."""
        lanes = {lane.lane: lane for lane in helper.load.lanes}
        for name, lane in self._nodes.get(helper.node.node_id, {}).items():
            if now_ns - lane.at_ns < FRESH_NS:
                lanes[name] = types_pb2.LaneLoad()
                lanes[name].CopyFrom(lane.told)
                lanes[name].queued_bytes = int(lane.queued_bytes)
        return types_pb2.Helper(node=helper.node, load=types_pb2.NodeLoad(lanes=lanes.values()))
