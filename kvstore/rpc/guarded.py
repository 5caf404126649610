"""A channel that proves who calls, and takes renewed files into use without being opened anew by its owner."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import grpc
import grpc.aio

from kvstore.config import DoorConfig
from kvstore.rpc.certificates import Pem, Role, certificates, channel_credentials
from kvstore.rpc.renewed import Renewed

_LAST_CALL_S = 365 * 86_400.0


class GuardedChannel(grpc.aio.Channel):
    """Like gRPC's own. Calls that are under way when files are renewed end on the connection on which they began; that
    one is closed after the last of them. Else one that the other side no longer believes would be tried again each
    second.

    retired: what closes connections on which such calls are still under way."""

    def __init__(self, address: str, options: Sequence[tuple[str, Any]], door: DoorConfig, serves: Role) -> None:
        self._address = address
        self._options = [*options, ("grpc.ssl_target_name_override", serves.value)]
        self._files: Renewed[Pem] = certificates(door)
        self._shown = self._files()
        self._channel = self._opened()
        self._calls: WeakSet[Any] = WeakSet()
        self.retired: dict[asyncio.Task[None], WeakSet[Any]] = {}

    def _opened(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._address, channel_credentials(self._shown), options=self._options)

    def _current(self) -> grpc.aio.Channel:
        pem = self._files()
        if pem is not self._shown:
            self._shown = pem
            self._retire()
            self._channel = self._opened()
        return self._channel

    def _retire(self) -> None:
        closing = asyncio.create_task(self._channel.close(_LAST_CALL_S), name="retired channel")
        self.retired[closing], self._calls = self._calls, WeakSet()
        closing.add_done_callback(self.retired.pop)

    def _calling(self, kind: str, method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        made_for: grpc.aio.Channel | None = None
        call: Any = None

        def made(*call_args: Any, **call_kwargs: Any) -> Any:
            nonlocal made_for, call
            channel = self._current()
            if channel is not made_for:
                made_for, call = channel, getattr(channel, kind)(method, *args, **kwargs)
            begun = call(*call_args, **call_kwargs)
            self._calls.add(begun)
            return begun

        return made

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._calling("unary_unary", *args, **kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._calling("unary_stream", *args, **kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._calling("stream_unary", *args, **kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._calling("stream_stream", *args, **kwargs)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)
        for calls in self.retired.values():
            for call in list(calls):
                call.cancel()
        await asyncio.gather(*self.retired)

    async def __aenter__(self) -> "GuardedChannel":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
