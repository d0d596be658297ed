"""Sequence cache: which sequences of a llama.cpp cache hold which prompts and conversations.

In: a context, prompts, tokens of requests. Out: sequences that begin as what is known already. All
sequences share one budget of cells; a prompt's cells count once, however many sequences begin with
them. The least recently used of those that no request runs in goes first, its prompt's state stays
in memory as bytes, under a budget of its own, and then goes too. Knows no request.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.errors import ModelError
from foreword.llama_cpp.model import LlamaContext


@dataclass(eq=False)
class PromptCells:
    """The cells of one prompt's virtual tokens, and how many sequences hold them."""

    content_hash: str | None
    num_virtual: int
    num_holders: int = 0


@dataclass(eq=False)
class HeldSequence:
    """One sequence in use.

    Attributes:
        index: the library's number of it.
        prompt: the cells that it begins with.
        reserved: cells for its real tokens, those to come included.
        ids: the real tokens of a conversation that is kept; empty of a prompt alone.
    """

    index: int
    prompt: PromptCells
    reserved: int = 0
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def num_shared(self, ids: np.ndarray) -> int:
        """Return how many leading ids are the same."""
        length = min(len(ids), len(self.ids))
        differs = self.ids[:length] != ids[:length]
        return int(differs.argmax()) if differs.any() else length


class SequenceCache:
    """The sequences of a context.

    Args:
        context: the context.
        max_state_bytes: for states of prompts in memory; 0 keeps no conversations either.
    """

    def __init__(self, context: LlamaContext, max_state_bytes: int) -> None:
        self.context, self.max_state_bytes = context, max_state_bytes
        self.num_state_bytes = 0
        self._free = list(reversed(range(context.options.num_sequences)))
        self._running: set[HeldSequence] = set()
        self._kept: dict[HeldSequence, None] = {}  # in order of use
        self._states: OrderedDict[str, bytearray] = OrderedDict()

    @property
    def num_cells(self) -> int:
        """Cells that are held or promised."""
        held = [*self._running, *self._kept]
        prompts = {one.prompt for one in held}
        return sum(one.reserved for one in held) + sum(one.num_virtual for one in prompts)

    @property
    def num_kept(self) -> int:
        """Sequences that no request runs in."""
        return len(self._kept)

    # Room ----------------------------------------------------------------------------------------

    def has_room(self, content_hash: str | None, num_virtual: int, num_real: int) -> bool:
        """Return whether one more sequence fits, once what nobody runs in has gone."""
        running = {one.prompt for one in self._running}
        used = sum(one.reserved for one in self._running) + sum(p.num_virtual for p in running)
        is_known = any(prompt.content_hash == content_hash for prompt in running)
        needed = num_real + (0 if is_known else num_virtual)
        # Two more sequences: the request's, and its prompt's own.
        num_sequences = self.context.options.num_sequences
        return used + needed <= self.context.num_cells and len(self._running) + 2 <= num_sequences

    def _make_room(self, needed: int, spared: HeldSequence | None = None) -> None:
        """Let the least recently used go until so many cells and a sequence are free."""
        while not self._free or self.num_cells + needed > self.context.num_cells:
            for one in self._kept:
                if one is not spared and (not self._free or self._frees(one)):
                    self._let_go(one)
                    break
            else:
                raise ModelError("llama.cpp's cache is full")

    def _frees(self, one: HeldSequence) -> bool:
        return one.reserved > 0 or one.prompt.num_holders == 1

    def _let_go(self, one: HeldSequence) -> None:
        self._kept.pop(one, None)
        self._running.discard(one)
        one.prompt.num_holders -= 1
        self.context.cut(one.index)
        self._free.append(one.index)

    def _take(self, prompt: PromptCells, reserved: int) -> HeldSequence:
        prompt.num_holders += 1
        return HeldSequence(self._free.pop(), prompt, reserved)

    # Beginnings ----------------------------------------------------------------------------------

    def begin(
        self,
        content_hash: str | None,
        num_virtual: int,
        ids: Sequence[int],
        num_real: int,
        fill: Callable[[int], object],
        *,
        others: Iterator[tuple[HeldSequence, int]] | Sequence[tuple[HeldSequence, int]] = (),
    ) -> tuple[HeldSequence, int]:
        """Return a new sequence that begins with a prompt, and how many of the ids it holds too.

        Args:
            content_hash: of the prompt; None of the bare model.
            num_virtual: P.
            ids: the real tokens that will run.
            num_real: cells to keep for them and those to come.
            fill: fills an empty sequence, given by its index, with the prompt.
            others: sequences of running requests behind the same prompt, with how many leading ids
                they share.

        Raises:
            ForewordError: as `fill`. ModelError: the cache is full.
        """
        source, num_shared = self._best(content_hash, ids, others)
        if source is None and num_virtual:
            source = self._load(content_hash, num_virtual, fill)
        self._make_room(0, spared=source)
        made = self._take(source.prompt if source is not None else PromptCells(None, 0), num_real)
        self._running.add(made)
        if source is not None and num_virtual + num_shared:
            self.context.copy(source.index, made.index, num_virtual + num_shared)
        self._make_room(0)  # the source may go now: its cells are the new sequence's, too
        return made, num_shared

    def share(self, source: HeldSequence, target: HeldSequence, length: int) -> None:
        """Let a sequence begin as another one's first tokens, the prompt's included."""
        self.context.cut(target.index)
        self.context.copy(source.index, target.index, length)

    def _best(
        self,
        content_hash: str | None,
        ids: Sequence[int],
        others: Iterator[tuple[HeldSequence, int]] | Sequence[tuple[HeldSequence, int]],
    ) -> tuple[HeldSequence | None, int]:
        wanted = np.asarray(ids, dtype=np.int64)
        found = [
            (one, one.num_shared(wanted))
            for one in self._kept
            if one.prompt.content_hash == content_hash
        ]
        found += list(others)
        running = [one for one in self._running if one.prompt.content_hash == content_hash]
        found += [(one, 0) for one in running]
        if not found or content_hash is None and max(shared for _, shared in found) == 0:
            return None, 0
        best = max(found, key=lambda pair: pair[1])
        if best[0] in self._kept:
            self._kept[best[0]] = self._kept.pop(best[0])
        return best

    def _load(
        self, content_hash: str | None, num_virtual: int, fill: Callable[[int], object]
    ) -> HeldSequence:
        """Return a kept sequence of a prompt alone, from its state in memory or anew."""
        assert content_hash is not None
        self._make_room(num_virtual)
        made = self._take(PromptCells(content_hash, num_virtual), 0)
        try:
            if (state := self._states.get(content_hash)) is not None:
                self._states.move_to_end(content_hash)
                self.context.restore(made.index, state, num_virtual)
            else:
                fill(made.index)
                if (found := self.context.length(made.index)) != num_virtual:
                    raise ModelError(f"the prompt fills {found} tokens, expected {num_virtual}")
                self._remember(content_hash, made.index)
        except Exception:
            self._let_go(made)
            raise
        self._kept[made] = None
        return made

    def _remember(self, content_hash: str, index: int) -> None:
        state = self.context.state(index)
        if len(state) > self.max_state_bytes:
            return
        self._states[content_hash] = state
        self.num_state_bytes += len(state)
        while self.num_state_bytes > self.max_state_bytes:
            _, old = self._states.popitem(last=False)
            self.num_state_bytes -= len(old)

    # Ends ----------------------------------------------------------------------------------------

    def end(self, one: HeldSequence, ids: Sequence[int] | None = None) -> None:
        """End a sequence's run; its tokens `ids` are kept for a conversation's next turn."""
        self._running.discard(one)
        siblings = [other for other in self._kept if other.prompt is one.prompt]
        is_known = ids and any(
            other.num_shared(np.asarray(ids, dtype=np.int64)) == len(ids) for other in siblings
        )
        if not ids or not self.max_state_bytes or is_known:
            self._let_go(one)
            return
        one.ids, one.reserved = np.asarray(ids, dtype=np.int64), len(ids)
        self.context.cut(one.index, one.prompt.num_virtual + len(ids))
        for old in siblings:
            if len(old.ids) and old.num_shared(one.ids) == len(old.ids):
                self._let_go(old)
        self._kept[one] = None
