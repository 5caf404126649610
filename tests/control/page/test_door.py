"""The page behind a shut door: who shows a client's certificate sees it, nobody else does."""

import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from kvstore.config import ControlConfig, DoorConfig
from kvstore.control.app import ControlServer, serve
from kvstore.errors import ConfigError
from kvstore.rpc import renewed
from tests.certs import Certs

DEADLINE_S = 5.0


@pytest.fixture
def certs(tmp_path: Path) -> Certs:
    return Certs(tmp_path / "certs")


@pytest.fixture
async def served(config: ControlConfig, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ControlServer]:
    monkeypatch.setattr(renewed, "LOOK_S", 0.0)
    server = await serve(replace(config, page="127.0.0.1:0"), certs.door("control"))
    yield server
    await server.stop()


async def get(served: ControlServer, door: DoorConfig | None, ca: str) -> httpx2.Response:
    """One request on a connection of its own, by a caller who believes `ca` and shows what `door` says."""
    context = ssl.create_default_context(cafile=ca)
    if door is not None:
        context.load_cert_chain(door.cert, door.key)
    assert served.page is not None
    async with httpx2.AsyncClient(verify=context, trust_env=False, timeout=DEADLINE_S) as client:
        # The certificate names the role, not the host.
        return await client.get(f"{served.page.url}api/state", extensions={"sni_hostname": "control.kvstore"})


async def plain(url: str) -> httpx2.Response:
    async with httpx2.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client:
        return await client.get(url.replace("https", "http"))


def put_in_place(*files: tuple[str, str]) -> None:
    """Each becomes what the second one is."""
    for kept, new in files:
        Path(kept).write_bytes(Path(new).read_bytes())


async def test_a_client_sees_the_page(served: ControlServer, certs: Certs) -> None:
    """Over TLS, with what the control plane tells through its own shut door."""
    door = certs.door("client")
    assert served.page is not None
    assert served.page.url.startswith("https://")
    answer = await get(served, door, door.ca)
    assert (answer.status_code, answer.json()["nodes"]) == (200, [])


@pytest.mark.parametrize("who", ["nobody", "stranger", "node", "plain"])
async def test_nobody_else_does(served: ControlServer, certs: Certs, who: str) -> None:
    """No certificate, one of another authority, one of a process, no TLS: the connection ends without an answer."""
    shown = {"nobody": None, "stranger": certs.stranger("client"), "node": certs.door("node")}
    assert served.page is not None
    asked = plain(served.page.url) if who == "plain" else get(served, shown[who], certs.door("client").ca)
    with pytest.raises(httpx2.TransportError):
        await asked


async def test_certificates_are_renewed_without_a_restart(served: ControlServer, certs: Certs) -> None:
    """New connections show the new certificate, and believe the new authority alone."""
    own, strangers = certs.door("control"), certs.door("control", "strangers")
    put_in_place((own.cert, strangers.cert), (own.key, strangers.key), (own.ca, strangers.ca))
    assert (await get(served, certs.door("client", "strangers"), strangers.ca)).status_code == 200
    with pytest.raises(httpx2.TransportError):
        await get(served, certs.door("client"), strangers.ca)


async def test_files_that_do_not_fit_leave_the_door_as_it_was(served: ControlServer, certs: Certs) -> None:
    """Half of a renewal harms nobody."""
    put_in_place((certs.door("control").cert, certs.door("node").cert))
    door = certs.door("client")
    assert (await get(served, door, door.ca)).status_code == 200


async def test_certificates_that_are_none(config: ControlConfig, certs: Certs) -> None:
    """Are a configuration error, and the control plane does not start."""
    broken = replace(certs.door("control"), key=str(certs.folder / "nowhere"))
    with pytest.raises(ConfigError, match=r"door\.key"):
        await serve(replace(config, page="127.0.0.1:0"), broken)


async def test_a_shut_door_may_face_other_hosts(config: ControlConfig, certs: Certs) -> None:
    """Without `insecure`."""
    server = await serve(replace(config, page="0.0.0.0:0"), certs.door("control"))
    await server.stop()
