"""Detokenizer: one answer's ids to text as they come, without half characters and stop strings.

In: ids as they come. Out: the text that is certain, and where in it each token stands. The work for
an id does not depend on how many came before it. Knows no engine and no HTTP.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from foreword.data.byte_stops import ByteStops
from foreword.data.stop_strings import StopStrings
from foreword.data.token_texts import TokenTexts, token_texts

BROKEN = "\ufffd"
NUM_BROKEN = 3  # replacement characters that may be the first bytes of one that is not whole yet
NUM_WAITING = 8  # tokens without text that are decoded again with each new one


class Place(NamedTuple):
    """Where a token stands in a text.

    Attributes:
        offset: characters before the first one that it makes, or helps to make.
        is_first: whether it begins the text.
    """

    offset: int
    is_first: bool


class IncrementalDecoder(Protocol):
    """Ids to text, as the tokenizer decodes all of them at once.

    Attributes:
        places: of the tokens whose place is known, in order; the reader takes them out.
        num_chars: of the text so far.
    """

    places: deque[Place]
    num_chars: int

    def put(self, token_id: int) -> str:
        """Take the next id; return the text that is certain now."""

    def skip(self) -> None:
        """Take a token that is no part of the text."""

    def waiting(self, num_last: int = 0) -> str:
        """Return what `end` would, without the last tokens; nothing changes."""

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""


class TextStream:
    """One answer's ids, one at a time, to text: never half a character, never a stop string.

    Args:
        tokenizer: what the ids are of.
        stop: strings at which the answer ends, without them; the first to end counts.
        keeps_special: whether special tokens are part of the text, or the ids of those that are.

    Attributes:
        is_stopped: whether a stop string came; nothing follows then.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        keeps_special: bool | frozenset[int] = False,
    ) -> None:
        self._texts = texts = token_texts(tokenizer, keeps_special)
        self._decoder: IncrementalDecoder
        self._decoder = ByteDecoder(texts) if texts.is_byte_level else WindowDecoder(texts)
        self._stops = StopStrings(stop)
        self._byte_stops: ByteStops | None = None  # of the run of bytes that waits
        self._num_out = 0  # characters that are out
        self._is_over = False

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_found

    def put(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is certain now."""
        return "".join(map(self._put, ids))

    def skip(self) -> None:
        """Take a token that is no part of the text: it has a place, and no more."""
        self._decoder.skip()

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        text = self._stops.put(self._decoder.end())
        self._is_over = True
        return self._out(text + self._stops.end())

    def take_places(self) -> list[Place]:
        """Return the places of further tokens that are certain now: all of them at the end.

        None is behind the text that is out, as what is held back may never follow.
        """
        places, taken = self._decoder.places, []
        is_final = self._is_over or self.is_stopped
        while places and (is_final or places[0].offset <= self._num_out):
            place = places.popleft()
            taken.append(place._replace(offset=min(place.offset, self._num_out)))
        return taken

    def _put(self, token_id: int) -> str:
        if self.is_stopped:
            return ""
        text = self._stops.put(self._decoder.put(token_id))
        if self._stops and not self.is_stopped and self._stops_in_bytes(token_id):
            text += self._stops.put(self._decoder.end())
        return self._out(text)

    def _stops_in_bytes(self, token_id: int) -> bool:
        """Return whether a stop string ends with this token in a run of bytes that still waits."""
        if self._texts.is_hidden(token_id):
            return False
        byte = self._texts.fallback_byte(token_id)
        if byte is None:
            self._byte_stops = None
            return False
        if self._byte_stops is None:
            self._byte_stops = ByteStops(self._stops, self._decoder.waiting(1))
        if not self._byte_stops.put(byte):
            return False
        waiting, found = self._decoder.waiting(), self._stops.copy()
        found.put(waiting)
        if not found.is_found:  # the tokenizer has left out a space at the beginning
            self._byte_stops = ByteStops(self._stops, waiting)
        return found.is_found

    def _out(self, text: str) -> str:
        self._num_out += len(text)
        return text


class ByteDecoder:
    """Decodes a byte-level vocabulary: the text is the bytes of its tokens as UTF-8."""

    def __init__(self, texts: TokenTexts) -> None:
        self.places: deque[Place] = deque()
        self.num_chars = 0
        self._texts, self._is_first, self._held = texts, True, 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def put(self, token_id: int) -> str:
        if self._texts.is_hidden(token_id):
            self.skip()
            return ""
        content = self._texts.content(token_id, self._is_first)
        was_open, text = self._is_open, self._utf8.decode(content[:1])
        # A byte that does not go on with a character comes behind its replacement.
        is_behind = was_open and len(text) + self._is_open > 1
        self.places.append(Place(self.num_chars + is_behind, self._is_first))
        self._is_first = False
        text += self._utf8.decode(content[1:])
        self.num_chars += len(text)
        return self._certain(text)

    def skip(self) -> None:
        self.places.append(Place(self.num_chars, False))

    def waiting(self, num_last: int = 0) -> str:
        """Return the half characters: here no token waits for another."""
        return BROKEN * (self._held + self._is_open)

    def end(self) -> str:
        rest = self._utf8.decode(b"", True)
        self.num_chars += len(rest)
        held, self._held = BROKEN * self._held, 0
        return held + rest

    @property
    def _is_open(self) -> bool:
        return bool(self._utf8.getstate()[0])

    def _certain(self, text: str) -> str:
        text = BROKEN * self._held + text
        num_held = min(NUM_BROKEN - self._is_open, _num_broken(text))
        self._held = num_held
        return text[: len(text) - num_held]


class WindowDecoder:
    """Decodes any other vocabulary: new tokens behind a few whose text is out.

    A token's text may depend on the one before it, and a run of bytes is a text only as a whole. So
    ids that have given no text yet wait for the next one that can.
    """

    def __init__(self, texts: TokenTexts) -> None:
        self.places: deque[Place] = deque()
        self.num_chars = 0
        self._texts, self._is_first = texts, True
        self._before: list[int] = []  # ids whose text is out
        self._num_told = 0  # characters of the window's text that are out
        self._new: list[int] = []  # ids whose text is not out, or in part
        self._group: list[int | None] = []  # ids whose place is not known; None: without text
        self._group_start = 0  # where their text starts
        self._num_due = 1  # new ids with which they are decoded

    def put(self, token_id: int) -> str:
        if self._texts.is_hidden(token_id):
            self.skip()
            return ""
        self._group.append(token_id)
        self._new.append(token_id)
        if self._texts.fallback_byte(token_id) is not None:
            return ""
        is_visible = bool(self._texts.text(token_id, False).strip(BROKEN + " \n\t"))
        if len(self._new) < self._num_due and not is_visible:
            return ""
        return self._decode()

    def skip(self) -> None:
        self._group.append(None)
        if not self._new:
            self._place()

    def waiting(self, num_last: int = 0) -> str:
        new = self._new[: len(self._new) - num_last]
        return self._texts.decode(self._before + new)[self._num_told :] if new else ""

    def end(self) -> str:
        text = self.waiting()
        self.num_chars += len(text)
        self._place()
        self._new = []
        return text

    def _decode(self) -> str:
        whole = self._texts.decode(self._before + self._new)
        num_held = min(NUM_BROKEN, _num_broken(whole))
        text = whole[self._num_told : len(whole) - num_held]
        self.num_chars += len(text)
        self._num_told += len(text)
        is_long = len(self._new) >= 2 * NUM_WAITING
        if (text and not num_held) or (num_held and is_long):
            self._place()
            self._move(self._new[-NUM_WAITING:] if num_held else self._new)
        elif len(self._new) >= NUM_WAITING:
            self._num_due = 2 * len(self._new)
        return text

    def _move(self, kept: list[int]) -> None:
        """Begin a new window behind ids whose text is out, but for what may be a half character."""
        self._before, self._new, self._num_due = [*self._texts.anchor, *kept], [], 1
        whole = self._texts.decode(self._before)
        self._num_told = len(whole) - min(NUM_BROKEN, _num_broken(whole))

    def _place(self) -> None:
        """Tell the places of the waiting tokens: each behind the texts of those before it."""
        offset = self._group_start
        for token_id, size in zip(self._group, self._sizes(), strict=True):
            is_first = self._is_first and token_id is not None
            self.places.append(Place(min(offset, self.num_chars), is_first))
            self._is_first &= not is_first
            offset += size
        self._group, self._group_start = [], self.num_chars

    def _sizes(self) -> list[int]:
        """Return how many characters each waiting token completes."""
        sizes, is_first = [0] * len(self._group), self._is_first
        run: list[tuple[int, int]] = []  # bytes beside each other, with their places in the group
        for index, token_id in enumerate(self._group):
            if token_id is None:
                continue
            if (byte := self._texts.fallback_byte(token_id)) is not None:
                run.append((index, byte))
            else:
                _size_run(sizes, run)
                sizes[index], run = len(self._texts.text(token_id, is_first)), []
            is_first = False
        _size_run(sizes, run)
        return sizes


def _size_run(sizes: list[int], run: list[tuple[int, int]]) -> None:
    """Fill in the sizes of a run of bytes, which is a text as a whole or not at all."""
    content = bytes(byte for _, byte in run)
    try:
        content.decode()
        ends = [*(not 0x80 <= after < 0xC0 for after in content[1:]), True]
    except UnicodeDecodeError:
        ends = [True] * len(run)
    for (index, _), is_end in zip(run, ends, strict=False):
        sizes[index] = int(is_end)


def _num_broken(text: str) -> int:
    """Return how many replacement characters a text ends with."""
    return len(text) - len(text.rstrip(BROKEN))
