"""Configuration: frozen dataclasses. Every default is written here and nowhere else; the CLI reads them off the fields.

A TOML file has one table per class: [control], [node] with [node.compute] and [node.storage], [client], [door]; beside
them [namespaces."PATTERN"] with rules of namespaces (`kvstore.policy.rulebook`). The environment lies over it, options
of the command line over both (`kvstore.cli.layers`).
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeVar

from kvstore.errors import ConfigError

MIB = 1024 * 1024
GIB = 1024 * MIB


def option(default: Any, help: str, *, least: int = 0, most: int | None = None) -> Any:
    """A field whose text the CLI shows. least, most: of a whole number, what is accepted where it is configured; most
    None: no bound."""
    if isinstance(default, list | dict | set):
        raise TypeError("defaults must be immutable")
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, slots=True)
class FabricConfig:
    """One network interface's data plane (design: one context per NIC)."""

    kind: str = option("auto", "ucx; tcp (plain sockets); loopback; auto: ucx, or tcp where UCX is not installed")
    device: str = option("", "network device, as UCX names it (eth1, mlx5_0:1); empty: every device")
    transports: str = option("tcp", "UCX transports (UCX_TLS); on InfiniBand or RoCE: rc,tcp. 'auto': UCX chooses")
    rails_max: int = option(0, "rails of one rendezvous message; 0: one over TCP, UCX's default elsewhere")
    segment_bytes: int = option(128 * 1024, "segment of the TCP transport", least=1)
    error_handling: bool = option(True, "detect a dead peer; without it its operations hang")
    cuda: bool = option(False, "device memory in messages (adds cuda_copy and cuda_ipc)")
    service_level: str = option(
        "auto", "InfiniBand service level or RoCE Ethernet priority, 0 to 15; auto: UCX chooses"
    )
    traffic_class: str = option(
        "auto", "traffic class (DSCP × 4 + ECN) of RoCE and of plain sockets, 0 to 255; auto: UCX or the kernel chooses"
    )
    bytes_per_s: int = option(0, "what the NIC carries in each direction; 0: as measured")


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The control plane."""

    listen: str = option("127.0.0.1:0", "host:port or unix:path to listen on; port 0 picks a free one")
    insecure: bool = option(False, "listen where other hosts reach it too, without encryption or authentication")
    index_path: str = option("", "directory of the LMDB index; empty: a temporary one")
    index_bytes_max: int = option(16 * GIB, "upper bound of the index file (virtual, not reserved)")
    heartbeat_ms: int = option(500, "how often nodes report", least=1)
    node_lost_ms: int = option(2000, "silence after which a node's locations are no longer answered", least=1)
    address_file: str = option("", "write the address here once listening")
    metrics_listen: str = option("", "host:port of the metrics for Prometheus; port 0 picks a free one; empty: none")
    page: str = option("", "host:port of the web page; port 0 picks a free one; empty: none")
    page_ms: int = option(500, "how often the page's numbers are renewed while somebody looks", least=1)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """A node: the owner of slots."""

    node_id: str = option("", "name in the cluster; empty: host name and process id")
    listen: str = option("127.0.0.1:0", "host:port for other nodes and operators")
    insecure: bool = option(False, "listen where other hosts reach it too, without encryption or authentication")
    metrics_listen: str = option("", "host:port of the metrics for Prometheus; port 0 picks a free one; empty: none")
    socket: str = option("", "path of the unix socket for engines on this host; empty: a temporary one")
    control: str = option("", "address of the control plane; empty: none, only local matches")
    roles: tuple[str, ...] = option((), "prefill, decode, storage; for display and for choosing helpers")
    dram_bytes: int = option(1 * GIB, "capacity of the DRAM tier")
    hbm_bytes: int = option(0, "capacity of the HBM tier; 0: none")
    nvme_paths: tuple[str, ...] = option(
        (), "directories of the NVMe tier, one per device, which must be there; none: no NVMe tier"
    )
    nvme_shared: bool = option(False, "these directories lie in a file system that other nodes mount, and read")
    shared_paths: tuple[str, ...] = option((), "directories, mounted here, in which other nodes' devices lie")
    nvme_bytes: int = option(64 * GIB, "capacity of each of these directories")
    nvme_slab_bytes: int = option(256 * MIB, "size of one slab file; no block may be larger", least=1)
    nvme_free_bytes_min: int = option(1 * GIB, "free space that each file system keeps")
    nvme_depth_max: int = option(8, "reads and writes under way per device", least=1)
    nvme_admit: str = option("all", "which blocks go to NVMe: all, or second-hit: those that were used again")
    nvme_day_bytes_max: int = option(0, "bytes written per device and day (wear); 0: no bound")
    nvme_clean_percent: int = option(25, "part of DRAM that should be free or also on NVMe", most=100)
    nvme_errors_max: int = option(8, "failed operations after which a device is taken out of service", least=1)
    nvme_sync: bool = option(True, "what is durable survives a power cut too, not only a crash of the process")
    nvme_scrub_bytes_per_s: int = option(
        16 * MIB, "pace at which blocks on NVMe are verified in the background; 0: not"
    )
    promote: bool = option(True, "a block that is read from NVMe stays in DRAM where there is room")
    dram_evict: str = option("lru", "eviction policy of the DRAM tier: lru, likely (learned)")
    nvme_evict: str = option("lru", "eviction policy of the NVMe tier: lru, likely")
    slab_bytes: int = option(64 * MIB, "unit in which a tier's memory is given to a size class", least=1)
    landing_bytes_max: int = option(256 * MIB, "staging memory of loads from other nodes", least=1)
    relay: bool = option(True, "read from storage over other nodes' storage NICs too, and lend them this node's own")
    relay_helpers_max: int = option(8, "other nodes that help with one load")
    relay_bytes_max: int = option(128 * MIB, "staging memory of what this node relays for others")
    readahead_bytes_max: int = option(64 * MIB, "memory of what is read from NVMe for other nodes and not yet sent")
    kept_bytes_max: int = option(1 * GIB, "memory of what this node relayed and keeps for a handoff to itself")
    kept_ms: int = option(30_000, "how long it is kept")
    parking_bytes_max: int = option(512 * MIB, "memory of handoffs whose receiver has not come")
    pinned_bytes_max: int = option(0, "bytes that readers may keep pinned past their hold; 0: half of the tier")
    operator_pinned_bytes_max: int = option(0, "bytes that operators may pin; 0: a quarter of the DRAM tier")
    piece_bytes: int = option(4 * MIB, "unit of a transfer; rounded to whole granules", least=1)
    lane_bytes_max: int = option(32 * MIB, "bytes in flight per lane", least=1)
    ttl_ms: int = option(30 * 60 * 1000, "how long a block lives; sliding")
    lease_ms: int = option(10_000, "how long an unfinished put may be silent", least=1)
    hold_ms_max: int = option(
        60_000, "longest hold of a reader; past it the slot may be revoked under pressure", least=1
    )
    tick_ms: int = option(100, "pace of expiry and lease checks", least=1)
    publish_ms: int = option(20, "longest delay before a stored block is told to the control plane")
    progress_ms: int = option(300, "a peer that moves no byte for this long is given up", least=1)
    connect_ms: int = option(1000, "time to reach another process", least=1)
    hugepages: bool = option(True, "ask for huge pages")
    address_file: str = option("", "write the addresses here once listening (JSON)")
    compute: FabricConfig = field(default_factory=FabricConfig, metadata={"help": "compute NIC: engine to engine"})
    storage: FabricConfig | None = field(default=None, metadata={"help": "storage NIC; none: the compute NIC is both"})


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A client in an engine's process."""

    deadline_ms: int = option(10_000, "default deadline of a call", least=1)
    connect_ms: int = option(2000, "time to reach the node or the control plane", least=1)
    match_ms: int = option(1000, "deadline of a match", least=1)
    verify: bool = option(True, "verify checksums of what is loaded, and make those of what is stored")
    copy_threads: int = option(
        0, "threads that copy between mapped slots and the engine's buffers; 0: half of the CPUs, 4 at most"
    )
    group_layers: int = option(0, "layers of one layer group of a load; 0: an eighth, at least 4 MiB of a block")


@dataclass(frozen=True, slots=True)
class DoorConfig:
    """Whom a process lets in, and what it shows at others' doors. Without a certificate the door is open: everybody who
    reaches the process may call it, which is why that is for loopback and unix sockets."""

    cert: str = option("", "PEM file of this process's certificate chain; empty: the door is open")
    key: str = option("", "PEM file of its private key")
    ca: str = option("", "PEM file of the certificates that vouch for others")
    tokens: str = option(
        "", "file of the tokens that are good, and of the keys' salt (kvstore tokens); empty: certificates alone decide"
    )
    token_file: str = option("", "file of the token that this process shows as a client; empty: none")
    connections_max: int = option(8192, "connections of each address; beyond it new ones are closed at once", least=1)
    calls_max: int = option(1024, "calls at once of one tenant, or with one admin's token, at each server", least=1)
    calls_per_s: int = option(
        0, "calls per second of one tenant, or with one admin's token, at each server; 0: no bound"
    )

    @property
    def shut(self) -> bool:
        """Whether only those come in who prove who they are."""
        return bool(self.cert)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a file can say."""

    control: ControlConfig = field(default_factory=ControlConfig)
    node: NodeConfig = field(default_factory=NodeConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    door: DoorConfig = field(default_factory=DoorConfig)
    namespaces: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a TOML file. Raises ConfigError with the place and a suggestion."""
        return overlay(cls(), read_tables(path))


def read_tables(path: str | Path) -> dict[str, Any]:
    """What a TOML file says, as it stands there. Raises ConfigError."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or brackets without end
        raise ConfigError(f"{path}: {error}") from error


T = TypeVar("T")


def overlay(config: T, values: Mapping[str, Any], place: str = "") -> T:
    """A copy of a config with `values` (nested mappings) laid over it.

    Raises ConfigError for an unknown name, with the nearest known one, for a value of another type, and for a number
    out of its bounds.
    """
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    known = {f.name: f for f in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        where = f"{place}.{name}" if place else name
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"unknown setting {where!r}" + (f": did you mean {near[0]!r}?" if near else ""))
        changes[name] = _accepted(getattr(config, name), value, where, known[name].metadata)
    return dataclasses.replace(config, **changes)


def _accepted(current: Any, value: Any, where: str, bounds: Mapping[str, Any]) -> Any:
    if isinstance(current, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(table, Mapping) for table in value.values()):
            raise ConfigError(f'{where}: tables are needed, one per pattern: [{where}."llama-*"]')
        return MappingProxyType({pattern: MappingProxyType(dict(table)) for pattern, table in value.items()})
    if dataclasses.is_dataclass(current) or current is None:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: a table is needed, not {value!r}")
        return overlay(current if current is not None else FabricConfig(), value, where)
    if isinstance(current, tuple):
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{where}: a list of strings is needed, not {value!r}")
        return tuple(value)
    if isinstance(value, bool) != isinstance(current, bool) or not isinstance(value, type(current)):
        raise ConfigError(f"{where}: {type(current).__name__} is needed, not {value!r}")
    if isinstance(value, int) and not isinstance(value, bool):
        _expect_between(bounds["least"], bounds["most"], value, where)
    return value


def _expect_between(least: int, most: int | None, value: int, where: str) -> None:
    if value < least:
        raise ConfigError(f"{where}: must be {least} or more: {value}")
    if most is not None and value > most:
        raise ConfigError(f"{where}: must be {most} or less: {value}")
