"""How often matches hit: since the control plane's start, lately, by namespace, and by tier."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvstore.blocks.state import Tier
from kvstore.pb import admin_pb2
from kvstore.policy.recent import HOUR_NS, MINUTE_NS, SECOND_NS, Recent
from kvstore.rpc.enums import pb_tier

NAMESPACES_MAX = 1024
_OTHERS = b""
_NS_PER_MS = 1_000_000


def _hour() -> Recent:
    return Recent(SECOND_NS, HOUR_NS // SECOND_NS)


@dataclass(slots=True)
class MatchCounters:
    """namespaces: by id; what is beyond NAMESPACES_MAX of them is added up under an empty one."""

    matches: int = 0
    asked_blocks: int = 0
    matched_blocks: int = 0
    tiers: "Counter[int]" = field(default_factory=Counter)
    namespaces: dict[bytes, admin_pb2.NamespaceMatches] = field(default_factory=dict)
    _asked: Recent = field(default_factory=_hour)
    _matched: Recent = field(default_factory=_hour)

    def note(self, namespace_id: bytes, asked_blocks: int, matched_by_tier: Sequence[int], now_ms: int) -> None:
        """One match. matched_by_tier: blocks, by the number of the tier of their fastest copy. The time must not
        fall."""
        matched_blocks = sum(matched_by_tier)
        self.tiers.update(dict(enumerate(matched_by_tier)))
        self.matches += 1
        self.asked_blocks += asked_blocks
        self.matched_blocks += matched_blocks
        self._asked.add(asked_blocks, now_ms * _NS_PER_MS)
        self._matched.add(matched_blocks, now_ms * _NS_PER_MS)
        known = self.namespaces.get(namespace_id)
        if known is None:
            name = namespace_id if len(self.namespaces) < NAMESPACES_MAX else _OTHERS
            known = self.namespaces.setdefault(name, admin_pb2.NamespaceMatches(namespace_id=name))
        known.matches += 1
        known.asked_blocks += asked_blocks
        known.matched_blocks += matched_blocks

    def told(self, now_ms: int) -> admin_pb2.StatsReply:
        """The part of the statistics that is about matches."""
        now_ns = now_ms * _NS_PER_MS
        return admin_pb2.StatsReply(
            matches=self.matches,
            asked_blocks=self.asked_blocks,
            matched_blocks=self.matched_blocks,
            matched_tiers=[
                admin_pb2.TierMatches(tier=pb_tier(tier), blocks=self.tiers[tier]) for tier in Tier if self.tiers[tier]
            ],
            namespaces=[self.namespaces[name] for name in sorted(self.namespaces)],
            matched_1min_blocks=self._matched.within(MINUTE_NS, now_ns),
            asked_1min_blocks=self._asked.within(MINUTE_NS, now_ns),
            matched_10min_blocks=self._matched.within(10 * MINUTE_NS, now_ns),
            asked_10min_blocks=self._asked.within(10 * MINUTE_NS, now_ns),
            matched_60min_blocks=self._matched.within(HOUR_NS, now_ns),
            asked_60min_blocks=self._asked.within(HOUR_NS, now_ns),
        )
