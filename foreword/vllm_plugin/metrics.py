"""Prometheus metrics: counters by prompt, beside vLLM's own, which know the engine only.

In: the usage of answers. Out: counters in the process's own registry, which vLLM's `/metrics`
shows, of several frontends too. They are named as those of `foreword serve`; the label takes the
names that are served, and "(other)" past a bound. Knows no text.
"""

from collections.abc import Sequence
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from foreword.server.metric_labels import SECONDS, Labels


class PluginMetrics:
    """Counts the requests of prompts.

    Args:
        model: the bare model's name.
        registry: where they are shown.
    """

    def __init__(self, model: str, registry: CollectorRegistry = REGISTRY) -> None:
        self._model, self._labels = model, Labels()
        own = ("model_name", "soft_prompt")

        def counter(name: str, text: str, labels: Sequence[str] = own) -> Counter:
            return Counter(f"foreword:{name}", text, labels, registry=registry)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(f"foreword:{name}", text, own, registry=registry, buckets=SECONDS)

        self._prompt_tokens = counter("prompt_tokens", "tokens given")
        self._virtual_tokens = counter("virtual_tokens", "virtual tokens before them")
        self._new_tokens = counter("generation_tokens", "tokens answered")
        self._finished = counter(
            "request_success", "answers by why they ended", (*own, "finished_reason")
        )
        self._rejected = counter(
            "admission_rejections", "requests refused", ("model_name", "reason")
        )
        self._first_token = histogram(
            "time_to_first_token_seconds", "seconds to a stream's first token"
        )
        self._latency = histogram("e2e_request_latency_seconds", "seconds of a whole request")

    def count_rejected(self) -> None:
        """Count a request that was rejected."""
        self._rejected.labels(self._model, "invalid").inc()

    def count_finished(
        self,
        soft_prompt: str,
        usage: dict[str, Any],
        finish_reasons: Sequence[str],
        seconds: float,
        first_token_seconds: float | None,
    ) -> None:
        """Count a finished request."""
        labels = self._model, self._labels.of(soft_prompt)
        details = usage.get("prompt_tokens_details") or {}
        self._prompt_tokens.labels(*labels).inc(usage.get("prompt_tokens", 0))
        self._virtual_tokens.labels(*labels).inc(details.get("virtual_tokens", 0))
        self._new_tokens.labels(*labels).inc(usage.get("completion_tokens") or 0)
        for reason in finish_reasons:
            self._finished.labels(*labels, reason).inc()
        self._latency.labels(*labels).observe(seconds)
        if first_token_seconds is not None:
            self._first_token.labels(*labels).observe(first_token_seconds)
