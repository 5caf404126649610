"""Run as a program: a relayed load, traced. Prints the spans as JSON; a process can set OpenTelemetry up only once."""

import asyncio
import json
import sys
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.node.test_relay import SOME, relaying


async def run(folder: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    async with relaying(folder) as world:
        with trace.get_tracer("engine").start_as_current_span("request"):
            await world.load(relayed_first=SOME)
    told = [
        {
            "name": span.name,
            "kind": span.kind.name,
            "trace": span.context.trace_id,
            "id": span.context.span_id,
            "parent": span.parent.span_id if span.parent else 0,
        }
        for span in exporter.get_finished_spans()
    ]
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1])))
