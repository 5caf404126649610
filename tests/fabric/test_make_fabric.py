"""Which fabric a configuration gives, and what is said when there is none."""

import importlib.util
import sys

import pytest

from kvstore.config import FabricConfig
from kvstore.errors import ConfigError, FabricUnavailable
from kvstore.fabric import make_fabric
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.fabric.tcp import TcpFabric
from kvstore.fabric.ucx_context import library


def test_loopback() -> None:
    """The kind is obeyed."""
    assert isinstance(make_fabric(FabricConfig(kind="loopback")), LoopbackFabric)


def test_unknown_kind() -> None:
    """An unknown kind is a configuration error that names the known ones."""
    with pytest.raises(ConfigError, match=r"^node\.compute\.kind must be ucx, tcp, loopback or auto, not 'rdma'"):
        make_fabric(FabricConfig(kind="rdma"), "node.compute")


async def test_plain_sockets() -> None:
    """The kind is obeyed, also where UCX is installed."""
    fabric = make_fabric(FabricConfig(kind="tcp", device="lo"))
    assert isinstance(fabric, TcpFabric)
    await fabric.close()


async def test_without_ucxx(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for without its extra, UCX is unavailable and the text names what to do; "auto" falls back and says so."""
    library.cache_clear()
    monkeypatch.setitem(sys.modules, "ucxx", None)
    monkeypatch.setitem(sys.modules, "ucxx._lib.libucxx", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FabricUnavailable, match=r"^node\.compute: .*kvstore\[cpu\]"):
        make_fabric(FabricConfig(kind="ucx"), "node.compute")
    instead = make_fabric(FabricConfig(device="lo"))
    assert isinstance(instead, TcpFabric)
    await instead.close()
    assert "not installed" in caplog.text
    library.cache_clear()
