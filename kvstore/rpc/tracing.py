"""Spans of OpenTelemetry across calls: each call is one at its caller and one at its server, in the caller's trace.

The context travels in the call's metadata (W3C `traceparent`). Whether there are spans is decided when a channel or a
server is made: where OpenTelemetry is not installed, or nobody has set it up in this process, nothing is wrapped and
nothing costs anything.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc.aio

from kvstore.errors import ConfigError
from kvstore.rpc.around import Around
from kvstore.rpc.metadata import KINDS

try:
    from opentelemetry import propagate, trace  # optional: the extra otel
except ImportError:
    trace = None  # type: ignore[assignment]

EXPORTS = ("none", "otlp", "console")
_NAME = "kvstore"


def set_up(process: str, export: str) -> None:
    """Has this process make spans; those that are left when it exits are exported then.

    export: of EXPORTS; otlp: to where the environment says (OTEL_EXPORTER_OTLP_ENDPOINT, …), console: to standard
    error, for trials. Raises ConfigError without the extra otel.
    """
    if export == "none":
        return
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError("--traces needs OpenTelemetry: pip install 'kvstore[otel]'") from None
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: f"kvstore {process}"}))
    provider.add_span_processor(BatchSpanProcessor(_exporter(export)))
    trace.set_tracer_provider(provider)


def _exporter(export: str) -> Any:
    if export == "console":
        import sys

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def is_set_up() -> bool:
    """Whether this process makes spans."""
    return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def traced(channel: grpc.aio.Channel) -> grpc.aio.Channel:
    """The channel, whose calls are spans from now on."""
    if is_set_up():
        for kind in KINDS:
            setattr(channel, kind, _calls_as_spans(getattr(channel, kind)))
    return channel


def interceptors() -> Sequence[grpc.aio.ServerInterceptor]:
    """Those that a server needs, first of all."""
    return [_ServerSpans()] if is_set_up() else []


def _calls_as_spans(make: Callable[..., Any]) -> Callable[..., Any]:
    tracer = trace.get_tracer(_NAME)

    def made(method: str, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        call, name = make(method, *args, **kwargs), method.rpartition(".")[2]

        def begun(*call_args: Any, metadata: Any = None, **call_kwargs: Any) -> Any:
            span = tracer.start_span(name, kind=trace.SpanKind.CLIENT)
            carried: dict[str, str] = {}
            propagate.inject(carried, trace.set_span_in_context(span))
            under_way = call(*call_args, metadata=(*(metadata or ()), *carried.items()), **call_kwargs)
            under_way.add_done_callback(lambda _: span.end())
            return under_way

        return begun

    return made


class _ServerSpans(Around):
    @contextmanager
    def around(self, rpc: str, context: Any) -> Iterator[None]:
        parent = propagate.extract(dict(context.invocation_metadata() or ()))
        tracer = trace.get_tracer(_NAME)
        with tracer.start_as_current_span(rpc, parent, trace.SpanKind.SERVER, record_exception=False):
            yield
