"""Prefixes that were computed, by the content of their prompts, the least recently used going
first.

In: a key, and how to compute what is not there. Out: the prefix. Threads may ask at once; two that
ask for the same new key may both compute it.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

from foreword.prompt.prefix import Prefix


class Compiled:
    """Up to `limit` prefixes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: OrderedDict[str, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str, compute: Callable[[], Prefix]) -> Prefix:
        """Return the prefix under a key, computed where it is not known."""
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        prefix = compute()
        with self._lock:
            self._known[key] = prefix
            while len(self._known) > self.limit:
                self._known.popitem(last=False)
        return prefix
