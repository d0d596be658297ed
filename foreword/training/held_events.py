"""Held events: those of a run that keeps a folder for itself until they end.

In: a generator of events, what to release. Out: the same events. What is held is released once they
end, fail or are closed, or once nobody has them any more, at the latest at the interpreter's exit;
whether they were begun or not. Knows no event.
"""

import weakref
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TypeVar

E = TypeVar("E")


class HeldEvents(Iterator[E]):
    """Events beside what is held for them.

    Args:
        held: is closed after the events.
        events: are closed with this, so that a run writes its state while it still has its folder.
    """

    def __init__(self, held: ExitStack, events: Generator[E, None, None]) -> None:
        self._events = events
        self._end = weakref.finalize(self, _end, held, events)

    def __next__(self) -> E:
        try:
            return next(self._events)
        except BaseException:
            self._end()
            raise

    def close(self) -> None:
        """End the events, and release what is held."""
        self._end()


def _end(held: ExitStack, events: Generator[E, None, None]) -> None:
    with held:
        events.close()
