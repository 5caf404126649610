"""Bytes between processes: UCX, plain sockets, and a loopback inside one process. See `kvstore.fabric.base`."""

import importlib.util
import logging

from kvstore.config import FabricConfig
from kvstore.errors import ConfigError, FabricUnavailable
from kvstore.fabric.base import Fabric
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.fabric.tcp import TcpFabric
from kvstore.fabric.ucx import UcxFabric

_KINDS = ("ucx", "tcp", "loopback", "auto")
_LEVELS = {"service_level": 15, "traffic_class": 255}
logger = logging.getLogger(__name__)


def make_fabric(config: FabricConfig, setting: str = "fabric") -> Fabric:
    """This process's end of the network that the config names. setting: where the config stands, for errors.

    Belongs to the event loop that runs. Raises FabricUnavailable when UCX was asked for and an extra, a device or a
    transport is missing; the text says which. Raises ConfigError for a value that is none. "auto" falls back to plain
    sockets where UCX is not installed, and logs it.
    """
    check_fabric(config, setting)
    if config.kind == "loopback":
        return LoopbackFabric()
    sockets = config.kind == "tcp"
    if config.kind == "auto" and importlib.util.find_spec("ucxx") is None:
        logger.warning(
            "UCX is not installed (extra cpu, cu12 or cu13): blocks go over plain sockets, as with kind = tcp"
        )
        sockets = True
    try:
        return TcpFabric(config) if sockets else UcxFabric(config)
    except FabricUnavailable as error:
        raise FabricUnavailable(f"{setting}: {error}") from error


def check_fabric(config: FabricConfig, setting: str) -> None:
    """Raises ConfigError for a value that is none, whatever this machine has; `setting` is where the config stands."""
    if config.kind not in _KINDS:
        raise ConfigError(f"{setting}.kind must be ucx, tcp, loopback or auto, not {config.kind!r}")
    for name, most in _LEVELS.items():
        value = getattr(config, name)
        if value != "auto" and not _is_level(value, most):
            raise ConfigError(f"{setting}.{name} must be auto or a number from 0 to {most}, not {value!r}")


def _is_level(value: str, most: int) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 3 and int(value) <= most
