"""What loads of this node's clients got, by route and tier: since the node started, and lately."""

from dataclasses import dataclass, field

from kvstore.blocks.state import Tier
from kvstore.node.lanes import lately, recent_bytes
from kvstore.node.paths import Source
from kvstore.pb import node_pb2
from kvstore.policy.recent import Recent
from kvstore.rpc.enums import pb_tier


@dataclass(slots=True)
class _Way:
    """One route from one tier."""

    pieces: int = 0
    bytes: int = 0
    recent: Recent = field(default_factory=recent_bytes)


class Traffic:
    """Belongs to the event loop. Time is an argument, and must not fall."""

    def __init__(self) -> None:
        self._ways: dict[tuple[str, Tier], _Way] = {}

    def arrived(self, source: Source, length: int, now_ns: int) -> None:
        """A piece is there; one that was corrupt and came again counts twice."""
        way = self._ways.get((source.route, source.tier))
        if way is None:
            way = self._ways[source.route, source.tier] = _Way()
        way.pieces += 1
        way.bytes += length
        way.recent.add(length, now_ns)

    def routes(self, now_ns: int) -> list[node_pb2.RouteTraffic]:
        return [
            node_pb2.RouteTraffic(
                route=route,
                tier=pb_tier(tier),
                pieces=way.pieces,
                bytes=way.bytes,
                **lately(way.recent, now_ns),
            )
            for (route, tier), way in sorted(self._ways.items())
        ]
