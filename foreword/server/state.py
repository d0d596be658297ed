"""Application state: what the handlers of one application share, and how they reach it.

In: an HTTP request. Out: the backbone, the catalog, the engine's thread and the limits behind it.
Knows no route.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import Request

from foreword.backbone import Backbone
from foreword.config import ServeConfig
from foreword.server.catalog import Catalog
from foreword.server.encoding_threads import EncodingThread
from foreword.server.engine_thread import Worker
from foreword.server.metrics import ServerMetrics
from foreword.server.structured_output import Grammars
from foreword.server.tracing import Tracing

T = TypeVar("T")


@dataclass
class AppState:
    """The state that the handlers share."""

    backbone: Backbone
    catalog: Catalog
    worker: Worker
    config: ServeConfig
    metrics: ServerMetrics
    grammars: Grammars
    encoder: EncodingThread  # of short texts
    slow_encoder: EncodingThread  # of images, sounds and long texts
    slow_backbone: Backbone  # the view that belongs to it
    reader: ThreadPoolExecutor  # of large bodies; one thread, as they take memory
    on_death: Callable[[], None]
    tracing: Tracing | None

    def deadline(self) -> float:
        """Return when a request that comes now has to be answered, by the event loop's clock."""
        return asyncio.get_running_loop().time() + self.config.request_seconds

    async def encode(self, call: Callable[[], T], deadline: float) -> T:
        """Run a call that reads files or a short text outside the event loop."""
        return await self.encoder.run(call, deadline)

    async def encode_with(self, call: Callable[[Backbone], T], is_slow: bool, deadline: float) -> T:
        """Run a call that tokenizes, or decodes images and sounds, outside the event loop."""
        if is_slow:
            return await self.slow_encoder.run(lambda: call(self.slow_backbone), deadline)
        return await self.encoder.run(lambda: call(self.backbone), deadline)


def state_of(http: Request) -> AppState:
    """Return the state of a request's application."""
    state: AppState = http.app.state.shared
    return state


def note(http: Request, fields: dict[str, Any]) -> None:
    """Add fields to the request's line of log: numbers and names that are served, never text."""
    http.scope["state"]["call"].fields |= fields
