"""Channels and servers with the same limits everywhere."""

from collections.abc import Sequence
from functools import cache

import grpc
import grpc.aio

from kvstore.config import DoorConfig
from kvstore.errors import ConfigError
from kvstore.pb import types_pb2
from kvstore.rpc import PROTOCOL_VERSION, tracing
from kvstore.rpc.certificates import Role
from kvstore.rpc.decoding import Decoding
from kvstore.rpc.guarded import GuardedChannel
from kvstore.rpc.tokens import bearing, shown_token

OPEN_DOOR = DoorConfig()

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
STREAMS_PER_CONNECTION_MAX = 4096
"""Calls at once over one connection; the caller's side keeps further ones back until there is room."""
KEYS_PER_MESSAGE_MAX = 16_384
"""Bound of a batch; the client splits what is larger."""

_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # bounds one attempt too, and a busy host needs more than 100
    ("grpc.max_reconnect_backoff_ms", 1000),
]

_WATCHED = [
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1500),
    ("grpc.keepalive_timeout_ms", 1500),  # of TCP, for what is not acknowledged
    ("grpc.http2.max_pings_without_data", 0),
]
_WATCHABLE = [("grpc.http2.min_ping_interval_without_data_ms", 500), ("grpc.http2.max_ping_strikes", 0)]


def open_channel(
    address: str,
    watched: bool = False,
    *,
    door: DoorConfig = OPEN_DOOR,
    serves: Role = Role.NODE,
    token: str = "",
    trust_sockets: bool = True,
) -> grpc.aio.Channel:
    """A lazy channel to host:port or unix:path. Connects at the first call and again after a loss.

    watched: calls in progress end with UNAVAILABLE within three seconds when the other side, or the way there, stops
    without a word; and when it is back, the next call need not wait until TCP tries again. door: what this process
    shows; over a unix socket the file's permissions stand for a certificate. serves: who must be at the other end.
    token: shown in place of the door's. trust_sockets: False where the address may come from others, who can name a
    socket of their own: a certificate is asked for there too. Raises ConfigError for certificates and tokens that are
    none, and for a token that would be sent unencrypted.
    """
    _keep_grpc()
    show = shown_token(door, token)
    local = address.startswith("unix:")
    if show() and not local and not door.shut:
        raise ConfigError(f"a token is not sent to {address} unencrypted: name door.cert, door.key and door.ca too")
    # A local subchannel pool: a channel that is opened anew never waits out another one's back-off.
    options = [*_OPTIONS, ("grpc.use_local_subchannel_pool", 1), *(_WATCHED if watched else ())]
    if door.shut and not (local and trust_sockets):
        channel: grpc.aio.Channel = GuardedChannel(address, options, door, serves)
    else:
        channel = grpc.aio.insecure_channel(address, options=options)
    return tracing.traced(bearing(channel, show) if show() else channel)


def make_server(
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (), door: DoorConfig = OPEN_DOOR
) -> grpc.aio.Server:
    """A server that refuses to share its port. door: bounds its connections, also where it is open."""
    _keep_grpc()
    options = [
        *_OPTIONS,
        *_WATCHABLE,
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
        ("grpc.max_allowed_incoming_connections", door.connections_max),
    ]
    return grpc.aio.server(interceptors=[*tracing.interceptors(), *interceptors, Decoding()], options=options)


@cache
def _keep_grpc() -> None:
    """gRPC's asyncio side ends with its last channel or server, in whatever thread collects that one as garbage. There
    it waits, holding its lock, for a thread of its own that may never end, and every later channel waits for the
    lock. So it does not end before the process."""
    grpc.aio.init_grpc_aio()


def caller(name: str) -> types_pb2.Caller:
    """What every request of this process says of itself."""
    return types_pb2.Caller(protocol_version=PROTOCOL_VERSION, name=name)
