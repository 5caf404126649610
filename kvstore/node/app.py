"""A node as a whole: put together, started and stopped."""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvstore.blocks.state import Tier
from kvstore.config import DoorConfig, NodeConfig
from kvstore.errors import ConfigError
from kvstore.node import metrics
from kvstore.node.background import Background
from kvstore.node.catalog import Catalog, Record
from kvstore.node.census import Census
from kvstore.node.copyrequests import CopyRequests
from kvstore.node.custody import Custody
from kvstore.node.devices import close_devices, open_devices, space_of
from kvstore.node.disklane import DiskLane, disk_load
from kvstore.node.disks import Disks
from kvstore.node.drain import Drain
from kvstore.node.handoff import Handoffs
from kvstore.node.holds import Holds
from kvstore.node.intake import Intake
from kvstore.node.kept import Kept
from kvstore.node.landing import Landing
from kvstore.node.lanes import Meter
from kvstore.node.loads import Loads
from kvstore.node.neighbours import Neighbours
from kvstore.node.networks import Networks, lane_moved
from kvstore.node.noticing import notice
from kvstore.node.placement import Placement
from kvstore.node.publisher import Publisher
from kvstore.node.replicas import Replicas
from kvstore.node.resources import Resources
from kvstore.node.retention import Retention
from kvstore.node.service import NodeService
from kvstore.node.sessions import Session, Sessions
from kvstore.node.shared import SharedDevices
from kvstore.node.shedding import Shedding
from kvstore.node.storage.device import Device
from kvstore.node.tiers.base import TierMemory
from kvstore.node.tiers.dram import DramMemory
from kvstore.node.tiers.hbm import HbmMemory
from kvstore.node.tiers.nvme import NvmeTier
from kvstore.node.transfers import Transfers
from kvstore.observe.endpoint import Metrics
from kvstore.observe.events import Kind, Outbox, make_event
from kvstore.observe.families import Families
from kvstore.pb import node_pb2, node_pb2_grpc, types_pb2
from kvstore.policy.policies import admission, check_roles, eviction_of_tiers
from kvstore.policy.rulebook import RuleBook
from kvstore.policy.rules import NamespaceRules
from kvstore.policy.slots import SlotSpace, Space
from kvstore.rpc.address_file import write_address
from kvstore.rpc.bind import bind
from kvstore.rpc.channel import OPEN_DOOR, make_server
from kvstore.rpc.guard import guards
from kvstore.rpc.host import host_identity
from kvstore.rpc.tokens import salt_of
from kvstore.rpc.transfer_tickets import KnownKeys

log = logging.getLogger(__name__)
_STOP_GRACE_S = 0.5
_BIND_ATTEMPTS = 5  # of connect_ms each


async def serve(
    config: NodeConfig,
    memories: Mapping[Tier, TierMemory] | None = None,
    namespaces: Mapping[str, Mapping[str, Any]] | None = None,
    door: DoorConfig = OPEN_DOOR,
) -> "NodeServer":
    """Starts a node. Raises ConfigError for an address that cannot be bound, FabricUnavailable without a data plane.

    memories: of tiers other than DRAM, for tests and for hardware that is absent; HBM is made from the config else.
    namespaces: rules by pattern, see `kvstore.policy.rulebook`.
    """
    devices = await open_devices(config)
    try:
        server = NodeServer(config, dict(memories or {}), namespaces or {}, devices, door)
    except BaseException:
        await close_devices(device for _, device in devices)
        raise
    try:
        await server.start()
    except BaseException:
        await server.stop()
        raise
    return server


class NodeServer:
    """A running node. `address` is for other nodes (host:port), `socket` for engines on this host (unix:path).

    devices: of the NVMe tier, open where they could be; they are the server's once it is made."""

    def __init__(
        self,
        config: NodeConfig,
        memories: dict[Tier, TierMemory],
        namespaces: Mapping[str, Mapping[str, Any]],
        devices: Sequence[tuple[Path, Device | None]] = (),
        door: DoorConfig = OPEN_DOOR,
    ) -> None:
        check_roles(config)
        self._config = config
        self._door = door
        self._salt = salt_of(door)
        self._stopped = False
        self._scratch: Path | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self._publisher: Publisher | None = None
        self.replicas: Replicas | None = None
        self.census: Census | None = None
        self.drain: Drain | None = None
        self.address = ""
        self.socket = ""
        self.node_id = config.node_id or f"{socket.gethostname()}-{os.getpid()}"
        self.incarnation = secrets.randbits(63)
        self.metrics = Metrics("node", self.node_id, config.metrics_listen, insecure=config.insecure)
        self.background = Background()
        self.keys = KnownKeys()
        self.neighbours = Neighbours(door, self.keys)
        self.events = Outbox()

        rules = NamespaceRules.of_node(config)
        slab_ids = count(1)
        spaces: dict[Tier, Space] = {Tier.DRAM: SlotSpace(config.dram_bytes, config.slab_bytes, slab_ids)}
        dram = DramMemory(hugepages=config.hugepages, ahead_bytes=config.dram_bytes)
        memories[Tier.DRAM] = dram
        if config.hbm_bytes:
            spaces[Tier.HBM] = SlotSpace(config.hbm_bytes, config.slab_bytes, slab_ids)
            if Tier.HBM not in memories:
                memories[Tier.HBM] = HbmMemory.on_device()
        nvme = _tier(config, devices) if devices else None
        if nvme is not None:
            spaces[Tier.NVME] = space_of([device for _, device in devices], config.nvme_slab_bytes, slab_ids)
        self.catalog = Catalog(
            spaces,
            lease_ns=config.lease_ms * 1_000_000,
            hold_ns_max=config.hold_ms_max * 1_000_000,
            pinned_bytes_max=config.pinned_bytes_max or config.dram_bytes // 2,
            operator_pinned_bytes_max=config.operator_pinned_bytes_max or config.dram_bytes // 4,
            new_id=lambda: secrets.token_bytes(16),
            rules=rules,
            spill_from_hits=admission(config) if devices else 0,
            eviction=eviction_of_tiers(config),
        )
        self.retention = Retention(self.catalog, RuleBook(rules, namespaces))
        self.custody = Custody(self.catalog, memories, files=nvme)
        self.sessions = Sessions(
            dram, self.custody.slab_tenant, self._session_ended, bind_ns=_BIND_ATTEMPTS * config.connect_ms * 1_000_000
        )
        self.handoffs = Handoffs(self.custody, config.parking_bytes_max)
        self.holds = Holds(config, self.custody, self.neighbours, self.node_id)
        self.landing = Landing(self.custody, config.landing_bytes_max)
        self.disks = None if nvme is None else Disks(config, self.custody, self.retention, nvme, self.landing)
        self.kept = Kept(self.custody, config.kept_bytes_max, config.kept_ms * 1_000_000)
        self.placement = Placement(self.custody) if config.hbm_bytes else None
        self.shared = SharedDevices(config.shared_paths, config.nvme_depth_max) if config.shared_paths else None
        self.networks = Networks.open(config)  # last: it is what may fail, and owns threads

    async def start(self) -> None:
        config, door = self._config, self._door
        socket_path = self._socket_path()
        _expect_unserved(socket_path)
        if self.disks is not None:
            await self.disks.adopt()
        self._server = make_server([*self.metrics.interceptors, *guards(door, keys=self.keys)], door)
        self.address = bind(self._server, "node.listen", config.listen, insecure=config.insecure, door=door)
        self.socket = bind(self._server, "node.socket", f"unix:{socket_path}", insecure=False)
        slab_path = Path(f"{socket_path}.slabs")
        address = types_pb2.NodeAddress(
            node_id=self.node_id,
            incarnation=self.incarnation,
            grpc=self.address,
            host=host_identity(),
            storage_node="storage" in config.roles,
            relays=config.relay and (self.networks.has_storage or self.shared is not None),
            shared=config.nvme_shared or self.shared is not None,
        )
        if config.control:
            self._publisher = Publisher(
                config,
                address,
                self.catalog,
                self.retention,
                self.custody.clock,
                self._lane_loads,
                self.events,
                door,
                self.keys,
                self._salt,
            )
            holders = self._publisher.holders
            self.replicas = Replicas(self.custody, self.retention, self.neighbours, address, holders)
            shedding = Shedding(self.custody, self.neighbours, address)
            self.census = Census(self.custody, self.retention, self.node_id, holders, self.replicas.owing, shedding)
            requests = CopyRequests(self.custody, self.retention, self.neighbours, address)
            self.drain = Drain(self.custody, requests, address, holders, self._drain_switched, self._note)
        self._add_services(address, str(slab_path))
        notice(self.events, self.custody, self.loads, self.disks)
        self.sessions.listen(slab_path)
        await self._server.start()
        await self.metrics.start(self._show)
        os.chmod(socket_path, 0o600)
        if self._publisher is not None and self.replicas is not None and self.census is not None:
            self.custody.on_records = self._tell
            self._publisher.on_nodes_changed = self.replicas.nodes_changed
            self._loops += [asyncio.create_task(self.replicas.run()), asyncio.create_task(self.census.run())]
            if self.disks is not None:
                self.disks.on_adopted = self._publisher.compare
            self._publisher.start()
        if self.disks is not None:
            self.disks.start()
        self._loops.append(asyncio.create_task(self._sweep()))
        if self.placement is not None:
            self._loops.append(asyncio.create_task(self.placement.run()))
        said = {"address": self.address, "socket": self.socket, "node_id": self.node_id}
        write_address(config.address_file, json.dumps(said))
        log.info("node %s serves %s and %s", self.node_id, self.address, self.socket)

    def _add_services(self, address: types_pb2.NodeAddress, slab_socket: str) -> None:
        assert self._server is not None
        disks = self.disks
        resources = Resources(
            self._config,
            self.custody,
            self.landing,
            self.networks,
            self.neighbours,
            self.kept,
            address,
            shared=self.shared,
            loads_from_disk=None if disks is None else disks.loads,
            pushes_from_disk=None if disks is None else disks.pushes,
        )
        self.transfers = transfers = Transfers(resources, self.handoffs, self.background)
        self.loads = loads = Loads(resources, self.background)
        self.intake = Intake(resources, self.retention, lambda: self.drain is not None and self.drain.on)
        self.service = service = NodeService(
            self._config,
            self.custody,
            self.sessions,
            self.retention,
            self.handoffs,
            self.holds,
            loads,
            transfers,
            self.placement,
            disks,
            self.intake,
            self.replicas,
            self.census,
            self.drain,
            self._lane_loads,
            self._lanes_moved,
            address,
            slab_socket,
            self._salt,
        )
        node_pb2_grpc.add_NodeServicer_to_server(service, self._server)
        health_service = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, self._server)
        node_name = node_pb2.DESCRIPTOR.services_by_name["Node"].full_name
        self.background.spawn(health_service.set(node_name, health_pb2.HealthCheckResponse.SERVING))
        reflection.enable_server_reflection((node_name, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def stop(self) -> None:
        """Ends calls after a short grace, settles transfers, then gives memory back. May be called twice."""
        if self._stopped:
            return
        self._stopped = True
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        if self.drain is not None:
            await self.drain.close()
        if self._publisher is not None:
            await self._publisher.stop()
        await self.metrics.stop()
        if self._server is not None:
            await self._server.stop(_STOP_GRACE_S)
        await self.background.close()
        self.sessions.close()
        await self.neighbours.close()
        await self.networks.close()
        if self.shared is not None:
            await self.shared.close()
        if self.disks is not None:
            await self.disks.close()
        self.custody.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
        elif self.socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket.removeprefix("unix:"))

    def _socket_path(self) -> Path:
        if self._config.socket:
            return Path(self._config.socket.removeprefix("unix:"))
        self._scratch = Path(tempfile.mkdtemp(prefix="kvstore-"))
        return self._scratch / "node.sock"

    async def _show(self, families: Families) -> None:
        metrics.show(self.service.usage(), families)
        self.loads.resources.times.show(families)

    def _lane_loads(self) -> list[types_pb2.LaneLoad]:
        return [*self.networks.loads(), *(disk_load(lane) for lane in self._disk_lanes())]

    def _lanes_moved(self) -> list[node_pb2.LaneMoved]:
        now_ns = time.monotonic_ns()
        lanes: list[Meter | DiskLane] = [*self.networks.both_ways(), *self._disk_lanes()]
        return [lane_moved(lane.name, lane.recent, now_ns) for lane in lanes]

    def _disk_lanes(self) -> list[DiskLane]:
        disks = () if self.disks is None else [bank.lane for bank in self.disks.nvme.banks]
        shared = () if self.shared is None else [self.shared.lane]
        return [*disks, *shared]

    def _tell(self, records: list[Record]) -> None:
        assert self._publisher is not None
        assert self.replicas is not None
        self._publisher.add(records)
        if not self.intake.settling:
            self.replicas.saw(records)

    def _drain_switched(self, on: bool) -> None:
        assert self._publisher is not None
        self._publisher.draining = on

    def _note(self, kind: Kind, text: str) -> None:
        self.events.add(make_event(kind, text), self.custody.clock())

    def _session_ended(self, session: Session) -> None:
        self.catalog.release_holder(session.holder, self.custody.clock())
        self.custody.settle()
        self.handoffs.session_ended(session.holder)
        self.holds.session_ended(session.holder)

    async def _sweep(self) -> None:
        """The tick: expiry, leases, tickets. Works at its own pace; one failure does not end it."""
        while True:
            await asyncio.sleep(self._config.tick_ms / 1000)
            try:
                self.custody.tick()
                self.sessions.tick(self.custody.clock())
                self.handoffs.tick()
                self.kept.tick()
            except Exception:
                log.exception("tick failed")


def _tier(config: NodeConfig, devices: Sequence[tuple[Path, Device | None]]) -> NvmeTier:
    return NvmeTier(
        devices,
        depth=config.nvme_depth_max,
        errors_max=config.nvme_errors_max,
        sync=config.nvme_sync,
        clock=time.monotonic_ns,
    )


def _expect_unserved(path: Path) -> None:
    """Binding would take the path from a node that serves there, unseen by it; what a dead one left is nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(path))
        except BlockingIOError:
            pass  # somebody is there, and busy
        except OSError:
            return
    raise ConfigError(f"node: another process serves unix:{path}")
