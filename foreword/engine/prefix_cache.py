"""Prefix caching: states of prompts and of conversations, kept under a budget of bytes.

In: a prompt's content hash, the ids that follow its virtual tokens, each layer's state. Out: the
entry that shares most with a new request. The least recently used goes first. An entry is bound to
the *content* of its prompt, so that a replaced prompt never meets an old state. Knows nothing of
models or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.engine.kv_cache import CachedState


@dataclass(frozen=True, eq=False)
class CacheEntry:
    """A state and the tokens that led to it.

    Attributes:
        content_hash: of the prompt; None for the bare model.
        num_virtual: P.
        ids: int64 `[T]`, the real tokens.
        state: each layer's tensors `[N, P + T, D]`.
    """

    content_hash: str | None
    num_virtual: int
    ids: np.ndarray
    state: CachedState

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(t.nbytes for layer in self.state for t in layer)

    def num_shared(self, ids: np.ndarray) -> int:
        """Return how many leading ids are the same."""
        length = min(len(ids), len(self.ids))
        differs = self.ids[:length] != ids[:length]
        return int(differs.argmax()) if differs.any() else length


class PrefixCache:
    """Entries by content, least recently used out.

    Args:
        max_bytes: of all entries.
        is_whole: whether a state holds its tokens as a whole, as a recurrent one does, and can be
            used for rows alone that begin with all of them and go on.
    """

    def __init__(self, max_bytes: int, *, is_whole: bool = False) -> None:
        self.max_bytes, self.is_whole = max_bytes, is_whole
        self.num_bytes = 0
        self._entries: dict[CacheEntry, None] = {}  # in order of use
        self._by_hash: dict[str | None, list[CacheEntry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, content_hash: str | None, ids: Sequence[int]) -> tuple[CacheEntry, int] | None:
        """Return the state that shares the most leading ids, and how many; None without any.

        A state of the right prompt that shares no id still holds the virtual tokens.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        best: tuple[CacheEntry, int] | None = None
        for entry in self._by_hash.get(content_hash, []):
            shared = entry.num_shared(wanted)
            if self.is_whole and shared < len(entry.ids):
                continue
            if best is None or shared > best[1]:
                best = entry, shared
        if best is None or (not best[1] and content_hash is None):
            return None
        self._entries[best[0]] = self._entries.pop(best[0])
        return best

    def wants(self, content_hash: str | None, ids: np.ndarray, num_bytes: int) -> bool:
        """Return whether a state of so many bytes would be kept: it fits and is not kept yet."""
        siblings = self._by_hash.get(content_hash, [])
        return num_bytes <= self.max_bytes and not any(
            entry.num_shared(ids) == len(ids) and (len(entry.ids) == len(ids) or not self.is_whole)
            for entry in siblings
        )

    def add(self, entry: CacheEntry) -> None:
        """Keep a state; one of the same prompt whose ids it continues is dropped for it."""
        if not self.wants(entry.content_hash, entry.ids, entry.num_bytes):
            return
        for old in list(self._by_hash.get(entry.content_hash, [])):
            if len(old.ids) and old.num_shared(entry.ids) == len(old.ids):
                self._drop(old)
        self._entries[entry] = None
        self._by_hash.setdefault(entry.content_hash, []).append(entry)
        self.num_bytes += entry.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, entry: CacheEntry) -> None:
        del self._entries[entry]
        siblings = self._by_hash[entry.content_hash]
        siblings.remove(entry)
        if not siblings:
            del self._by_hash[entry.content_hash]
        self.num_bytes -= entry.num_bytes
