"""Runs that are stopped after a step, as by a user who closes their events."""

from collections.abc import Iterator

from foreword.training.loop import TrainEvent


def events_until(events: Iterator[TrainEvent], stop: int) -> list[TrainEvent]:
    """Return the events of a run that is closed after a step; 0: of all of it."""
    found = []
    for event in events:
        found.append(event)
        if event.step == stop:
            events.close()  # type: ignore[attr-defined]
    return found
