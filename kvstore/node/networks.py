"""The node's ends of its networks: one fabric per NIC, each with its outgoing lane."""

from kvstore.config import NodeConfig
from kvstore.errors import InvalidInput
from kvstore.fabric import make_fabric
from kvstore.fabric.base import Fabric
from kvstore.node.connections import Connections
from kvstore.node.lanes import Lane
from kvstore.pb import control_pb2

COMPUTE = "compute"
STORAGE = "storage"


class Networks:
    """`compute` carries engine-to-engine traffic, `storage` storage traffic; one NIC may be both."""

    def __init__(self, fabrics: dict[str, Fabric], lane_bytes_max: int) -> None:
        self._fabrics = fabrics
        self.connections = Connections()
        self.lanes = {name: Lane(f"{name}:{fabric.transport}", lane_bytes_max) for name, fabric in fabrics.items()}

    @classmethod
    def open(cls, config: NodeConfig) -> "Networks":
        """Raises FabricUnavailable."""
        fabrics = {COMPUTE: make_fabric(config.compute)}
        if config.storage is not None:
            fabrics[STORAGE] = make_fabric(config.storage)
        return cls(fabrics, config.lane_bytes_max)

    def fabric(self, name: str) -> Fabric:
        """The fabric of a network; the compute NIC where there is no storage NIC. Raises InvalidInput."""
        if name not in (COMPUTE, STORAGE):
            raise InvalidInput(f"network must be {COMPUTE!r} or {STORAGE!r}, not {name!r}")
        return self._fabrics.get(name) or self._fabrics[COMPUTE]

    def lane(self, name: str) -> Lane:
        return self.lanes.get(name) or self.lanes[COMPUTE]

    def loads(self) -> list[control_pb2.LaneLoad]:
        return [
            control_pb2.LaneLoad(lane=lane.name, queued_bytes=lane.queued_bytes, bytes_per_s=int(lane.bytes_per_s))
            for lane in self.lanes.values()
        ]

    async def close(self) -> None:
        for fabric in self._fabrics.values():
            await fabric.close()
