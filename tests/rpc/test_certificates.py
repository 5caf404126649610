"""Connections on which both sides prove who they are: who gets in, who does not, and files renewed meanwhile."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kvstore.cli.certs import make_ca, make_certificate
from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.rpc import renewed
from kvstore.rpc.bind import bind
from kvstore.rpc.certificates import Role, certificates
from kvstore.rpc.channel import OPEN_DOOR, make_server, open_channel
from kvstore.rpc.guarded import GuardedChannel
from kvstore.rpc.renewed import Renewed
from tests.certs import Certs
from tests.waiting import eventually

DEADLINE_S = 5.0


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path)


@asynccontextmanager
async def serving(
    door: DoorConfig, listen: str = "127.0.0.1:0", service: health.aio.HealthServicer | None = None
) -> AsyncIterator[str]:
    server = make_server()
    service = service or health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    await service.set("", health_pb2.HealthCheckResponse.SERVING)
    address = bind(server, "test.listen", listen, insecure=False, door=door)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def ask(channel: grpc.aio.Channel) -> int:
    stub = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)).status


async def gets_in(address: str, door: DoorConfig, serves: Role = Role.NODE) -> bool:
    async with open_channel(address, door=door, serves=serves) as channel:
        try:
            return await ask(channel) == health_pb2.HealthCheckResponse.SERVING
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False


async def test_certificates_of_the_cluster_get_in(certs: Certs) -> None:
    """Whatever their role: what each may ask is another question."""
    async with serving(certs.door("node")) as address:
        assert [await gets_in(address, certs.door(role)) for role in ("control", "node", "client")] == [True] * 3


async def test_others_do_not(certs: Certs) -> None:
    """Neither without a certificate, nor with another authority's, nor unencrypted."""
    async with serving(certs.door("node")) as address:
        assert not await gets_in(address, certs.stranger("node"))
        assert not await gets_in(address, OPEN_DOOR)
        options = [("grpc.ssl_target_name_override", "node.kvstore")]
        async with grpc.aio.secure_channel(
            address, grpc.ssl_channel_credentials(certificates(certs.door("node"))().ca), options=options
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel)


async def test_a_caller_knows_whom_it_calls(certs: Certs) -> None:
    """A node is not taken for the control plane, a client for neither, and a stranger's server for nothing."""
    async with serving(certs.door("node")) as address:
        assert not await gets_in(address, certs.door("client"), Role.CONTROL)
        assert not await gets_in(address, certs.door("client", "strangers"))
    async with serving(certs.door("client")) as address:
        assert not await gets_in(address, certs.door("node"), Role.NODE)


async def test_a_unix_socket_needs_none(certs: Certs, tmp_path: Path) -> None:
    """Its file's permissions say who may come in."""
    async with serving(certs.door("node"), f"unix:{tmp_path}/s") as address:
        assert await gets_in(address, OPEN_DOOR)
        assert await gets_in(address, certs.door("client"))


async def test_a_shut_door_may_face_the_network(certs: Certs) -> None:
    """Without --insecure."""
    async with serving(certs.door("node"), "0.0.0.0:0") as address:
        assert await gets_in(address.replace("0.0.0.0", "127.0.0.1"), certs.door("node"))


@pytest.mark.parametrize("order", [("cluster", "strangers"), ("strangers", "cluster")])
async def test_two_authorities_are_believed(certs: Certs, order: tuple[str, str], tmp_path: Path) -> None:
    """Where ca.pem has both, whichever comes first: so one takes the other's place without a gap."""
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join((tmp_path / authority / "ca.pem").read_bytes() for authority in order))
    for own in order:
        async with serving(replace(certs.door("node", own), ca=str(both))) as address:
            for other in order:
                assert await gets_in(address, replace(certs.door("client", other), ca=str(both)))


async def test_renewed_files_are_taken_into_use(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the server and by an open channel: after the authority was replaced, only its new certificates get in, and
    the channel that was open before goes on with the new ones."""
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    door = certs.door("node")
    own = certs.folder / "cluster"
    before = certs.door("client")
    async with serving(door) as address, open_channel(address, door=door) as channel:
        assert await ask(channel) == health_pb2.HealthCheckResponse.SERVING
        copies = [own / f"old-{name}" for name in ("client.pem", "client.key", "ca.pem")]
        for copy in copies:
            copy.write_bytes((own / copy.name.removeprefix("old-")).read_bytes())
        old = DoorConfig(*map(str, copies))
        renew(own)
        assert not await gets_in(address, replace(old, ca=door.ca))
        assert await gets_in(address, before)
        assert await ask(channel) == health_pb2.HealthCheckResponse.SERVING


def renew(own: Path) -> None:
    """Another authority, and certificates of its."""
    for name in ("ca.key", "ca.pem"):
        (own / name).unlink()
    make_ca(own)
    for role in ("node", "client"):
        make_certificate(own, role, [role])


async def test_a_connection_of_renewed_files_ends_after_its_last_call(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream goes on with the certificate with which it began; when it has ended nobody shows that one again."""
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    door, service = certs.door("node"), health.aio.HealthServicer()
    async with serving(door, service=service) as address, open_channel(address, door=door) as channel:
        assert isinstance(channel, GuardedChannel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        seen = aiter(watch)
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.SERVING
        old = channel._channel
        renew(certs.folder / "cluster")
        await ask(channel)
        assert len(channel.retired) == 1
        await service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert (await anext(seen)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await eventually(lambda: not channel.retired)
        assert old.get_state() is grpc.ChannelConnectivity.SHUTDOWN


async def test_a_channel_closes_those_of_renewed_files(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the calls that are still under way there."""
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    door = certs.door("node")
    async with serving(door) as address:
        channel = open_channel(address, door=door)
        assert isinstance(channel, GuardedChannel)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        await anext(aiter(watch))
        renew(certs.folder / "cluster")
        await ask(channel)
        await channel.close()
        assert await watch.code() is grpc.StatusCode.CANCELLED
        assert not channel.retired


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda door: replace(door, key=""), "door.key: cert, key and ca are needed together"),
        (lambda door: replace(door, key="/nowhere"), "door.key /nowhere: No such file"),
        (lambda door: replace(door, key=door.key.replace("node.key", "client.key")), "do not belong together"),
        (lambda door: replace(door, cert=door.key), "do not belong together"),
        (lambda door: replace(door, ca=door.key), "door.ca"),
    ],
)
async def test_files_that_are_none_are_refused(
    certs: Certs, breaking: Callable[[DoorConfig], DoorConfig], said: str
) -> None:
    """At the start, with the setting's name; by channels too."""
    door = breaking(certs.door("node"))
    with pytest.raises(ConfigError, match=said):
        bind(make_server(), "test.listen", "127.0.0.1:0", insecure=False, door=door)
    with pytest.raises(ConfigError, match=said):
        open_channel("127.0.0.1:1", door=door)


def test_a_bad_renewal_changes_nothing(certs: Certs, caplog: pytest.LogCaptureFixture) -> None:
    """The last good files hold, the log says why, and the next good ones count again."""
    now_s = 0.0
    door = certs.door("node")
    files: Renewed[bytes] = Renewed([door.cert], lambda: _not_empty(Path(door.cert)), lambda: now_s)
    good = files()
    Path(door.cert).write_bytes(b"")
    assert files() == good
    now_s = 2.0
    assert files() == good
    assert "still holds" in caplog.text
    Path(door.cert).write_bytes(b"new")
    assert files() == good, "looked at again too soon"
    now_s = 4.0
    assert files() == b"new"
    assert files.renewals == 1


def _not_empty(path: Path) -> bytes:
    text = path.read_bytes()
    if not text:
        raise ConfigError(f"{path} is empty")
    return text


def test_keys_are_their_owners_alone(certs: Certs) -> None:
    """0600, and the directory 0700, also where the umask would let others in."""
    umask = os.umask(0)
    try:
        make_ca(certs.folder / "open")
        make_certificate(certs.folder / "open", "n", ["node", "control"])
    finally:
        os.umask(umask)
    made = certs.folder / "open"
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in made.iterdir()} == {0o600}
