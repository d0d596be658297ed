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
from foreword.server.engine_thread import Worker
from foreword.server.metrics import ServerMetrics
from foreword.server.structured_output import Grammars

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
    encoder: ThreadPoolExecutor  # one thread: tokenizers are not safe under several
    reader: ThreadPoolExecutor  # of large bodies; one thread, as they take memory
    on_death: Callable[[], None]

    async def encode(self, call: Callable[[], T]) -> T:
        """Run a call that tokenizes or reads files outside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.encoder, call)


def state_of(http: Request) -> AppState:
    """Return the state of a request's application."""
    state: AppState = http.app.state.shared
    return state


def note(http: Request, fields: dict[str, Any]) -> None:
    """Add fields to the request's line of log: numbers and names that are served, never text."""
    http.scope["state"]["call"].fields |= fields
