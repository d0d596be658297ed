"""Engine thread: steps the engine while there is work, and notices when it fails.

In: requests, from any thread. Out: handles that fill as tokens come. When the engine fails as a
whole, every running request ends with an error, no new one is accepted, and `error` says why.
Knows no HTTP and no text.
"""

import logging
import threading
from collections.abc import Sequence

from foreword.engine.request import Handle, Request
from foreword.engine.serving_engine import ServingEngine
from foreword.errors import EngineDeadError

log = logging.getLogger("foreword.server")


class Worker:
    """Steps an engine in a thread."""

    def __init__(self, engine: ServingEngine) -> None:
        self.engine = engine
        self.error: BaseException | None = None
        self._live: set[Handle] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are accepted."""
        return self.error is None and self._thread.is_alive() and not self._is_stopping

    @property
    def num_live(self) -> int:
        """Requests under way, waiting ones included."""
        with self._lock:
            self._live = {handle for handle in self._live if handle.finish_reason is None}
            return len(self._live)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Submit all requests, or none.

        Raises:
            EngineDeadError: the engine has failed, or is being stopped.
            ForewordError: as `Engine.submit_all`.
        """
        handles = self.engine.submit_all(requests)
        with self._lock:
            if not self.is_alive:
                for handle in handles:
                    handle.cancel()
                raise EngineDeadError("the engine does not run; the server has to be started again")
            self._live.update(handles)
            if len(self._live) > 4 * self.engine.limits.max_rows:
                self._live = {one for one in self._live if one.finish_reason is None}
        self._wake.set()
        return handles

    def stop(self, seconds: float = 10.0) -> None:
        """Stop the thread; requests under way end with an error."""
        self._is_stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(seconds)
        self._fail_all(EngineDeadError("the server is being stopped"))

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                self._wake.wait()
                self._wake.clear()
                while not self._is_stopping and self.engine.step():
                    pass
        except BaseException as error:
            log.critical("the engine has failed: %s", type(error).__name__)
            self.error = error
            self._fail_all(EngineDeadError(f"the engine has failed: {type(error).__name__}"))
        finally:
            self.engine.close()

    def _fail_all(self, error: EngineDeadError) -> None:
        with self._lock:
            live, self._live = self._live, set()
        for handle in live:
            handle.fail(error)
