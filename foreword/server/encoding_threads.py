"""Encoding threads: requests become ids outside of the event loop, for a bounded time.

In: calls. Out: what they return. One thread takes short texts; another one takes images, sounds and
long texts, so that nobody's short text waits behind them. What waits in vain is told to come back.
Knows no request.
"""

import asyncio
import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from foreword.backbone import Backbone
from foreword.errors import BusyError, TooSlowError

T = TypeVar("T")


class EncodingThread:
    """One thread, as tokenizers are not safe under several.

    Args:
        name: of the thread.
        max_calls: under way or waiting; more are told to come back.
    """

    def __init__(self, name: str, max_calls: int) -> None:
        self._executor = ThreadPoolExecutor(1, name)
        self._max_calls, self._num_calls = max_calls, 0
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], T], deadline: float) -> T:
        """Run a call, until a time of the event loop's clock.

        Raises:
            BusyError: too many calls wait, or it waited until the deadline.
            TooSlowError: it takes longer. ForewordError: as the call.
        """
        if self._num_calls >= self._max_calls:
            raise BusyError(f"{self._num_calls} requests wait to be read; come back later")
        with self._lock:
            self._num_calls += 1
        begun = self._executor.submit(call)
        begun.add_done_callback(self._count_done)
        try:
            async with asyncio.timeout_at(deadline) as limit:
                return await asyncio.wrap_future(begun)
        except TimeoutError:
            if not limit.expired():
                raise
            if begun.cancel():
                raise BusyError("too many requests wait to be read; come back later") from None
            raise TooSlowError("the request takes too long to be read; send less") from None

    def _count_done(self, _: object) -> None:
        with self._lock:
            self._num_calls -= 1

    def shutdown(self, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more calls."""
        self._executor.shutdown(wait, cancel_futures=cancel_futures)


def apart(backbone: Backbone) -> Backbone:
    """Return a view of a backbone with its own tokenizer and processor, for another thread."""
    view = copy.copy(backbone)
    view.tokenizer, view.processor = copy.deepcopy((backbone.tokenizer, backbone.processor))
    return view
