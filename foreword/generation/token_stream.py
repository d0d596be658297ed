"""Token stream: the ids of one `generate` call as they come, from the thread that computes them.

In: what transformers hands to a streamer. Out: an iterator of ids, without those that were given.
Knows no text.
"""

from collections.abc import Iterator
from queue import SimpleQueue

from torch import Tensor


class TokenStream:
    """A streamer of transformers that is read as an iterator of ids."""

    def __init__(self) -> None:
        self._ids: SimpleQueue[int | None] = SimpleQueue()
        self._is_begun = False

    def put(self, value: Tensor) -> None:
        """Take ids; the first that come are those that were given."""
        if self._is_begun:
            for one in value.flatten().tolist():
                self._ids.put(one)
        self._is_begun = True

    def end(self) -> None:
        """Take note that none follow."""
        self._ids.put(None)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.get, None)
