"""The client library: see `AsyncClient`, its blocking twin `Client`, and `buffers`."""

from kvstore.client import buffers
from kvstore.client.aio import AsyncClient, PendingMatch, Pin
from kvstore.client.blocking import Client
from kvstore.client.growing import Growing
from kvstore.client.loading import LayerGroupReady, Load, LoadedFrom, LoadResult, Missing
from kvstore.client.matching import Match
from kvstore.client.storing import StoreResult, Writer

__all__ = [
    "AsyncClient",
    "Client",
    "Growing",
    "LayerGroupReady",
    "Load",
    "LoadResult",
    "LoadedFrom",
    "Match",
    "Missing",
    "PendingMatch",
    "Pin",
    "StoreResult",
    "Writer",
    "buffers",
]
