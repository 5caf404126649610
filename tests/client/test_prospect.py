"""Which stages the blocks of a match pass, by where they lie and what is known of the lanes."""

import dataclasses

import numpy as np
import pytest

from kvstore.client.matching import Locations
from kvstore.client.prospect import stages_of
from kvstore.pb import types_pb2
from kvstore.policy.recompute import Stage

MB = 10**6
HBM, DRAM, NVME = 1, 2, 3
OWN = types_pb2.NodeAddress(node_id="own", relays=True)
PEER = types_pb2.NodeAddress(node_id="peer")
STORAGE = types_pb2.NodeAddress(node_id="storage", storage_node=True)


def lane(name: str, rate_mb: int = 0, queued_mb: int = 0, moved: int = 1, nominal: bool = False) -> types_pb2.LaneLoad:
    rate = rate_mb * MB
    return types_pb2.LaneLoad(
        lane=name,
        bytes_per_s=rate,
        queued_bytes=queued_mb * MB,
        moved_bytes=moved,
        nominal_bytes_per_s=rate if nominal else 0,
    )


def load(*lanes: types_pb2.LaneLoad) -> types_pb2.NodeLoad:
    return types_pb2.NodeLoad(lanes=lanes)


OWN_LOAD = load(
    lane("compute-out", 3),
    lane("compute-in", 900),
    lane("storage-in", 100, 50),
    lane("nvme0", 800),
    lane("nvme1", 600, 60),
)


def locations(
    places: list[tuple[int, types_pb2.NodeAddress, int]],
    loads: dict[str, types_pb2.NodeLoad],
    helpers: tuple[types_pb2.Helper, ...] = (),
) -> Locations:
    """places: (block, node, tier)."""
    nodes = (OWN, PEER, STORAGE)
    return Locations(
        nodes,
        np.array([block for block, _, _ in places], "<u4"),
        np.array([nodes.index(node) for _, node, _ in places], "<u2"),
        np.array([tier for _, _, tier in places], "u1"),
        np.zeros(len(places), "<u2"),
        np.ones(len(places), "<u4"),
        helpers,
        {"own": OWN_LOAD, **loads},
    )


def stages(found: Locations, blocks: int = 2, copy_bytes_per_s: float = 0.0, first: int = 0) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of(found, first, blocks, 0, OWN, MB, copy_bytes_per_s)}


def test_memory_of_the_own_node_is_only_copied() -> None:
    """Blocks in this node's DRAM, or of which no place is told, pass no lane; the copy they all pass."""
    found = locations([(0, OWN, DRAM), (0, PEER, HBM)], {"peer": load(lane("compute-out", 10))})
    assert stages(found) == {}
    (copy,) = stages(found, copy_bytes_per_s=5.0).values()
    assert (copy.lanes, copy.passing.tolist()) == ([(5.0, 0.0)], [True, True])


def test_what_the_engine_has_passes_nothing() -> None:
    """Neither a lane nor the copy."""
    found = locations([(0, PEER, NVME), (1, PEER, NVME)], {"peer": load(lane("compute-out", 10), lane("nvme0", 10))})
    theirs = stages(found, copy_bytes_per_s=5.0, first=1)
    assert theirs.keys() == {"the NIC of peer", "the disks of peer", "the copy into the engine"}
    assert all(stage.passing.tolist() == [False, True] for stage in theirs.values())


def test_own_disks_work_side_by_side() -> None:
    """Every disk is a lane; a block that another node has in memory does not count at the disk."""
    places = [(0, OWN, NVME), (1, OWN, NVME), (1, PEER, DRAM)]
    found = stages(locations(places, {"peer": load(lane("compute-out", 10))}))
    disks = found["the disks of own"]
    assert disks.lanes == [(800 * MB, 0.0), (600 * MB, 0.1)]
    assert disks.passing.tolist() == [True, False]
    assert found["the NIC of peer"].passing.tolist() == [False, True]


def test_a_peer_sends_over_its_compute_nic() -> None:
    """From its disk through that as well; what waits at the NIC comes first."""
    far = load(lane("compute-out", 200, 100), lane("storage-out", 1), lane("nvme0", 50))
    found = stages(locations([(0, PEER, DRAM), (1, PEER, NVME)], {"peer": far}))
    assert found["the NIC of peer"].lanes == [(200 * MB, 0.5)]
    assert found["the NIC of peer"].passing.tolist() == [True, True]
    assert found["the disks of peer"].passing.tolist() == [False, True]


@pytest.mark.parametrize(("nominal", "counts"), [(True, True), (False, False)])
def test_the_own_compute_nic_counts_as_configured(nominal: bool, counts: bool) -> None:
    """What it has carried so far does not tell what it could."""
    own = load(lane("compute-in", 300, 30, nominal=nominal))
    found = stages(locations([(0, PEER, DRAM)], {"own": own}))
    assert ("the compute NIC of own" in found) == counts
    if counts:
        assert found["the compute NIC of own"].lanes == [(300 * MB, 0.1)]


def helper(name: str, queued_mb: int = 0) -> types_pb2.Helper:
    nics = load(lane("storage-in", 100, queued_mb), lane("compute-out", 1000))
    return types_pb2.Helper(node=types_pb2.NodeAddress(node_id=name), load=nics)


def test_storage_comes_over_all_storage_nics() -> None:
    """The reader's own and those of helpers that are worth asking, never the owner's or the reader's twice."""
    helpers = (helper("idle"), helper("busy", 10**6), helper("own"), helper("storage"))
    places = [(block, STORAGE, DRAM) for block in range(100)]
    far = load(lane("compute-out", 5000, nominal=True))
    found = stages(locations(places, {"storage": far}, helpers), blocks=100)
    nics = found["the storage NICs of own, idle"]
    assert nics.lanes == [(100 * MB, 0.5), (100 * MB, pytest.approx(0.002))]
    assert found["the NIC of storage"].lanes == [(5000 * MB, 0.0)]
    far = load(lane("compute-out", 5000, nominal=True), lane("storage-out", 7, nominal=True))
    found = stages(locations(places, {"storage": far}, helpers), blocks=100)
    assert found["the NIC of storage"].lanes == [(7 * MB, 0.0)]


@pytest.mark.parametrize("name", ["compute-out", "storage-out"])
def test_what_a_storage_node_sent_is_not_what_it_could(name: str) -> None:
    """Its NIC counts as configured alone: what was measured there, its readers' storage NICs have bounded."""
    far = load(lane(name, 7), lane("compute-out", 9))
    assert list(stages(locations([(0, STORAGE, DRAM)], {"storage": far}), blocks=1)) == ["the storage NICs of own"]


def test_a_node_that_uses_no_helpers() -> None:
    """Reads over its own storage NIC alone; one without a storage NIC over its compute NIC."""
    places = [(block, STORAGE, DRAM) for block in range(100)]
    found = locations(places, {}, (helper("idle"),))
    alone = types_pb2.NodeAddress(node_id="own", relays=False)
    assert [stage.name for stage in stages_of(found, 0, 100, 0, alone, MB, 0)] == ["the storage NICs of own"]
    far = {"own": load(lane("compute-in", 5)), "storage": load(lane("storage-out", 7), lane("compute-out", 9))}
    found = stages(locations(places, far, (helper("idle"),)), blocks=100)["the NIC of storage"]
    assert found.lanes == [(9 * MB, 0.0)]


def test_a_storage_node_reads_its_own() -> None:
    """Over no NIC."""
    alone = types_pb2.NodeAddress(node_id="own", storage_node=True)
    found = dataclasses.replace(locations([(0, OWN, DRAM)], {}), nodes=(alone, PEER, STORAGE))
    assert stages_of(found, 0, 1, 0, alone, MB, 0) == []


def test_what_is_not_known_limits_nothing() -> None:
    """A lane that was neither configured nor used, or that nobody told of."""
    fresh = load(lane("compute-out", 125, moved=0), lane("nvme0", 500, moved=0))
    places = [(0, PEER, NVME), (1, STORAGE, DRAM)]
    own = load(lane("storage-in", 125, moved=0))
    assert stages(locations(places, {"own": own, "peer": fresh})) == {}
    assert stages(dataclasses.replace(locations(places, {}), loads={})) == {}
    half = load(lane("compute-out", 125, moved=0), lane("nvme0", 500), lane("nvme1", 500, moved=0))
    assert stages(locations(places, {"own": own, "peer": half})) == {}
    configured = load(lane("compute-out", 125, moved=0, nominal=True))
    assert list(stages(locations(places, {"own": own, "peer": configured}))) == ["the NIC of peer"]
