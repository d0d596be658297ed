"""Load test with Locust: users who ask several prompts of one server, streamed, as clients do.

    pip install locust
    FOREWORD_MODELS=home,support locust -f examples/operations/locustfile.py \
      --host http://127.0.0.1:8000 --headless --users 32 --spawn-rate 8 --run-time 2m

Locust's table has a row for the whole answer and one for the first token, of every prompt.
FOREWORD_API_KEY is sent where it is set; FOREWORD_TEXTS is a file of questions, one a line.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from locust import HttpUser, between, task

MODELS = os.environ.get("FOREWORD_MODELS", "").split(",")
TOKENS = int(os.environ.get("FOREWORD_TOKENS", "64"))
TEXTS = (
    Path(os.environ["FOREWORD_TEXTS"]).read_text().splitlines()
    if "FOREWORD_TEXTS" in os.environ
    else ["turn on the light in the hall", "How long can I keep a film?", "Is it raining?"]
)


class Asking(HttpUser):
    """One client, who reads each answer as it comes and asks again soon after."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Take the names that the server has, where none is given."""
        if key := os.environ.get("FOREWORD_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"
        listed = self.client.get("/v1/models").json()["data"]
        self.models = [one for one in MODELS if one] or [one["id"] for one in listed]

    @task
    def ask(self) -> None:
        """Ask a question, and note when the first token comes."""
        model = random.choice(self.models)
        body = {
            "model": model,
            "messages": [{"role": "user", "content": random.choice(TEXTS)}],
            "max_tokens": TOKENS,
            "stream": True,
        }
        started, first = time.perf_counter(), None
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, name=model, catch_response=True
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                return
            for line in answer.iter_lines():
                if first is None and _has_text(line):
                    first = time.perf_counter()
                    self._note(model, first - started, len(line))
                if b'"error"' in line[:20]:
                    answer.failure(line.decode()[:200])
            # Locust's own figure ends with the headers of a stream.
            answer.request_meta["response_time"] = 1000 * (time.perf_counter() - started)

    def _note(self, model: str, seconds: float, size: int) -> None:
        self.environment.events.request.fire(
            request_type="first token",
            name=model,
            response_time=1000 * seconds,
            response_length=size,
            exception=None,
            context={},
        )


def _has_text(line: bytes) -> bool:
    if not line.startswith(b"data: {"):
        return False
    event: dict[str, Any] = json.loads(line[6:])
    return any((one.get("delta") or {}).get("content") for one in event.get("choices", []))
