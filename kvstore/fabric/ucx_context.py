"""UCXX itself and its contexts: the only module that imports it."""

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from kvstore.config import FabricConfig
from kvstore.errors import FabricUnavailable

KEEPALIVE = "1s"
"""How the other side learns that an endpoint was closed here: TCP keeps the socket while it is used in that direction.
UCX's default is 20 s, in which every large message on the old endpoint hangs."""

_RESOURCE = re.compile(r"flags -- ([^/\s]+)/(\S+)")


class Library(NamedTuple):
    """What is used of UCXX."""

    api: Any
    """Module `ucxx._lib.libucxx`."""
    array: Any
    """Class `ucxx._lib.arr.Array`."""


@cache
def library() -> Library:
    """UCXX, imported so that the process's environment stays as it was."""
    with _environment_kept():
        # UCXX wants this too, but says so when UCX has read its environment already: device memory must be looked up,
        # a cache of it goes stale where UCX's hooks miss an allocation.
        os.environ.setdefault("UCX_MEMTYPE_CACHE", "n")
        # Its own choice is standard output, which belongs to what a command answers.
        os.environ.setdefault("UCX_LOG_FILE", "stderr")
        try:
            import ucxx._lib.libucxx as api
            from ucxx._lib.arr import Array
        except ImportError as error:
            raise FabricUnavailable(
                f"UCX is not installed ({error}): install kvstore[cpu], or kvstore[cu12] or [cu13] with a GPU; "
                "without one of them blocks go over plain sockets (kind = tcp)"
            ) from error
    return Library(api, Array)


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """`import ucxx` sets UCX_* variables that would weigh on every context and child process."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("UCX") and name not in before]:
            del os.environ[name]


def context_settings(config: FabricConfig) -> dict[str, str]:
    """What the context is told; it outweighs UCX_* variables."""
    # A message is one segment or a rendezvous, which ends with its endpoint. Of one in eager fragments UCX knows no
    # endpoint: when the rest does not come its receive never ends, and no cancel reaches it.
    settings = {"RNDV_THRESH": "auto", "PROTOS": "^egr/multi/*"}
    for name, level in (("IB_SL", config.service_level), ("IB_TRAFFIC_CLASS", config.traffic_class)):
        if level != "auto":  # UCX refuses both where it has no InfiniBand or RoCE device to give them to
            settings[name] = str(int(level))  # of "010" UCX makes 8
    if config.error_handling:
        # The second: endpoints meet when they are made, so that also one that has carried nothing learns of its end.
        settings |= {"KEEPALIVE_INTERVAL": KEEPALIVE, "RESOLVE_REMOTE_EP_ID": "on"}
    transports = config.transports.split(",")
    if config.device:
        settings["NET_DEVICES"] = config.device
    if config.transports != "auto":
        extra = ["self", *(("cuda_copy", "cuda_ipc") if config.cuda else ())]
        settings["TLS"] = ",".join(dict.fromkeys([*transports, *extra]))
    if config.rails_max:
        settings["MAX_RNDV_RAILS"] = str(config.rails_max)
    elif transports == ["tcp"]:
        settings["MAX_RNDV_RAILS"] = "1"
    if not config.cuda:
        settings["RNDV_FRAG_MEM_TYPES"] = "host"
    if "tcp" in transports or config.transports == "auto":
        segment = str(config.segment_bytes)
        # One event per poll: the handler of one may free the endpoint of the next.
        settings |= {"TCP_TX_SEG_SIZE": segment, "TCP_RX_SEG_SIZE": segment, "TCP_MAX_POLL": "1"}
        # A host that does not answer would hold the progress thread in connect(), and everything else with it.
        settings["TCP_CONN_NB"] = "y"
    return settings


def make_context(config: FabricConfig) -> Any:
    """A context that can reach something. Raises FabricUnavailable."""
    api = library().api
    features = (api.Feature.TAG, api.Feature.WAKEUP)
    try:
        context = api.UCXContext(context_settings(config), features)
    except api.UCXError as error:
        raise FabricUnavailable(f"UCX refuses its settings {context_settings(config)}: {error}") from error
    except OSError as error:
        raise FabricUnavailable(f"UCX does not start, which needs a /tmp that it may write: {error}") from error
    devices = {device for _, device in _RESOURCE.findall(context.info)}
    missing = [device for device in config.device.split(",") if device and device not in devices]
    if missing:
        known = sorted({device for _, device in _RESOURCE.findall(api.UCXContext({}, features).info)})
        raise FabricUnavailable(
            f"UCX has no device {', '.join(missing)} for transports {config.transports}; there are {', '.join(known)}"
        )
    if not usable_transports(context):
        raise FabricUnavailable(f"UCX has none of the transports {config.transports} on this machine")
    return context


def usable_transports(context: Any) -> set[str]:
    """Transports of a context that reach another process."""
    return {transport for transport, _ in _RESOURCE.findall(context.info)} - {"self", "cuda_copy"}
