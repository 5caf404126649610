"""How matches are counted."""

from kvstore.blocks.state import Tier
from kvstore.control.matches import NAMESPACES_MAX, MatchCounters

NS = [bytes([i]) * 16 for i in range(3)]


def test_by_namespace_and_lately() -> None:
    """Sums since the start, by tier too, the last spans, and each namespace for itself."""
    counters = MatchCounters()
    counters.note(NS[0], 10, [0, 0, 6, 2], 0)
    counters.note(NS[1], 5, [], 5 * 60_000)
    counters.note(NS[0], 3, [0, 0, 3], 70 * 60_000)
    told = counters.told(70 * 60_000)
    assert (told.matches, told.asked_blocks, told.matched_blocks) == (3, 18, 11)
    assert (told.asked_1min_blocks, told.matched_1min_blocks, told.asked_60min_blocks) == (3, 3, 3)
    assert {each.tier: each.blocks for each in told.matched_tiers} == {Tier.DRAM: 9, Tier.NVME: 2}
    assert counters.told(70 * 60_000 + 90_000).asked_1min_blocks == 0
    assert [(each.namespace_id, each.matches, each.asked_blocks, each.matched_blocks) for each in told.namespaces] == [
        (NS[0], 2, 13, 11),
        (NS[1], 1, 5, 0),
    ]


def test_namespaces_are_bounded() -> None:
    """What anybody may ask for by any id is added up in one beyond the bound."""
    counters = MatchCounters()
    for i in range(NAMESPACES_MAX + 5):
        counters.note(i.to_bytes(16, "big"), 1, [], 0)
    counters.note((0).to_bytes(16, "big"), 1, [], 0)
    assert len(counters.namespaces) == NAMESPACES_MAX + 1
    assert counters.namespaces[b""].matches == 5
    assert counters.namespaces[bytes(16)].matches == 2
