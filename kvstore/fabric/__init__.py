"""Bytes between processes: UCX, and a loopback inside one process. See `kvstore.fabric.base`."""

import importlib.util
import logging

from kvstore.config import FabricConfig
from kvstore.errors import ConfigError
from kvstore.fabric.base import Fabric
from kvstore.fabric.loopback import LoopbackFabric
from kvstore.fabric.ucx import UcxFabric

logger = logging.getLogger(__name__)


def make_fabric(config: FabricConfig) -> Fabric:
    """This process's end of the network that the config names.

    Raises FabricUnavailable when UCX was asked for and an extra, a device or a transport is missing; the text says
    which. Raises ConfigError for a value that is none. "auto" falls back to the loopback fabric where UCX is not
    installed, and logs it.
    """
    match config.kind:
        case "ucx":
            return UcxFabric(config)
        case "loopback":
            return LoopbackFabric()
        case "auto" if importlib.util.find_spec("ucxx") is not None:
            return UcxFabric(config)
        case "auto":
            logger.warning("UCX is not installed (extra cpu, cu12 or cu13): blocks cannot leave this process")
            return LoopbackFabric()
    raise ConfigError(f"fabric.kind must be ucx, loopback or auto, not {config.kind!r}")
