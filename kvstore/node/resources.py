"""What the loads of one node share."""

from dataclasses import dataclass, field

from kvstore.config import NodeConfig
from kvstore.node.custody import Custody
from kvstore.node.heard import Heard
from kvstore.node.kept import Kept
from kvstore.node.landing import Landing
from kvstore.node.loadtimes import LoadTimes
from kvstore.node.neighbours import Neighbours
from kvstore.node.networks import Networks
from kvstore.node.recall import Recalls
from kvstore.node.shared import SharedDevices
from kvstore.node.traffic import Traffic
from kvstore.pb import types_pb2


@dataclass(frozen=True, slots=True)
class Resources:
    """address: this node's own. shared: other nodes' devices that are mounted here. loads_from_disk, pushes_from_disk:
    for its own clients and for other nodes, where it has disks. heard: of other nodes' lanes. counters, traffic,
    times: since its start."""

    config: NodeConfig
    custody: Custody
    landing: Landing
    networks: Networks
    neighbours: Neighbours
    kept: Kept
    address: types_pb2.NodeAddress
    shared: SharedDevices | None = None
    loads_from_disk: Recalls | None = None
    pushes_from_disk: Recalls | None = None
    heard: Heard = field(default_factory=Heard)
    traffic: Traffic = field(default_factory=Traffic)
    times: LoadTimes = field(default_factory=LoadTimes)
    counters: dict[str, int] = field(
        default_factory=lambda: {
            "loads": 0,
            "loaded_local_bytes": 0,
            "loaded_peer_bytes": 0,
            "loaded_direct_bytes": 0,
            "loaded_relay_bytes": 0,
            "loaded_kept_bytes": 0,
            "corrupt_pieces": 0,
        }
    )
