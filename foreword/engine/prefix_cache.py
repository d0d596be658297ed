"""What was read already: states of prompts and of conversations, kept under a budget of bytes.

In: a prompt's content hash, the ids that follow its virtual tokens, each layer's state. Out: the
state that shares most with a new request. The least recently used goes first. A state is bound to
the *content* of its prompt, so that a replaced prompt never meets an old state. Knows nothing of
models or requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.engine.kv_cache import State


@dataclass(frozen=True, eq=False)
class Known:
    """A state and what was read to reach it.

    Attributes:
        content_hash: of the prompt; None for the bare model.
        num_virtual: P.
        ids: int64 `[T]`, the real tokens.
        state: each layer's tensors `[N, P + T, D]`.
    """

    content_hash: str | None
    num_virtual: int
    ids: np.ndarray
    state: State

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(t.nbytes for layer in self.state for t in layer)

    def num_shared(self, ids: np.ndarray) -> int:
        """Return how many leading ids are the same."""
        length = min(len(ids), len(self.ids))
        differs = self.ids[:length] != ids[:length]
        return int(differs.argmax()) if differs.any() else length


class StateCache:
    """States by content, least recently used out."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._known: dict[Known, None] = {}  # in order of use
        self._by_hash: dict[str | None, list[Known]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, content_hash: str | None, ids: Sequence[int]) -> tuple[Known, int] | None:
        """Return the state that shares the most leading ids, and how many; None without any.

        A state of the right prompt that shares no id still holds the virtual tokens.
        """
        wanted = np.asarray(ids, dtype=np.int64)
        best: tuple[Known, int] | None = None
        for known in self._by_hash.get(content_hash, []):
            shared = known.num_shared(wanted)
            if best is None or shared > best[1]:
                best = known, shared
        if best is None or (not best[1] and content_hash is None):
            return None
        self._known[best[0]] = self._known.pop(best[0])
        return best

    def wants(self, content_hash: str | None, ids: np.ndarray, num_bytes: int) -> bool:
        """Return whether a state of so many bytes would be kept: it fits and is not known yet."""
        siblings = self._by_hash.get(content_hash, [])
        return num_bytes <= self.max_bytes and not any(
            known.num_shared(ids) == len(ids) for known in siblings
        )

    def add(self, known: Known) -> None:
        """Keep a state; one of the same prompt whose ids it continues is dropped for it."""
        if not self.wants(known.content_hash, known.ids, known.num_bytes):
            return
        for old in list(self._by_hash.get(known.content_hash, [])):
            if len(old.ids) and old.num_shared(known.ids) == len(old.ids):
                self._drop(old)
        self._known[known] = None
        self._by_hash.setdefault(known.content_hash, []).append(known)
        self.num_bytes += known.num_bytes
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._known)))

    def _drop(self, known: Known) -> None:
        del self._known[known]
        siblings = self._by_hash[known.content_hash]
        siblings.remove(known)
        if not siblings:
            del self._by_hash[known.content_hash]
        self.num_bytes -= known.num_bytes
