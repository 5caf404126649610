"""Lanes as nodes report them: their names are those that readers look for."""

from kvstore.config import FabricConfig, NodeConfig
from kvstore.node.networks import Networks
from kvstore.pb import types_pb2
from kvstore.policy.route import RATE_START_BYTES_PER_S
from kvstore.rpc.lanes import COMPUTE_IN, COMPUTE_OUT, STORAGE_IN, STORAGE_OUT, candidate, known, lane_of


async def test_the_names_are_those_that_nodes_report() -> None:
    """A node with two NICs has a lane under each of them; the rate is the configured one from the beginning."""
    loopback = FabricConfig(kind="loopback", bytes_per_s=7)
    networks = Networks.open(NodeConfig(compute=loopback, storage=loopback))
    load = types_pb2.NodeLoad(lanes=networks.loads())
    await networks.close()
    assert {lane.lane for lane in load.lanes} == {COMPUTE_IN, COMPUTE_OUT, STORAGE_IN, STORAGE_OUT}
    lane = known(lane_of(load.lanes, STORAGE_IN))
    assert lane is not None
    assert (lane.bytes_per_s, lane.queued_bytes) == (7, 0)


def test_a_lane_is_known_once_something_has_moved() -> None:
    """Or when it is configured; before that its rate is a guess, which only the choice of helpers takes."""
    guess = types_pb2.LaneLoad(lane=STORAGE_IN, bytes_per_s=125, queued_bytes=9)
    measured = types_pb2.LaneLoad(lane=COMPUTE_OUT, bytes_per_s=125, queued_bytes=9, moved_bytes=1)
    assert known(None) is None
    assert known(guess) is None
    lane = known(measured)
    assert lane is not None
    assert (lane.bytes_per_s, lane.queued_bytes) == (125, 9)
    found = candidate(types_pb2.Helper(load=types_pb2.NodeLoad(lanes=[guess])))
    assert (found.storage.bytes_per_s, found.storage.queued_bytes) == (125, 9)
    assert (found.compute.bytes_per_s, found.compute.queued_bytes) == (RATE_START_BYTES_PER_S, 0)
    nothing = types_pb2.LaneLoad(lane=STORAGE_IN, queued_bytes=9)
    found = candidate(types_pb2.Helper(load=types_pb2.NodeLoad(lanes=[nothing])))
    assert (found.storage.bytes_per_s, found.storage.queued_bytes) == (RATE_START_BYTES_PER_S, 0)
