"""Tracing: a span of OpenTelemetry for each call, where traces are exported at all.

In: a finished call's headers, fields and times. Out: one span with the attributes of the GenAI
semantic conventions, under the span that the client names in `traceparent`. Where traces are off,
nothing is imported and nothing is done for a call. Holds no users' text.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from foreword.errors import DependencyError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
# How a call's fields are called in https://opentelemetry.io/docs/specs/semconv/gen-ai/.
ATTRIBUTES = {
    "route": "http.route",
    "method": "http.request.method",
    "status": "http.response.status_code",
    "id": "foreword.request.id",
    "model": "gen_ai.request.model",
    "soft_prompt": "foreword.soft_prompt",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "new_tokens": "gen_ai.usage.output_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "first_token_seconds": "gen_ai.response.time_to_first_chunk",
}


class Tracing:
    """Exports a span for each call.

    Args:
        provider: OpenTelemetry's, which exports what its spans say.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation import tracecontext

        self.provider = provider
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)
        self._parents = tracecontext.TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("foreword")

    def record(self, headers: Mapping[bytes, bytes], fields: Mapping[str, Any]) -> None:
        """Export one call that ends now; `fields` are those of its log line."""
        end = time.time_ns()
        start = end - int(fields["seconds"] * 1e9)
        given = {"traceparent": headers.get(b"traceparent", b"").decode("latin-1")}
        operation = OPERATIONS.get(fields["route"])
        attributes = {
            name: value
            for key, name in ATTRIBUTES.items()
            if (value := fields.get(key)) is not None
        }
        if operation is not None:
            attributes |= {"gen_ai.operation.name": operation, "gen_ai.provider.name": "foreword"}
        span = self._tracer.start_span(
            f"{fields['method']} {fields['route']}",
            context=self._parents.extract(given),
            kind=self._kind,
            attributes=attributes,
            start_time=start,
        )
        if (first := fields.get("first_token_seconds")) is not None:
            span.add_event("first token", timestamp=start + int(first * 1e9))
        if fields["status"] >= 500:
            span.set_status(self._failed)
        span.end(end)

    def close(self) -> None:
        """Export what is left."""
        self.provider.shutdown()


def from_environment() -> Tracing | None:
    """Return what exports traces to where OpenTelemetry's own variables say; None where none does.

    Raises:
        DependencyError: they say so, and the packages are missing.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise DependencyError(
            f"{ENDPOINTS[0]} is set, and traces need {error.name}; install it: "
            "pip install 'foreword[tracing]', or unset it"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "foreword"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
