"""How long the calls of a server take, by call and status."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio

from kvstore.observe.families import Families
from kvstore.observe.histogram import Histogram
from kvstore.rpc.around import Around


class RpcTimes(Around):
    """One server's. Belongs to the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._times: dict[tuple[str, str], Histogram] = {}

    def show(self, families: Families) -> None:
        for (rpc, code), histogram in sorted(self._times.items()):
            families.histogram("kvstore_rpc_seconds", histogram, rpc, code)

    @contextmanager
    def around(self, rpc: str, context: Any) -> Iterator[None]:
        began_ns = time.perf_counter_ns()
        code = ""
        try:
            yield
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED.name
            raise
        except grpc.aio.AbortError:
            raise
        except BaseException:
            code = grpc.StatusCode.UNKNOWN.name
            raise
        finally:
            status = context.code()  # 0 until something is set
            taken = (rpc, code or (status.name if status else grpc.StatusCode.OK.name))
            histogram = self._times.get(taken)
            if histogram is None:
                histogram = self._times[taken] = Histogram()
            histogram.add((time.perf_counter_ns() - began_ns) / 1e9)
