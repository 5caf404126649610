"""Lanes as nodes report them, in the terms of `policy.route`."""

from collections.abc import Iterable

from kvstore.pb import types_pb2
from kvstore.policy.route import RATE_START_BYTES_PER_S, Candidate, LaneLoad

STORAGE_IN = "storage-in"
STORAGE_OUT = "storage-out"
COMPUTE_IN = "compute-in"
COMPUTE_OUT = "compute-out"
SHARED = "shared"
DISK_PREFIX = "nvme"


def lane_of(lanes: Iterable[types_pb2.LaneLoad], name: str) -> types_pb2.LaneLoad | None:
    """A lane of a node by its name; None when the node reported none such."""
    return next((lane for lane in lanes if lane.lane == name), None)


def known(lane: types_pb2.LaneLoad | None) -> LaneLoad | None:
    """A lane as configured or as measured; None for one that is neither yet."""
    if lane is None or not lane.bytes_per_s or not (lane.nominal_bytes_per_s or lane.moved_bytes):
        return None
    return LaneLoad(float(lane.bytes_per_s), lane.queued_bytes)


def candidate(helper: types_pb2.Helper) -> Candidate:
    """A node that could help. A lane of which nothing is told is believed to be as good as any."""
    storage = _believed(helper, STORAGE_IN if lane_of(helper.load.lanes, STORAGE_IN) else SHARED)
    return Candidate(helper.node.node_id, storage, _believed(helper, COMPUTE_OUT))


def _believed(helper: types_pb2.Helper, name: str) -> LaneLoad:
    lane = lane_of(helper.load.lanes, name)
    if lane is None or not lane.bytes_per_s:
        return LaneLoad(float(RATE_START_BYTES_PER_S))
    return LaneLoad(float(lane.bytes_per_s), lane.queued_bytes)
