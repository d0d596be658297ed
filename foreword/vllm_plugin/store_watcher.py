"""Store watcher: keeps the served names as they are in the store on disk.

In: a catalog and its store. Out: the catalog as the store is now, and why a name is refused. Every
writer touches the store's directory, so that a look costs one `stat`, and every process that looks
sees the same. A name whose newest version is refused is not served at its old one. Knows no HTTP.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection

from foreword.errors import ForewordError, InputError, NotFoundError
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog

log = logging.getLogger("vllm.foreword")
LOOK_SECONDS = 1.0
# Copies of a store by other programs, and file systems with coarse times, may not be seen by stat.
WHOLE_SECONDS = 30.0


class Watch:
    """Keeps a catalog as its store is.

    Args:
        catalog: what is served.
        store: where prompts lie.
        reserved: the bare model's names.
        clock: seconds.

    Attributes:
        refused: why a name of the store is not served.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        reserved: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog, self.store, self.reserved = catalog, store, reserved
        self.refused: dict[str, str] = {}
        self._clock = clock
        self._seen: dict[str, str] = {}
        self._stamp: int | None = None
        self._looked = float("-inf")

    def look(self) -> bool:
        """Follow the store if it may have changed; return whether it was read."""
        stamp = self._stamp_of_store()
        if stamp == self._stamp and self._clock() - self._looked < WHOLE_SECONDS:
            return False
        self._stamp, self._looked = stamp, self._clock()
        self.follow()
        return True

    def follow(self) -> None:
        """Serve what the store holds now, and nothing else."""
        found: dict[str, str] = {}
        for name in (*self.store.names(), *self.store.aliases()):
            try:
                found[name] = str(self.store.resolve(name))
            except NotFoundError:
                continue  # gone while it was read
            except ForewordError:
                found[name] = "damaged"  # loading it says how
        for name in [name for name in self._seen if name not in found]:
            self._drop(name)
            log.info("soft prompt %s is no longer served", name)
        for name, version in found.items():
            if self._seen.get(name) != version:
                self._take(name, version)

    def _take(self, name: str, version: str) -> None:
        try:
            if name in self.reserved:
                raise InputError(f"{name!r} is a name of the bare model; rename the prompt")
            self.catalog.load(name)
        except NotFoundError:
            return  # gone while it was read: the next look tells
        except ForewordError as error:
            self._drop(name)
            self.refused[name] = str(error)
            log.warning("soft prompt %s is not served: %s", name, error)
        else:
            self.refused.pop(name, None)
            log.info("soft prompt %s is served as %s", name, version)
        self._seen[name] = version

    def _drop(self, name: str) -> None:
        self.refused.pop(name, None)
        self._seen.pop(name, None)
        with contextlib.suppress(NotFoundError):
            self.catalog.unload(name)

    def _stamp_of_store(self) -> int | None:
        try:
            return self.store.directory.stat().st_mtime_ns
        except OSError:
            return None
