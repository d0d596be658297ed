"""Time to first token: how long a request waits for the first token of its answer.

In: ways to begin an answer, as calls. Out: the median seconds of each. All are measured in turn in
one process, so that what slows the machine down for a while slows all of them. Knows no model.
"""

import statistics
import time
from collections.abc import Callable, Mapping

ROUNDS = 5


def median_seconds(
    ways: Mapping[str, Callable[[], object]], rounds: int = ROUNDS
) -> dict[str, float]:
    """Return the median seconds of each call over `rounds` rounds, in each of which every one is
    called once; one more round before is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if number:
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in found.items()}
