"""What Prometheus scrapes: one endpoint per process that is asked for it. Numbers are read when they are asked for."""

import asyncio
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc.aio
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from kvstore.observe.families import Families
from kvstore.observe.rpc_times import RpcTimes
from kvstore.rpc.http import HttpServer

PATH = "metrics"
Show = Callable[[Families], Awaitable[None]]
"""Puts a process's numbers into a scrape."""
log = logging.getLogger(__name__)


class Metrics:
    """A process's endpoint. listen: host:port; empty: there is none, no call is timed, and start and stop do nothing.

    process: control or node, whose setting `metrics_listen` is. name: of the node. `url`: what Prometheus is to scrape,
    once started. `interceptors`: for the process's gRPC server.
    """

    def __init__(self, process: str, name: str, listen: str, *, insecure: bool) -> None:
        self.url = ""
        self._process = process
        self._name = name
        self._version = ""
        self._listen = listen
        self._insecure = insecure
        self._server: HttpServer | None = None
        self._times = RpcTimes()
        self._machine = ProcessCollector(registry=None)

    @property
    def interceptors(self) -> Sequence[grpc.aio.ServerInterceptor]:
        return [self._times] if self._listen else []

    async def start(self, show: Show) -> None:
        """Raises ConfigError for an address that cannot be bound, or that other hosts reach without `insecure`."""
        if not self._listen:
            return
        self._version = importlib.metadata.version("kvstore")

        async def application(scope: Mapping[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
            status, content_type, body = await self._answer(scope, show)
            length = str(len(body)).encode()
            headers = [(b"content-type", content_type.encode()), (b"content-length", length)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

        self._server = await HttpServer.start(
            f"{self._process}.metrics_listen",
            self._listen,
            application,
            insecure=self._insecure,
            warning="read what the process counts",
        )
        self.url = self._server.url + PATH
        log.info("metrics on %s", self.url)

    async def stop(self) -> None:
        """Idempotent."""
        if self._server is not None:
            await self._server.stop()

    async def _answer(self, scope: Mapping[str, Any], show: Show) -> tuple[int, str, bytes]:
        if scope["path"] != f"/{PATH}":
            return 404, "text/plain", f"metrics are at /{PATH}\n".encode()
        if scope["method"] != "GET":
            return 405, "text/plain", b""
        families = self._own()
        await show(families)
        encode, content_type = choose_encoder(dict(scope["headers"]).get(b"accept", b"").decode("latin-1"))
        return 200, content_type, encode(families)

    def _own(self) -> Families:
        """What every process shows."""
        families = Families()
        families.add("kvstore_process_info", 1, self._process, self._name, self._version)
        families.add("kvstore_tasks", len(asyncio.all_tasks()))
        for family in self._machine.collect():
            families.take(family)
        self._times.show(families)
        return families
