"""Traces of runs and their shards, for OpenTelemetry: a span of the run, in it one of each shard,
in it reading, inferring and writing.

They go where `OTEL_EXPORTER_OTLP_ENDPOINT` says, by OTLP over HTTP; without that variable nothing
is made. A run's own workers inherit it; those of a standing cluster are their owner's to tell. They
hold names and numbers: no words, no image, no errors but their kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, StatusCode

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def set_up() -> None:
    """From here on spans of this process are sent, if the environment says where to. Doing it again
    changes nothing, nor does it where something else, as `opentelemetry-instrument`, has set up
    tracing.

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
    """Send what was not sent yet: for a process that may be ended from outside."""
    send = getattr(
        trace.get_tracer_provider(), "force_flush", None
    )  # only a provider of the SDK has one
    if send is not None:
        send()


@contextmanager
def span(
    name: str, parent: Mapping[str, str] | None = None, **attributes: str | int | float
) -> Iterator[Span]:
    """Open a span around what is done within.

    `parent` is the `trace_context` of the process that asked for it; without one it is the span
    that this one is within.

    Of an error that leaves it, it keeps the kind alone: what errors say is only later made fit to
    be told (`tasks.logs.redacted_errors`).
    """
    context = propagate.extract(parent) if parent else None
    tracer = trace.get_tracer("wordmask")
    with tracer.start_as_current_span(
        name, context, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as found:
        try:
            yield found
        except BaseException as error:
            found.set_status(StatusCode.ERROR, type(error).__name__)
            raise


def trace_context() -> dict[str, str]:
    """The current span, as another process can take it for a parent (W3C trace context); empty
    where there is none.
    """
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier
