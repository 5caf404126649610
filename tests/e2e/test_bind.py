"""What real servers open to other hosts: nothing, unless they are told to."""

import ipaddress
import subprocess
import sys

import psutil

from kvstore.cli.spawn import running


async def test_a_server_without_options_listens_on_loopback_alone() -> None:
    """Both gRPC servers and UCX, which would listen on every device of the host by itself."""
    async with running("serve", "--dram-bytes", "64MiB", "--compute-kind", "ucx") as server:
        sockets = psutil.Process(server.process.pid).net_connections("inet")
    hosts = [
        ipaddress.ip_address(listening.laddr.ip.removeprefix("::ffff:"))
        for listening in sockets
        if listening.status == psutil.CONN_LISTEN
    ]
    assert len(hosts) >= 3, hosts
    assert all(host.is_loopback for host in hosts), hosts


def test_an_exposed_address_is_one_line_and_exit_code_2() -> None:
    """The control plane says which setting it is, and what to do."""
    argv = [sys.executable, "-m", "kvstore", "control", "--listen", "0.0.0.0:0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "kvstore: control.listen 0.0.0.0:0: other hosts may reach" in done.stderr
    assert "--insecure" in done.stderr
