"""Which transports UCX really uses between two processes: asked from an endpoint that has carried a message."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kvbench.fabric_pair import transport
from kvstore.config import FabricConfig
from kvstore.errors import KVStoreError

_INFINIBAND = Path("/sys/class/infiniband")


@cache
def chosen(config: FabricConfig) -> str:
    """As "tcp" or "cuda_copy+rc_mlx5"; why there is none, in brackets, where there is none."""
    try:
        return transport(config)
    except KVStoreError as error:
        return f"({error})"


def slow(used: str, rdma_devices: int) -> Iterator[str]:
    """A sentence, where sockets carry what an RDMA device of this machine could. Pure."""
    if set(used.split("+")) <= {"tcp", "self"} and rdma_devices:
        yield (
            f"slow transport: UCX uses {used} though this machine has {rdma_devices} RDMA devices;"
            " --compute-transports rc,tcp and --compute-device choose them"
        )


def fallen_back(asked: str, used: str) -> Iterator[str]:
    """A sentence, where two processes of one host talk over sockets though shared memory was asked for, or whatever UCX
    thinks best. Pure."""
    if asked != "tcp" and set(used.split("+")) <= {"tcp", "self"}:
        yield f"slow transport: {asked} was asked for between two processes of one host, and UCX uses {used}"


def rdma_devices() -> list[str]:
    return sorted(path.name for path in _INFINIBAND.iterdir()) if _INFINIBAND.is_dir() else []
