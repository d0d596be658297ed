"""Special tokens: text that spells one is read as the plain text that it is, not as the token.

In: the text of a row, a tokenizer and its chat template. Out: token ids in which the only special
tokens are those that a template itself writes. `hide` puts a mark into a text in place of each
special token that it spells, before a template is filled; `read` tokenizes the filled template and
reads each mark as plain text. A text that spells none, which is nearly every one, is unchanged.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from foreword.data.template_texts import texts_of
from foreword.data.tokenizing import token_ids
from foreword.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A mark is these two around the number of a token; Unicode has no characters there.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
ESCAPED = "\\ufdd0"
"""How a template that escapes text, as in JSON of ASCII, writes the beginning of a mark."""
_ANCHOR = "\n"
_TURN_MARK = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


class SpecialTokens:
    """The special tokens of one tokenizer, and the turn marks of a template that are none."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", template: str) -> None:
        self.tokenizer = tokenizer
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = [token for token, is_special in added.items() if is_special]
        special += [token for token in tokenizer.all_special_tokens if token not in added]
        marks = [
            token
            for token, is_special in added.items()
            if not is_special and _TURN_MARK.fullmatch(token) and token in template
        ]
        # A token of this kind is also found in a text that only becomes it: "<|IM_END|>".
        is_loose = any(token.normalized for token in tokenizer.added_tokens_decoder.values())
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._normalizer = backend.normalizer if backend is not None and is_loose else None
        become = [self._normalizer.normalize_str(token) for token in special if self._normalizer]
        self._normalized = _any_of([*special, *become])
        self._special = _any_of(special)
        self._every = _any_of([*special, *marks])

    def spells(self, text: str) -> bool:
        """Return whether a text spells a special token or a turn mark."""
        return bool(self._every.search(text))

    def begins(self, text: str) -> bool:
        """Return whether a text begins with a special token, as a filled template does."""
        return bool(self._special.match(text))

    def end_of(self, text: str) -> str:
        """Return the special token that a text ends with, white space aside, or ""."""
        stripped = text.rstrip()
        found = [one[0] for one in self._special.finditer(stripped) if one.end() == len(stripped)]
        return found[0] if found else ""

    def hide(self, text: str, *, is_answer: bool = False) -> str:
        """Return a text with a mark in place of each special token that it spells.

        Args:
            text: of a message, or of a template's field.
            is_answer: keep what a model writes in an answer but is not special, as marks of
                thinking.

        Raises:
            DataError: the text holds U+FDD0 or U+FDD1, which are no characters, or spells a special
                token once the tokenizer has normalized it.
        """
        if _OPEN in text or _CLOSE in text:
            raise DataError(
                "the text holds U+FDD0 or U+FDD1, which are no characters: leave them out"
            )
        pattern = self._special if is_answer else self._every
        hidden = pattern.sub(lambda found: _mark(found[0]), text)
        become = self._normalizer.normalize_str(hidden) if self._normalizer else ""
        if self._normalized.search(become):
            raise DataError(
                "the text spells a special token once the tokenizer has normalized it: leave it "
                "out, or give --special-tokens"
            )
        return hidden

    def read(self, text: str) -> list[int]:
        """Return the ids of a filled template; marks are read as plain text.

        Raises:
            DataError: the tokenizer reads a special token into the plain text all the same.
        """
        ids: list[int] = []
        for piece, is_own in self._pieces(text) if _OPEN in text else [(text, True)]:
            ids += self._ids(piece) if is_own else self._plain(shown(piece))
        return ids

    def read_behind(self, text: str) -> list[int]:
        """Return the ids of a text that follows another: without the space that some tokenizers put
        before the beginning of a text.
        """
        alone, start, whole = self.read(text), self._ids(_ANCHOR), self.read(_ANCHOR + text)
        behind = whole[len(start) :]
        is_apart = whole[: len(start)] == start and self._said(behind) == self._said(alone)
        return behind if is_apart else alone

    def _said(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids)).strip()

    def _plain(self, text: str) -> list[int]:
        """Return the ids of a text that has no special token, whatever it spells."""
        ids = self._ids(text, split_special_tokens=True)
        if not self._is_read(text, ids):
            return ids
        # A turn mark that is not special is never split by the tokenizer: it is cut here.
        cuts = [found.start() + 1 for found in self._every.finditer(text)]
        parts = [text[start:stop] for start, stop in pairwise([0, *cuts, len(text)])]
        ids = [one for part in parts for one in self._ids(part, split_special_tokens=True)]
        if self._is_read(text, ids):
            raise DataError(
                "the text spells a special token that the tokenizer cannot read as plain text: "
                "leave it out, or give --special-tokens"
            )
        return ids

    def _is_read(self, text: str, ids: list[int]) -> bool:
        """Return whether ids hold a special token that a text spells."""
        spelled = {found[0] for found in self._every.finditer(text)}
        return any(self.tokenizer.convert_tokens_to_ids(token) in ids for token in spelled)

    def _ids(self, text: str, **options: Any) -> list[int]:
        return token_ids(self.tokenizer, text, add_special_tokens=False, **options)

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        """Cut a filled template at the special tokens around its marks, and say of each piece
        whether the template's own tokens are in it.
        """
        own = [found.span() for found in self._every.finditer(text)]
        starts, ends = [0, *(end for _, end in own)], [*(begin for begin, _ in own), len(text)]
        pieces: list[tuple[str, bool]] = []
        done = 0
        for mark in _MARK.finditer(text):
            if mark.start() < done:
                continue
            start = starts[bisect_right(starts, mark.start()) - 1]
            stop = ends[bisect_left(ends, mark.end())]
            pieces += [(text[done:start], True), (text[start:stop], False)]
            done = stop
        pieces.append((text[done:], True))
        return [piece for piece in pieces if piece[0]]


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, SpecialTokens]]"
_known = WeakKeyDictionary()


def special_tokens_of(
    tokenizer: "PreTrainedTokenizerBase", template: str | None = None
) -> SpecialTokens:
    """Return the special tokens of a tokenizer with a chat template, worked out once.

    Args:
        tokenizer: of the base.
        template: the text of the chat template; None: all of the tokenizer's own.
    """
    written = template or "\n".join(texts_of(tokenizer))
    known = _known.setdefault(tokenizer, {})
    state = (len(tokenizer), written)
    if state not in known:
        known.clear()  # a tokenizer rarely changes, and has few templates
        known[state] = SpecialTokens(tokenizer, written)
    return known[state]


def shown(text: str) -> str:
    """Return a text with what its marks stand for."""
    return _MARK.sub(_spelled, text)


def _any_of(tokens: Sequence[str]) -> "re.Pattern[str]":
    """Return a pattern that finds any of these tokens, the longest first; nothing for none."""
    ordered = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _mark(token: str) -> str:
    return f"{_OPEN}{int.from_bytes(token.encode(), 'big')}{_CLOSE}"


def _spelled(mark: "re.Match[str]") -> str:
    number = int(mark[1])
    return number.to_bytes((number.bit_length() + 7) // 8, "big").decode()
