"""Prometheus metrics: named as vLLM's, with `foreword:` before the name.

In: the numbers of finished calls, errors, and the engine. Out: the text of `/metrics`. The label
`soft_prompt` takes the names that are served, and "(other)" past a bound, never a name that a
client made up. Knows no text and no HTTP.
"""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foreword.engine.serving_engine import ServingEngine
from foreword.errors import (
    BusyError,
    EngineDeadError,
    ForewordError,
    ModelError,
    TooSlowError,
    UnavailableError,
)
from foreword.server.metric_labels import SECONDS, Labels

FAILURES: dict[type[ForewordError], str] = {
    TooSlowError: "timeout",
    ModelError: "model",
    EngineDeadError: "engine_dead",
    UnavailableError: "unavailable",
}


class ServerMetrics:
    """Counts one server's requests.

    Args:
        model: the bare model's name.
        engine: its state is read whenever `/metrics` is.
    """

    def __init__(self, model: str, engine: ServingEngine) -> None:
        self.registry = CollectorRegistry()
        self._model, self._engine = model, engine
        self._labels = Labels()
        own = ("model_name", "soft_prompt")
        self._prompt_tokens = self._counter("prompt_tokens", "tokens given", own)
        self._new_tokens = self._counter("generation_tokens", "tokens answered", own)
        self._finished = self._counter(
            "request_success", "answers by why they ended", (*own, "finished_reason")
        )
        self._rejected = self._counter(
            "admission_rejections", "requests refused", ("model_name", "reason")
        )
        self._failed = self._counter(
            "request_failures", "requests that ended with an error", ("model_name", "reason")
        )
        self._first_token = self._histogram(
            "time_to_first_token_seconds", "to the first token", own
        )
        self._latency = self._histogram("e2e_request_latency_seconds", "of a whole request", own)
        self._inter_token = self._histogram(
            "inter_token_latency_seconds", "between two tokens of an answer, its mean", own
        )
        for name, text, measure in (
            ("num_requests_running", "requests in the batch", lambda: engine.num_running),
            ("num_requests_waiting", "requests that wait for a row", lambda: engine.num_waiting),
            (
                "kv_cache_usage_perc",
                "share of the tokens that memory is kept for",
                lambda: engine.num_cached_tokens / engine.limits.max_slots,
            ),
            (
                "state_cache_bytes",
                "states of prompts and chats",
                lambda: engine.num_state_bytes,
            ),
        ):
            gauge = Gauge(f"foreword:{name}", text, ("model_name",), registry=self.registry)
            gauge.labels(model).set_function(measure)
        self._queries = self._counter("prefix_cache_queries", "tokens looked up", ("model_name",))
        self._hits = self._counter("prefix_cache_hits", "tokens not read again", ("model_name",))

    def count_rejected(self, reason: str) -> None:
        """Count a request that was rejected."""
        self._rejected.labels(self._model, reason).inc()

    def count_refused(self, status: int) -> None:
        """Count a request that was refused before a model was asked, by its HTTP status."""
        if status == 503:
            self.count_rejected("queue_full")
        else:
            self.count_rejected("forbidden" if status in (401, 403) else "invalid")

    def count_error(self, error: ForewordError) -> None:
        """Count a request that ended with an error: rejected, or failed, and why."""
        if isinstance(error, BusyError):
            self.count_rejected("queue_full")
        elif error.http_status < 500:
            self.count_rejected("invalid")
        else:
            self._failed.labels(self._model, FAILURES.get(type(error), "other")).inc()

    def count_finished(
        self, soft_prompt: str, fields: dict[str, Any], has_failed: bool = False
    ) -> None:
        """Count a finished call.

        Args:
            soft_prompt: that answered.
            fields: those of its log line.
            has_failed: with an error, which is counted by its kind: no answer has ended well.
        """
        labels = self._model, self._labels.of(soft_prompt)
        self._prompt_tokens.labels(*labels).inc(fields["prompt_tokens"])
        self._new_tokens.labels(*labels).inc(fields["new_tokens"])
        self._queries.labels(self._model).inc(fields["prompt_tokens"])
        self._hits.labels(self._model).inc(fields["cached_tokens"])
        for reason in () if has_failed else fields["finish_reasons"]:
            self._finished.labels(*labels, reason).inc()
        self._latency.labels(*labels).observe(fields["seconds"])
        if fields["first_token_seconds"] is not None:
            self._first_token.labels(*labels).observe(fields["first_token_seconds"])
            if fields["longest"] > 1:
                seconds = fields["seconds"] - fields["first_token_seconds"]
                self._inter_token.labels(*labels).observe(seconds / (fields["longest"] - 1))

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"foreword:{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(
            f"foreword:{name}", f"seconds {text}", labels, registry=self.registry, buckets=SECONDS
        )
