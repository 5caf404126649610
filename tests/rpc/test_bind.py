"""Where servers listen: on this host freely, elsewhere only when the operator accepts it."""

import logging
from pathlib import Path

import pytest

from kvstore.errors import ConfigError
from kvstore.rpc.bind import bind, is_local
from kvstore.rpc.channel import make_server

EXPOSED = ["0.0.0.0:0", "[::]:0", ":0", "*:0", "10.0.0.1:7400", "[::ffff:10.0.0.1]:0", "node-7:0", "ipv4:0.0.0.0:0",
           "127.0.0.1:0,0.0.0.0:0", "vsock:2:7400", "dns:///localhost:0", "127.0.0.1.example.org:0"]  # fmt: skip
LOCAL = ["127.0.0.1:0", "127.9.9.9:7400", "localhost:7400", "[::1]:0", "unix:/run/kvstore.sock"]


@pytest.mark.parametrize("listen", EXPOSED)
async def test_what_other_hosts_may_reach_is_refused(listen: str) -> None:
    """Unless it is accepted; the error names the setting, the address and both ways out."""
    with pytest.raises(ConfigError, match=r"node\.listen.*neither encrypted.*127\.0\.0\.1.*--insecure"):
        bind(make_server(), "node.listen", listen, insecure=False)


@pytest.mark.parametrize("listen", ["", "127.0.0.1", "localhost:http", "127.0.0.1:65536", "[::1]", "[::1]:-1"])
async def test_what_is_no_address_is_refused_as_such(listen: str) -> None:
    """A port of more than 16 bits too, of which gRPC would take the last 16."""
    with pytest.raises(
        ConfigError, match=r"node\.listen.*: HOST:PORT or unix:PATH is needed, with a port up to 65535$"
    ):
        bind(make_server(), "node.listen", listen, insecure=True)


@pytest.mark.parametrize("listen", LOCAL)
def test_what_only_this_host_reaches(listen: str) -> None:
    """Loopback in both families, its one name, and unix sockets."""
    assert is_local(listen)


async def test_every_exposed_start_warns(caplog: pytest.LogCaptureFixture) -> None:
    """Also the second one; a local start never does, accepted or not."""
    for _ in range(2):
        caplog.clear()
        server = make_server()
        with caplog.at_level(logging.WARNING, "kvstore.rpc.bind"):
            address = bind(server, "control.listen", "0.0.0.0:0", insecure=True)
        await server.stop(None)
        assert int(address.removeprefix("0.0.0.0:")) > 0
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "control.listen 0.0.0.0:0 is insecure" in caplog.text
    caplog.clear()
    server = make_server()
    bind(server, "control.listen", "127.0.0.1:0", insecure=True)
    await server.stop(None)
    assert caplog.records == []


async def test_the_address_that_was_bound(tmp_path: Path) -> None:
    """Comes back with its real port; a unix path as it was."""
    server = make_server()
    host, _, port = bind(server, "node.listen", "127.0.0.1:0", insecure=False).rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.1", True)
    path = f"unix:{tmp_path}/s"
    assert bind(server, "node.socket", path, insecure=False) == path
    await server.stop(None)
