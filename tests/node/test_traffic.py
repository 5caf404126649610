"""What loads got by which way."""

from kvstore.blocks.state import Tier
from kvstore.node.paths import Source
from kvstore.node.traffic import Traffic

SECOND_NS = 1_000_000_000
DISK, PEER = Source("a", Tier.NVME, "local"), Source("b", Tier.DRAM, "peer")


def test_what_came_by_which_way() -> None:
    """Since the start, and lately: an hour later only the sum is left."""
    traffic = Traffic()
    for source, length, at_s in ((PEER, 10, 2), (DISK, 5, 3), (PEER, 20, 120)):
        traffic.arrived(source, length, at_s * SECOND_NS)
    disk, peer = traffic.routes(120 * SECOND_NS)
    assert (disk.route, disk.bytes, disk.pieces) == ("local", 5, 1)
    assert (peer.route, peer.tier, peer.pieces) == ("peer", Tier.DRAM, 2)
    assert (peer.bytes, peer.last_1min_bytes, peer.last_10min_bytes, peer.last_60min_bytes) == (30, 20, 30, 30)
    _, later = traffic.routes(2 * 3600 * SECOND_NS)
    assert (later.bytes, later.last_60min_bytes) == (30, 0)
