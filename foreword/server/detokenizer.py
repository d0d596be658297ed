"""Detokenizer: one answer's ids to text as they come, without half characters and stop strings.

In: ids as they come. Out: the text that is certain. Knows no engine and no HTTP.
"""

from collections.abc import Sequence
from typing import Any

from foreword.data import encoding


class TextStream:
    """One answer's ids, one at a time, to text: never half a character, never a stop string.

    Args:
        tokenizer: what the ids are of.
        stop: strings at which the answer ends, without them.

    Attributes:
        is_stopped: whether a stop string came; nothing follows then.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.is_stopped = False
        self._ids: list[int] = []  # a window: some whose text is out, then new ones
        self._border = 0  # where the new ones begin
        self._num_told = 0  # characters of the window's text that are out
        self._held = ""  # may be the beginning of a stop string

    def put(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is certain now."""
        self._ids += ids
        whole = encoding.decode(self._ids, self.tokenizer)
        # Up to three replacement characters may be the first bytes of one that is not whole yet.
        num_broken = min(3, len(whole) - len(whole.rstrip("\ufffd")))
        new = whole[self._num_told : len(whole) - num_broken]
        self._num_told += len(new)
        if new and not num_broken:
            self._ids, self._border = self._ids[self._border :], len(self._ids) - self._border
            self._num_told = len(encoding.decode(self._ids, self.tokenizer))
        return self._release(new)

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        rest = encoding.decode(self._ids, self.tokenizer)[self._num_told :]
        self._ids, self._border, self._num_told = [], 0, 0
        text = self._release(rest)
        if not self.is_stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [index for stop in self.stop if (index := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        longest = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
