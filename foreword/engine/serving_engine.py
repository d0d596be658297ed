"""Serving engine protocol: what a server drives, whichever library computes.

In: requests, from any thread; steps, from one. Out: handles that fill, and numbers for metrics.
"""

from collections.abc import Sequence
from typing import Protocol

from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, Request


class ServingEngine(Protocol):
    """An engine, as the server knows it."""

    @property
    def limits(self) -> EngineLimits:
        """How much it takes on at once."""

    @property
    def max_length(self) -> int:
        """Tokens of one request, virtual, given and new ones together."""

    @property
    def num_running(self) -> int:
        """Requests in the batch."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that running requests hold."""

    @property
    def num_state_bytes(self) -> int:
        """Size of the states of prompts and conversations that are kept."""

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none."""

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served."""

    def step(self) -> bool:
        """Bring every request one step further; return whether there is more to do."""

    def close(self) -> None:
        """End what holds threads or memory; nothing runs afterwards."""
