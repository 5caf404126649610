"""The control plane as a whole: index, directory, gRPC server and tick, started and stopped together."""

import asyncio
import logging

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvstore.config import ControlConfig, DoorConfig
from kvstore.control.admin import AdminService
from kvstore.control.clock import Clock
from kvstore.control.directory import Directory
from kvstore.control.events import Events
from kvstore.control.index.base import Index
from kvstore.control.index.lmdb import LmdbIndex
from kvstore.control.keyring import KeyRing
from kvstore.control.metrics import show
from kvstore.control.page.server import PageServer
from kvstore.control.page.source import Source
from kvstore.control.presence import Presence
from kvstore.control.repair import Membership
from kvstore.control.service import ControlService
from kvstore.control.sweeper import Sweeper
from kvstore.errors import KVStoreError
from kvstore.observe.endpoint import Metrics
from kvstore.observe.events import Kind
from kvstore.observe.families import Families
from kvstore.pb import admin_pb2, admin_pb2_grpc, control_pb2, control_pb2_grpc
from kvstore.rpc.address_file import write_address
from kvstore.rpc.bind import bind
from kvstore.rpc.channel import OPEN_DOOR, make_server
from kvstore.rpc.guard import guards
from kvstore.rpc.tokens import new_secret, salt_of

_GRACE_S = 1.0
_SERVICES = (
    control_pb2.DESCRIPTOR.services_by_name["Control"].full_name,
    admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name,
)
log = logging.getLogger(__name__)


async def serve(config: ControlConfig, door: DoorConfig = OPEN_DOOR) -> "ControlServer":
    """Starts a control plane on the running event loop and returns once it answers.

    Raises ConfigError when it cannot listen there, or the index cannot be used, or the address file not be written.
    """
    index = LmdbIndex(config.index_path, config.index_bytes_max)
    try:
        server = await ControlServer.start(config, index, door)
    except BaseException:
        await index.close()
        raise
    try:
        write_address(config.address_file, server.address)
    except BaseException:
        await server.stop()
        raise
    return server


class ControlServer:
    """A running control plane. `address`: host:port or unix:path, with the port as chosen. `page`: None without one."""

    def __init__(
        self,
        address: str,
        server: grpc.aio.Server,
        health_: health.aio.HealthServicer,
        admin: AdminService,
        index: Index,
        tick: "Tick",
        page: PageServer | None,
        metrics: Metrics,
        events: Events,
    ) -> None:
        self.address = address
        self.page = page
        self.metrics = metrics
        self._events = events
        self._server = server
        self._health = health_
        self._admin = admin
        self._index = index
        self._tick = asyncio.create_task(tick.run(), name="control tick")

    @classmethod
    async def start(cls, config: ControlConfig, index: Index, door: DoorConfig = OPEN_DOOR) -> "ControlServer":
        """Serves `index`, which the server closes when it stops."""
        clock = Clock()
        directory = Directory(config.node_lost_ms, await index.nodes(), clock())
        metrics = Metrics("control", "", config.metrics_listen, insecure=config.insecure)
        inside, salt = new_secret() if door.shut else "", salt_of(door)
        server = make_server([*metrics.interceptors, *guards(door, inside)], door)
        membership, events = Membership(), Events(clock)
        keys = KeyRing() if door.shut else None
        control = ControlService(config, index, directory, membership, events, clock, keys, salt)
        control_pb2_grpc.add_ControlServicer_to_server(control, server)
        admin = AdminService(index, directory, control.counters, events, clock, door, salt)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, server)
        health_ = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_, server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = bind(server, "control.listen", config.listen, insecure=config.insecure, door=door)
        await server.start()

        async def numbers(families: Families) -> None:
            await show(index, directory, control.counters, clock(), families)

        try:
            await metrics.start(numbers)
            page = await _page(config, address, clock, door, inside)
        except BaseException:
            await metrics.stop()
            await server.stop(None)
            raise
        for service in ("", *_SERVICES):
            await health_.set(service, health_pb2.HealthCheckResponse.SERVING)
        log.info("control plane on %s", address)
        tick = Tick(config, directory, Sweeper(index, directory), membership, events, clock)
        return cls(address, server, health_, admin, index, tick, page, metrics, events)

    async def stop(self) -> None:
        """Ends: health says so, calls in progress get a second, the index is closed. Idempotent."""
        self._tick.cancel()
        await asyncio.gather(self._tick, return_exceptions=True)
        if self.page is not None:
            await self.page.stop()
        await self.metrics.stop()
        self._events.close()
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_GRACE_S)
        await self._admin.close()
        await self._index.close()

    def __repr__(self) -> str:
        return f"ControlServer({self.address})"


async def _page(config: ControlConfig, address: str, clock: Clock, door: DoorConfig, inside: str) -> PageServer | None:
    if not config.page:
        return None
    source = Source(address, door, inside)
    return await PageServer.start(
        config.page, source, insecure=config.insecure, interval_ms=config.page_ms, clock=clock, door=door
    )


class Tick:
    """What happens by itself, once per heartbeat interval: nodes that come or go are noticed, silent ones forgotten,
    the sweep makes a step."""

    def __init__(
        self,
        config: ControlConfig,
        directory: Directory,
        sweeper: Sweeper,
        membership: Membership,
        events: Events,
        clock: Clock,
    ) -> None:
        self._interval_s = max(config.heartbeat_ms, 1) / 1000
        self._directory = directory
        self._sweeper = sweeper
        self._membership = membership
        self._presence = Presence()
        self._events = events
        self._clock = clock

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.once()
            except KVStoreError as error:  # a full index or disk; the next step may succeed
                log.warning("control tick: %s", error)

    async def once(self) -> None:
        now_ms = self._clock()
        for name in self._directory.expire(now_ms):
            log.warning("node %s has been silent for too long and is forgotten", name)
            self._events.note(Kind.NODE_FORGOTTEN, "silent for too long: forgotten", node_id=name)
        self._look(now_ms)
        self._membership.look([state.ref for state in self._directory.able(now_ms)])
        await self._sweeper.step(now_ms)

    def _look(self, now_ms: int) -> None:
        nodes = [(state, self._directory.alive(state, now_ms)) for state in self._directory.nodes()]
        changes = self._presence.look(nodes)
        for state in changes.lost:
            text = f"silent for {(now_ms - state.heard_ms) / 1000:.1f} s: matches do not name it"
            self._events.note(Kind.NODE_LOST, text, node_id=state.address.node_id)
        for state in changes.back:
            self._events.note(Kind.NODE_BACK, "heard of again", node_id=state.address.node_id)
