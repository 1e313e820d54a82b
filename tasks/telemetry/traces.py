"""OpenTelemetry traces: a span of the run, in it one of each shard, in it those of its stages.

Spans go where `OTEL_EXPORTER_OTLP_ENDPOINT` says, by OTLP over HTTP; without that variable there
are none. A run's own workers inherit it, and the workers of a standing cluster have what their
owner set. Spans hold names and numbers: no query, no image, and of errors only the kind.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, StatusCode

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def set_up() -> None:
    """Send the spans of this process, if the environment says where to.

    Doing it again changes nothing, nor does it where something else, such as
    `opentelemetry-instrument`, has set up tracing.

    Raises:
        ImportError: the environment says where to, and there is nothing to send with.
    """
    if not any(map(os.environ.get, ENDPOINTS)) or not isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ImportError(
            f"{ENDPOINTS[0]} is set, but traces cannot be sent ({error}): pip install"
            " 'wordmask[traces]'"
        ) from None
    name = os.environ.get("OTEL_SERVICE_NAME", "wordmask")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def flush() -> None:
    """Send the spans that were not sent yet: for a process that may be ended from outside."""
    # Only a provider of the SDK has this method.
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush()


@contextmanager
def span(
    name: str, parent: Mapping[str, str] | None = None, **attributes: str | int | float
) -> Generator[Span]:
    """Open a span around what is done within.

    `parent` is the `trace_context` of the process that asked for it; without one it is the span
    that this one is within.

    The span keeps only the kind of an error that leaves it: credentials are removed from its text
    later (`logs.redacted_errors`).
    """
    context = None
    if parent:
        context = propagate.extract(parent)
    tracer = trace.get_tracer("wordmask")
    with tracer.start_as_current_span(
        name, context, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except BaseException as error:
            current.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def trace_context() -> dict[str, str]:
    """Return the current span for another process to take as a parent (W3C trace context).

    The mapping is empty where there is no span.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier
