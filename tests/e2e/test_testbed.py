"""Hosts on one machine: made, shaped, broken and removed, in the kernel."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvbench import testbed
from kvbench.topology import COMPUTE, STORAGE, Host, Rates, cluster, namespace
from kvstore.errors import InvalidInput

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(bool(testbed.why_not()), reason=testbed.why_not()),
]

SCRIPT = Path(__file__).parents[2] / "scripts/testbed"
SNIC_MBIT = 80
SENT_BYTES = 8_000_000

RECEIVE = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 7000))
print("listening", flush=True)
stream = server.accept()[0]
began, count = time.perf_counter(), 0
while part := stream.recv(2**20):
    count += len(part)
print(count, time.perf_counter() - began)
"""
SEND = """
import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as stream:
    stream.sendall(bytes(int(sys.argv[2])))
"""


@pytest.fixture
async def bed() -> AsyncIterator[testbed.Testbed]:
    async with testbed.testbed(cluster(1, 1, Rates(SNIC_MBIT))) as made:
        yield made


async def moved(bed: testbed.Testbed, sender: Host, receiver: Host, network: str) -> tuple[int, float]:
    """Bytes and seconds of one TCP stream."""
    address, pipe = receiver.nic(network).address, asyncio.subprocess.PIPE
    there = await asyncio.create_subprocess_exec(
        *bed.prefix(receiver), sys.executable, "-c", RECEIVE, address, stdout=pipe
    )
    assert there.stdout is not None
    await there.stdout.readline()
    send = (sys.executable, "-c", SEND, address, str(SENT_BYTES))
    here = await asyncio.create_subprocess_exec(*bed.prefix(sender), *send)
    said, _ = await there.communicate()
    assert await here.wait() == 0
    count, seconds = said.split()
    return int(count), float(seconds)


async def test_a_storage_nic_keeps_its_rate_and_a_compute_nic_has_none(bed: testbed.Testbed) -> None:
    """In both directions; and the bytes pass over the NIC that the address names, and over no other."""
    storage, prefill, decode = (bed.topology.host(name) for name in ("storage", "prefill-1", "decode-1"))
    for sender, receiver in ((storage, prefill), (prefill, storage)):
        before = await bed.counters()
        count, seconds = await moved(bed, sender, receiver, STORAGE)
        after = await bed.counters()
        assert count == SENT_BYTES
        # The queue's 50 ms and one burst are passed on at once.
        assert seconds > 0.85 * SENT_BYTES * 8 / (SNIC_MBIT * 1e6)
        passed = {nic: after[nic].since(before[nic]) for nic in after}
        assert passed["prefill-1", STORAGE].received_bytes + passed["prefill-1", STORAGE].sent_bytes > SENT_BYTES
        assert passed["prefill-1", COMPUTE].received_bytes < SENT_BYTES / 100
        assert passed["decode-1", STORAGE].received_bytes < SENT_BYTES / 100
    _, seconds = await moved(bed, prefill, decode, COMPUTE)
    assert seconds < 0.4 * SENT_BYTES * 8 / (SNIC_MBIT * 1e6)


async def test_a_rate_is_changed_while_bytes_move(bed: testbed.Testbed) -> None:
    """Both ends of the NIC get the new one."""
    prefill = bed.topology.host("prefill-1")
    await bed.shape(prefill, STORAGE, 4)
    found = {(device.host, device.name): device.mbit for device in await testbed.devices(bed.name)}
    assert found["prefill-1", "snic0"] == 4
    assert found["decode-1", "snic0"] == SNIC_MBIT
    moving = asyncio.create_task(moved(bed, bed.topology.host("storage"), prefill, STORAGE))
    await bed.shape(prefill, STORAGE, 400)
    _, seconds = await moving
    assert seconds < SENT_BYTES * 8 / 4e6 / 2


async def test_a_link_that_is_down_comes_back(bed: testbed.Testbed) -> None:
    """The host has no carrier meanwhile; afterwards bytes pass again."""
    prefill, decode = bed.topology.host("prefill-1"), bed.topology.host("decode-1")
    await bed.link_down(prefill, COMPUTE)
    down = {(device.host, device.name) for device in await testbed.devices(bed.name) if not device.up}
    assert down == {("prefill-1", "cnic0")}
    await bed.link_up(prefill, COMPUTE)
    assert (await moved(bed, decode, prefill, COMPUTE))[0] == SENT_BYTES


async def test_what_is_there_already_is_not_made_again(bed: testbed.Testbed) -> None:
    """And the refusal leaves the one that is there."""
    with pytest.raises(InvalidInput, match="exists"):
        await testbed.up(bed.name, bed.topology)
    assert bed.name in testbed.names()


async def test_half_of_a_testbed_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails leaves nothing behind."""
    real = testbed._run

    async def fail(*words: str, said: str = "") -> str:
        if words[0] == "tc":
            raise OSError("no traffic control")
        return await real(*words, said=said)

    monkeypatch.setattr(testbed, "_run", fail)
    name = f"half{os.getpid()}"
    with pytest.raises(OSError, match="no traffic control"):
        await testbed.up(name, cluster(1, 1, Rates(1)))
    assert name not in testbed.names()


def test_down_after_a_crash_removes_hosts_nics_and_processes() -> None:
    """The process that made the testbed was killed, and what it had started on a host still runs."""
    crashing = (
        "import asyncio, os, signal, subprocess\n"
        "from kvbench import testbed\n"
        "from kvbench.topology import Rates, cluster\n"
        "async def main():\n"
        "    async with testbed.testbed(cluster(1, 1, Rates(1))) as bed:\n"
        "        words = [*bed.prefix(bed.topology.host('storage')), 'sleep', '600']\n"
        "        sleeping = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "        print(bed.name, sleeping.pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())"
    )
    crashed = subprocess.run([sys.executable, "-c", crashing], capture_output=True, text=True, check=False)
    assert crashed.returncode == -signal.SIGKILL
    name, process_id = crashed.stdout.split()
    assert name in testbed.names()
    subprocess.run([SCRIPT, "down", name], check=True, timeout=60)
    assert name not in testbed.names()
    deadline = time.monotonic() + 5
    while _runs(int(process_id)):
        assert time.monotonic() < deadline


def test_script() -> None:
    """up, run and down as a person calls them; what is asked wrongly gets one line and exit code 2."""
    name = f"cli{os.getpid()}"
    shown = _script("up", "--name", name, "--snic-mbit", "10", "--uneven", "1:3")
    try:
        assert shown.returncode == 0, shown.stderr
        assert "30 Mbit/s" in shown.stdout
        ran = _script("run", "--name", name, "decode-1", "ip", "-j", "address", "show", "snic0")
        (link,) = json.loads(ran.stdout)
        assert "10.77.1.4" in {info["local"] for info in link["addr_info"]}
        refused = _script("run", "--name", name, "decode-9", "true")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "decode-1" in refused.stderr
        assert name in _script("status").stdout
    finally:
        assert _script("down", name).returncode == 0
    assert not Path("/run/netns", namespace(name, "storage")).exists()
    assert _script("status", "--name", name).returncode == 2


def _script(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60, check=False)


def _runs(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
