"""Progress in lines: how far a run is, where no terminal shows a bar: log files, containers, CI.

In: steps as they end. Out: a line at the first step, every 30 seconds, also within a step, and
wherever one is due anyway. Knows no run.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

SECONDS_BETWEEN = 30.0


def duration(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


class ProgressLines:
    """Says what became of steps, with the time left.

    Args:
        say: is given each line.
        clock: in seconds; begins when this is made.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self._say, self._clock = say, clock
        self._started = clock()
        self._said: float | None = None
        self._ended = self._heard = self._started  # the latest step, the latest line of any kind
        self._where = "no step yet"
        self._num_taken = 0  # by this process, those that it went back over included

    def step(self, step: int, num_steps: int, state: str, *, is_due: bool = False) -> None:
        """Take a step that has ended, and say so if it is time; `is_due`: in any case."""
        now = self._ended = self._clock()
        self._where = f"after step {step} of {num_steps}"
        self._num_taken += 1
        is_time = self._said is None or now - self._said >= SECONDS_BETWEEN
        if not (is_time or is_due or step == num_steps):
            return
        self._said = self._heard = now
        each = (now - self._started) / self._num_taken
        left = duration(each * (num_steps - step))
        self._say(f"step {step} of {num_steps}, {left} left · {state}")

    @contextlib.contextmanager
    def within_steps(self) -> Iterator[None]:
        """Say every 30 seconds of a longer step that it goes on, while the context is open."""
        is_over = threading.Event()

        def say() -> None:
            while not is_over.wait(self._due() - self._clock()):
                self.wait()

        threading.Thread(target=say, daemon=True).start()
        try:
            yield
        finally:
            is_over.set()

    def wait(self) -> None:
        """Say how long a step takes so far, if it is 30 seconds old, and so is the latest line."""
        now = self._clock()
        if now >= self._due():
            self._heard = now
            self._say(f"{self._where}, {duration(now - self._ended)} so far")

    def _due(self) -> float:
        """Return when a step that does not end is said to go on."""
        return max(self._heard, self._ended) + SECONDS_BETWEEN
