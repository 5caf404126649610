"""Channels whose calls carry more than their messages."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc.aio

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
Added = Callable[[], Sequence[tuple[str, str | bytes]]]
"""What a call that begins now adds to its metadata."""


def adding(channel: grpc.aio.Channel, added: Added) -> grpc.aio.Channel:
    """The channel, whose calls add metadata from now on, each what holds then."""
    for kind in KINDS:
        setattr(channel, kind, _calls_adding(getattr(channel, kind), added))
    return channel


def _calls_adding(make: Callable[..., Any], added: Added) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        call = make(*args, **kwargs)

        def begun(*call_args: Any, metadata: Any = None, **call_kwargs: Any) -> Any:
            return call(*call_args, metadata=(*(metadata or ()), *added()), **call_kwargs)

        return begun

    return made
