"""The node's ends of its networks: one fabric per NIC, with a lane outwards and a meter inwards."""

from collections.abc import Mapping
from dataclasses import replace

from kvstore.config import NodeConfig
from kvstore.errors import InvalidInput
from kvstore.fabric import make_fabric
from kvstore.fabric.base import Fabric
from kvstore.node.connections import Connections
from kvstore.node.lanes import Lane, Meter, lately
from kvstore.pb import node_pb2, types_pb2
from kvstore.policy.recent import Recent
from kvstore.rpc.bind import is_local

COMPUTE = "compute"
STORAGE = "storage"
LOOPBACK = "lo"


class Networks:
    """`compute` carries engine-to-engine traffic, `storage` storage traffic; one NIC may be both."""

    def __init__(self, fabrics: dict[str, Fabric], lane_bytes_max: int, nominal: Mapping[str, int]) -> None:
        self._fabrics = fabrics
        self.connections = Connections()
        self.lanes = {name: Lane(f"{name}-out", lane_bytes_max, nominal.get(name, 0)) for name in fabrics}
        self.meters = {name: Meter(f"{name}-in", nominal.get(name, 0)) for name in fabrics}

    @classmethod
    def open(cls, config: NodeConfig) -> "Networks":
        """A node that only this host reaches keeps to the loopback device, unless it is given another.

        Raises FabricUnavailable and ConfigError, which name the setting.
        """
        nics = {COMPUTE: config.compute} | ({STORAGE: config.storage} if config.storage is not None else {})
        if not config.insecure and is_local(config.listen):
            nics = {name: nic if nic.device else replace(nic, device=LOOPBACK) for name, nic in nics.items()}
        fabrics = {name: make_fabric(nic, f"node.{name}") for name, nic in nics.items()}
        return cls(fabrics, config.lane_bytes_max, {name: nic.bytes_per_s for name, nic in nics.items()})

    @property
    def has_storage(self) -> bool:
        """Whether storage traffic has a NIC of its own."""
        return STORAGE in self._fabrics

    def fabric(self, name: str) -> Fabric:
        """The fabric of a network; the compute NIC where there is no storage NIC. Raises InvalidInput."""
        if name not in (COMPUTE, STORAGE):
            raise InvalidInput(f"network must be {COMPUTE!r} or {STORAGE!r}, not {name!r}")
        return self._fabrics.get(name) or self._fabrics[COMPUTE]

    def lane(self, name: str) -> Lane:
        """Outwards."""
        return self.lanes.get(name) or self.lanes[COMPUTE]

    def meter(self, name: str) -> Meter:
        """Inwards."""
        return self.meters.get(name) or self.meters[COMPUTE]

    def both_ways(self) -> list[Meter]:
        return [*self.lanes.values(), *self.meters.values()]

    def loads(self) -> list[types_pb2.LaneLoad]:
        return [lane_load(meter) for meter in self.both_ways()]

    async def close(self) -> None:
        for fabric in self._fabrics.values():
            await fabric.close()


def lane_load(meter: Meter) -> types_pb2.LaneLoad:
    return types_pb2.LaneLoad(
        lane=meter.name,
        queued_bytes=meter.queued_bytes,
        bytes_per_s=int(meter.capacity_bytes_per_s),
        moved_bytes=meter.moved_bytes,
        nominal_bytes_per_s=meter.nominal_bytes_per_s,
    )


def lane_moved(name: str, recent: Recent, now_ns: int) -> node_pb2.LaneMoved:
    """What a lane of a NIC or a disk carried lately."""
    return node_pb2.LaneMoved(lane=name, **lately(recent, now_ns))
