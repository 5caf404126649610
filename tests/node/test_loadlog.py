"""What is told of loads under way, and of those that ended."""

from kvstore.blocks.state import Tier
from kvstore.node.loadlog import ENDED_MAX, LoadLog, Progress
from kvstore.node.paths import Source

MS = 1_000_000
DIRECT = Source("storage-1", Tier.NVME, "direct")
RELAY = Source("decode-1", Tier.NVME, "relay")


def test_a_load_under_way_is_told_as_far_as_it_is() -> None:
    """What its progress says at the moment of the question, path by path."""
    log, progress = LoadLog(), Progress(asked_blocks=5)
    log.begin("acme", b"n" * 16, progress, 100 * MS)
    (planning,) = log.states(101 * MS)
    assert (planning.blocks_asked, planning.blocks, planning.first_ms, list(planning.paths)) == (5, 0, 0, [])
    progress.found_blocks, progress.found_bytes, progress.first_ns = 4, 400, 107 * MS + 1
    progress.arrived.update({DIRECT: 150, RELAY: 50})
    (state,) = log.states(110 * MS)
    assert (state.number, state.tenant, state.blocks, state.bytes, state.arrived_bytes) == (1, "acme", 4, 400, 200)
    assert (state.age_ms, state.first_ms, state.ended, state.took_ms) == (10, 8, False, 0)
    paths = {(path.route, path.node_id, path.tier, path.bytes) for path in state.paths}
    assert paths == {("direct", "storage-1", Tier.NVME, 150), ("relay", "decode-1", Tier.NVME, 50)}


def test_loads_that_ended_follow_those_under_way() -> None:
    """The last one first; the time that each took stands still, its age does not."""
    log = LoadLog()
    entries = [log.begin("acme", b"", Progress(1), number * MS) for number in range(3)]
    log.end(entries[0], 10 * MS)
    log.end(entries[2], 20 * MS)
    told = [(state.number, state.ended, state.took_ms, state.age_ms) for state in log.states(30 * MS)]
    assert told == [(2, False, 0, 29), (3, True, 18, 28), (1, True, 10, 30)]


def test_memory_is_bounded() -> None:
    """Only the last ones that ended are remembered, and numbers go on."""
    log = LoadLog()
    for number in range(ENDED_MAX + 5):
        log.end(log.begin("acme", b"", Progress(1), number * MS), number * MS)
    states = log.states(10**9)
    assert [state.number for state in states] == list(range(ENDED_MAX + 5, 5, -1))
