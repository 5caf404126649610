"""Bytes between processes: UCX, and a loopback inside one process. See `kvstore.fabric.base`."""

import importlib.util
import logging

from kvstore.config import FabricConfig
from kvstore.errors import ConfigError
from kvstore.fabric.base import Fabric
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.fabric.ucx import UcxFabric
from kvstore.fabric.ucx_context import context_settings

logger = logging.getLogger(__name__)


def make_fabric(config: FabricConfig) -> Fabric:
    """This process's end of the network that the config names.

    Raises FabricUnavailable when UCX was asked for and an extra, a device or a transport is missing; the text says
    which. Raises ConfigError for a value that is none. "auto" falls back to the loopback fabric where UCX is not
    installed, and logs it.
    """
    check_fabric(config)
    if config.kind == "loopback":
        return LoopbackFabric()
    if config.kind == "auto" and importlib.util.find_spec("ucxx") is None:
        logger.warning("UCX is not installed (extra cpu, cu12 or cu13): blocks cannot leave this process")
        return LoopbackFabric()
    return UcxFabric(config)


def check_fabric(config: FabricConfig) -> None:
    """Raises ConfigError for a value that is none, whatever this machine has."""
    if config.kind not in ("ucx", "loopback", "auto"):
        raise ConfigError(f"fabric.kind must be ucx, loopback or auto, not {config.kind!r}")
    context_settings(config)
