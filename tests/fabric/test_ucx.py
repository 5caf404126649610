"""The UCX fabric: the contract over TCP, and what is UCX's own."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.config import FabricConfig
from kvstore.errors import ConfigError, FabricUnavailable, PeerLost
from kvstore.fabric import make_fabric
from kvstore.fabric.ucx import UcxFabric
from kvstore.fabric.ucx_context import context_settings, library
from tests.contracts.fabric import MIB, FabricContract, StartFarSide, ended, exchange
from tests.fabric.conftest import StartFarProcess
from tests.fabric.counts import threads, wakeups
from tests.fabric.dying import end_within_messages
from tests.waiting import eventually

pytestmark = [
    pytest.mark.ucx,
    pytest.mark.skipif(find_spec("ucxx") is None, reason="UCXX is in the extras cpu, cu12 and cu13"),
]

TCP = FabricConfig(kind="ucx", device="lo")


class TestUcxContract(FabricContract):
    transport = "tcp"
    foreign_address = b"kvloop" + bytes(16)

    def made(self) -> UcxFabric:
        return UcxFabric(TCP)

    @pytest.fixture
    def start_far_side(self, start_far_process: StartFarProcess) -> StartFarSide:
        return partial(start_far_process, "ucx")


class EndedEndpoint:
    """An endpoint that UCX has ended before anybody could ask to be told."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def __getattr__(self, name: str) -> Any:
        return getattr(self._endpoint, name)

    def set_close_callback(self, *args: Any) -> None:
        raise RuntimeError("Endpoint is closing or has already closed.")


class Worker:
    """A worker whose endpoints have all ended."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._worker, name)

    def create_endpoint_from_worker_address(self, *args: Any) -> EndedEndpoint:
        return EndedEndpoint(self._worker.create_endpoint_from_worker_address(*args))


async def test_an_endpoint_that_ends_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is a peer that is lost, and the next connection is another."""
    one, other = UcxFabric(TCP), UcxFabric(TCP)
    with monkeypatch.context() as patch:
        patch.setattr(one, "_worker", Worker(one._worker))
        peer = one.connect(other.address)
    assert not peer.alive
    (error,) = await ended(peer.receive(1, np.zeros(8, np.uint8)))
    assert isinstance(error, PeerLost)
    await peer.close()
    assert one.connect(other.address).alive
    await one.close()
    await other.close()


async def test_close_with_unclaimed_messages(start_far_process: StartFarProcess) -> None:
    """Messages that nobody wanted, of a sender that is stopped, do not hold up the close."""
    far = await start_far_process("ucx")
    fabric = UcxFabric(TCP)
    await far.connect(fabric.address)
    for tag in (1, 2, 3):
        await far.send(tag, 4 * MIB)
    api = library().api
    await eventually(lambda: fabric._worker.tag_probe(api.UCXXTag(3)))
    far.stop()
    begun = time.monotonic()
    await asyncio.wait_for(fabric.close(), 5)
    assert time.monotonic() - begun < 2


@pytest.fixture
async def fabric() -> AsyncIterator[UcxFabric]:
    fabric = UcxFabric(TCP)
    yield fabric
    await fabric.close()


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_sender_that_ends_within_a_message(fabric: UcxFabric, death: signal.Signals) -> None:
    """Leaves no receive behind, also not of a message of two segments and a bit, which UCX would send in fragments
    rather than by rendezvous."""
    await end_within_messages(fabric, "ucx", 2 * TCP.segment_bytes + 8192, death)


async def test_idle_fabric_sleeps() -> None:
    """An idle fabric has no wake-up at all; with a connection there is its keep-alive."""
    others = threads()  # what earlier tests left running
    one, other = UcxFabric(TCP), UcxFabric(TCP)
    own = threads() - others | {threading.get_native_id()}
    before = wakeups(own)
    await asyncio.sleep(0.5)
    unconnected = wakeups(own) - before
    await exchange(one, other)
    before = wakeups(own)
    await asyncio.sleep(1.5)
    connected = wakeups(own) - before
    await one.close()
    await other.close()
    assert unconnected <= 3
    assert connected <= 20


async def test_shared_memory_where_errors_are_not_watched() -> None:
    """Without error handling UCX may choose shared memory, and `transport` says so."""
    config = FabricConfig(kind="ucx", transports="auto", error_handling=False)
    one, other = UcxFabric(config), UcxFabric(config)
    await exchange(one, other, 4 * MIB)
    assert {*one.transport.split("+")} & {"posix", "sysv", "cma", "xpmem"}
    await one.close()
    await other.close()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (FabricConfig(device="nosuch0"), r"no device nosuch0.*there are.*lo"),
        (FabricConfig(device="lo,nosuch0"), "no device nosuch0"),
        (FabricConfig(transports="rc"), "none of the transports rc"),
    ],
)
def test_what_is_not_there_is_named(config: FabricConfig, text: str) -> None:
    """A device or transport that this machine does not have is a typed error that names it."""
    with pytest.raises(FabricUnavailable, match=text):
        UcxFabric(config)


@pytest.mark.skipif(Path("/sys/class/infiniband").exists(), reason="there is a device that takes it")
@pytest.mark.parametrize("levels", [{"service_level": "3"}, {"traffic_class": "106"}])
def test_a_level_without_a_device_for_it(levels: dict[str, str]) -> None:
    """Is refused, not ignored: who sets one relies on it."""
    with pytest.raises(FabricUnavailable, match=r"UCX refuses its settings.*'IB_(SL|TRAFFIC_CLASS)': '(3|106)'"):
        UcxFabric(FabricConfig(device="lo", **levels))  # type: ignore[arg-type]


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told as what it is: where all is read-only UCX says no more than that tmpfile() failed."""

    def context(*_: object) -> None:
        raise OSError("tmpfile() failed: iostream error")

    monkeypatch.setattr(library().api, "UCXContext", context)
    with pytest.raises(FabricUnavailable, match="/tmp"):
        UcxFabric(FabricConfig())


def test_settings() -> None:
    """TCP gets one rail and large segments; another transport keeps UCX's rails; CUDA adds its transports."""
    tcp = context_settings(TCP)
    assert (tcp["TLS"], tcp["NET_DEVICES"], tcp["MAX_RNDV_RAILS"]) == ("tcp,self", "lo", "1")
    assert tcp["TCP_TX_SEG_SIZE"] == tcp["TCP_RX_SEG_SIZE"] == str(TCP.segment_bytes)
    assert tcp["PROTOS"] == "^egr/multi/*", "a receive of which a part is missing outlives its endpoint"
    assert tcp["TCP_CONN_NB"] == "y", "a host that does not answer holds the progress thread"
    rdma = context_settings(FabricConfig(transports="rc,tcp", cuda=True))
    assert rdma["PROTOS"] == tcp["PROTOS"]
    assert rdma["TLS"] == "rc,tcp,self,cuda_copy,cuda_ipc"
    assert "MAX_RNDV_RAILS" not in rdma
    assert "RNDV_FRAG_MEM_TYPES" not in rdma
    assert context_settings(FabricConfig(transports="rc", rails_max=4))["MAX_RNDV_RAILS"] == "4"
    assert "TLS" not in context_settings(FabricConfig(transports="auto"))
    assert not {"IB_SL", "IB_TRAFFIC_CLASS"} & tcp.keys()
    levels = context_settings(FabricConfig(service_level="0", traffic_class="106"))
    assert (levels["IB_SL"], levels["IB_TRAFFIC_CLASS"]) == ("0", "106")


@pytest.mark.parametrize("value", ["16", "-1", "high", "", "1.0", "9" * 5000])
def test_a_level_that_is_none(value: str) -> None:
    """Is a configuration error that names the setting and its bounds, before UCX sees it."""
    with pytest.raises(ConfigError, match="service_level must be auto or a number from 0 to 15"):
        make_fabric(FabricConfig(kind="ucx", service_level=value))
    with pytest.raises(ConfigError, match="traffic_class must be auto or a number from 0 to 255"):
        make_fabric(FabricConfig(kind="ucx", traffic_class="256" if value == "16" else value))


PROGRAM = """
import asyncio, os, sys
from kvstore.config import FabricConfig
from kvstore.fabric.ucx import UcxFabric
before = dict(os.environ)
async def main():
    fabric = UcxFabric(FabricConfig(device="lo"))
    fabric.connect(fabric.address)
    await fabric.close()
asyncio.run(main())
sys.exit(before != dict(os.environ))
"""


def test_environment_stays_as_it_was() -> None:
    """Importing UCXX sets no variable for good, and nothing is printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UCX")}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, env=clean)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
