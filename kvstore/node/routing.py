"""From what a load's client knows of the cluster to the question that `policy.route` answers, and to paths."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kvstore.errors import InvalidInput
from kvstore.node.disklane import DiskLane
from kvstore.node.networks import COMPUTE, STORAGE, Networks
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.route import LaneLoad, Question
from kvstore.rpc.lanes import candidate


def owners_of(start: node_pb2.LoadStart, count: int, own_id: str) -> dict[int, list[int]]:
    """Which other nodes may have which blocks, by the caller's hint: indices into start.nodes. Raises InvalidInput."""
    blocks = np.frombuffer(start.location_block, "<u4") if len(start.location_block) % 4 == 0 else None
    nodes = np.frombuffer(start.location_node, "<u2") if len(start.location_node) % 2 == 0 else None
    if blocks is None or nodes is None or blocks.size != nodes.size:
        raise InvalidInput("load: the columns of locations do not fit together")
    found: dict[int, list[int]] = defaultdict(list)
    for block, node in sorted(set(zip(blocks.tolist(), nodes.tolist(), strict=True))):
        if block < count and node < len(start.nodes) and start.nodes[node].node_id != own_id:
            found[node].append(block)
    return dict(found)


def network_to(owner: types_pb2.NodeAddress, networks: Networks) -> tuple[str, str]:
    """(network, route) by which an owner's bytes come."""
    over_storage = networks.has_storage and owner.storage_node
    return (STORAGE, "direct") if over_storage else (COMPUTE, "peer")


def question(
    length: int,
    networks: Networks,
    shared: DiskLane | None,
    helpers: Sequence[types_pb2.Helper],
    apart_from: set[str],
    piece_bytes: int,
    helpers_max: int,
    storage_bytes_per_s: float,
) -> Question:
    """What to ask for a load of which `length` bytes lie in storage. shared: the way to a directory where all of it
    lies. apart_from: nodes that cannot help with it."""
    candidates = [candidate(helper) for helper in helpers if helper.node.node_id not in apart_from]
    nic, compute = networks.meter(STORAGE), networks.meter(COMPUTE)
    own = (nic.capacity_bytes_per_s, nic.queued_bytes) if shared is None else (shared.bytes_per_s, shared.queued_bytes)
    return Question(
        length,
        LaneLoad(*own),
        # What it has carried so far does not tell what it could.
        LaneLoad(float(compute.nominal_bytes_per_s or math.inf)),
        candidates,
        piece_bytes,
        helpers_max,
        storage_bytes_per_s,
    )
