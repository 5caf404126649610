"""What stands before a load: the stages that the blocks of a match would pass, with their present load.

A block that lies in several places counts at one: this node's memory, another's, this node's disk, another's. The real
load shares it among all of them, so it is no slower than what is told here. A lane of which nothing is known, neither
configured nor measured, limits nothing: the first load over it finds out. Of two NICs that bytes pass one after the
other at most one counts as measured, for the measure of the faster one is what the slower one left it.
"""

import math

import numpy as np
import numpy.typing as npt

from kvstore.blocks.state import Tier
from kvstore.client.matching import Locations
from kvstore.config import NodeConfig
from kvstore.pb import types_pb2
from kvstore.policy.recompute import Stage
from kvstore.policy.route import LaneLoad, Question, plan
from kvstore.rpc.lanes import COMPUTE_IN, COMPUTE_OUT, DISK_PREFIX, STORAGE_IN, STORAGE_OUT, candidate, known, lane_of

Blocks = npt.NDArray[np.bool_]
_DEFAULTS = NodeConfig()


def stages_of(
    locations: Locations,
    first: int,
    blocks: int,
    shard_rank: int,
    own: types_pb2.NodeAddress,
    block_bytes: int,
    copy_bytes_per_s: float,
) -> list[Stage]:
    """For blocks first … blocks - 1. own: the reader's node. block_bytes: of one rank. copy_bytes_per_s: into the
    engine's buffers; 0: not known."""
    return _Prospect(locations, first, blocks, shard_rank, own, block_bytes).stages(copy_bytes_per_s)


class _Prospect:
    """One match's."""

    def __init__(
        self,
        locations: Locations,
        first: int,
        blocks: int,
        shard_rank: int,
        own: types_pb2.NodeAddress,
        block_bytes: int,
    ) -> None:
        self._locations = locations
        self._wanted = np.arange(blocks) >= first
        self._own = own
        self._block_bytes = block_bytes
        self._load = locations.loads.get(own.node_id, types_pb2.NodeLoad())
        self._owners: dict[str, Blocks] = {}
        self._on_disk = np.zeros(blocks, np.bool_)
        chosen = np.where(self._wanted, locations.best(blocks, shard_rank, self._rank()), -1)
        for index, node in enumerate(locations.nodes):
            at = chosen >= 0
            at[at] = locations.node[chosen[at]] == index
            self._owners[node.node_id] = self._owners.get(node.node_id, np.zeros(blocks, np.bool_)) | at
            self._on_disk[at] |= locations.tier[chosen[at]] == Tier.NVME

    def _rank(self) -> npt.NDArray[np.int64]:
        """Of each location: the least is where a block counts."""
        ids = [node.node_id for node in self._locations.nodes]
        elsewhere = np.array([node_id != self._own.node_id for node_id in ids], np.int64)
        on_disk = (self._locations.tier == Tier.NVME).astype(np.int64)
        ranks: npt.NDArray[np.int64] = 2 * on_disk + elsewhere[self._locations.node]
        return ranks

    def stages(self, copy_bytes_per_s: float) -> list[Stage]:
        own_id = self._own.node_id
        storage_nic = lane_of(self._load.lanes, STORAGE_IN) is not None
        nodes = {node.node_id: node for node in self._locations.nodes}
        direct = [name for name, node in nodes.items() if storage_nic and node.storage_node and name != own_id]
        peers = [name for name in nodes if name not in direct and name != own_id]
        found = [self._storage_nics(direct), self._compute_nic(peers)]
        found += [self._disks(name) for name in nodes]
        found += [self._nic(name, direct=True) for name in direct]
        found += [self._nic(name, direct=False) for name in peers]
        if copy_bytes_per_s:
            found.append(Stage("the copy into the engine", [(copy_bytes_per_s, 0.0)], self._wanted))
        return [stage for stage in found if stage is not None and stage.passing.any()]

    def _of(self, names: list[str]) -> Blocks:
        found = np.zeros_like(self._on_disk)
        for name in names:
            found |= self._owners[name]
        return found

    def _storage_nics(self, owners: list[str]) -> Stage | None:
        """The reader's own storage NIC, and those of helpers that would join."""
        passing, own = self._of(owners), known(lane_of(self._load.lanes, STORAGE_IN))
        if own is None or not passing.any():
            return None
        helpers = self._locations.helpers if self._own.relays else ()
        apart = {self._own.node_id, *owners}
        compute = self._compute_in()
        route = plan(
            Question(
                int(passing.sum()) * self._block_bytes,
                own,
                LaneLoad(compute.bytes_per_s if compute else math.inf),
                [candidate(helper) for helper in helpers if helper.node.node_id not in apart],
                _DEFAULTS.piece_bytes,
                _DEFAULTS.relay_helpers_max,
            )
        )
        name = f"the storage NICs of {', '.join([self._own.node_id, *route.helpers])}"
        return Stage(name, [(share.bytes_per_s, share.wait_s) for share in route.shares], passing)

    def _compute_nic(self, owners: list[str]) -> Stage | None:
        return _stage(f"the compute NIC of {self._own.node_id}", self._compute_in(), self._of(owners))

    def _compute_in(self) -> LaneLoad | None:
        return _configured(lane_of(self._load.lanes, COMPUTE_IN))

    def _nic(self, owner: str, *, direct: bool) -> Stage | None:
        """Over which an owner sends. Of a storage node only as configured: the readers' storage NICs are measured."""
        lanes = self._locations.loads.get(owner, types_pb2.NodeLoad()).lanes
        compute = lane_of(lanes, COMPUTE_OUT)
        lane = _configured(lane_of(lanes, STORAGE_OUT) or compute) if direct else known(compute)
        return _stage(f"the NIC of {owner}", lane, self._owners[owner])

    def _disks(self, owner: str) -> Stage | None:
        load = self._locations.loads.get(owner, types_pb2.NodeLoad())
        lanes = [known(lane) for lane in load.lanes if lane.lane.startswith(DISK_PREFIX)]
        rates = [(lane.bytes_per_s, lane.wait_s) for lane in lanes if lane is not None]
        if not rates or len(rates) < len(lanes):
            return None
        return Stage(f"the disks of {owner}", rates, self._owners[owner] & self._on_disk)


def _configured(lane: types_pb2.LaneLoad | None) -> LaneLoad | None:
    return known(lane) if lane is not None and lane.nominal_bytes_per_s else None


def _stage(name: str, lane: LaneLoad | None, passing: Blocks) -> Stage | None:
    return None if lane is None else Stage(name, [(lane.bytes_per_s, lane.wait_s)], passing)
