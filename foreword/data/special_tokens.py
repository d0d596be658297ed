"""Special tokens: text that spells one is read as the plain text that it is, not as the token.

In: the text of a row, and a tokenizer. Out: token ids in which the only special tokens are those
that a template itself writes. `hide` puts a mark into a text in place of each special token that it
spells, before a template is filled; `read` tokenizes the filled template and reads each mark as
plain text. A text that spells none, which is nearly every one, passes through unchanged.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from foreword.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A mark is these two around the number of a token; Unicode has no characters there.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_MARK = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class Spelling:
    """The special tokens of one tokenizer, and where a text spells them."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        written = str(tokenizer.chat_template)
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = [token for token, is_special in added.items() if is_special]
        special += [token for token in tokenizer.all_special_tokens if token not in added]
        self.special = _any_of(special)
        # Turn marks that are no special tokens, as some templates write them.
        marks = [token for token in added if token not in special and token in written]
        self.every = _any_of([*special, *marks])


_known: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[object, Spelling]]" = WeakKeyDictionary()


def spelling(tokenizer: "PreTrainedTokenizerBase") -> Spelling:
    """Return what a tokenizer's special tokens look like, worked out once."""
    state = (len(tokenizer), id(tokenizer.chat_template))
    found = _known.get(tokenizer)
    if found is None or found[0] != state:
        _known[tokenizer] = found = (state, Spelling(tokenizer))
    return found[1]


def hide(text: str, tokenizer: "PreTrainedTokenizerBase", *, is_answer: bool = False) -> str:
    """Return a text with a mark in place of each special token that it spells.

    Args:
        text: of a message, or of a template's field.
        tokenizer: whose special tokens are meant.
        is_answer: keep what a model writes in an answer but is not special, as marks of thinking.

    Raises:
        DataError: the text holds U+FDD0 or U+FDD1, which are no characters.
    """
    if _OPEN in text or _CLOSE in text:
        raise DataError("the text holds U+FDD0 or U+FDD1, which are no characters: leave them out")
    known = spelling(tokenizer)
    pattern = known.special if is_answer else known.every
    if not pattern.search(text):
        return text
    return pattern.sub(lambda found: _mark(found[0]), text)


def shown(text: str) -> str:
    """Return a text with what its marks stand for."""
    return _MARK.sub(_spelled, text)


def spells(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a text spells a special token or a turn mark."""
    return bool(spelling(tokenizer).every.search(text))


def begins_with_special(text: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a text begins as a filled template does."""
    return bool(spelling(tokenizer).special.match(text))


def ends_with_special(text: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the special token that a text ends with, white space aside, or ""."""
    stripped = text.rstrip()
    last = ""
    for found in spelling(tokenizer).special.finditer(stripped):
        last = found[0] if found.end() == len(stripped) else ""
    return last


def read(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of a filled template; marks are read as plain text.

    Raises:
        DataError: the tokenizer reads a special token into the plain text all the same.
    """
    if _OPEN not in text:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
    ids = []
    for piece, is_own in _pieces(text, tokenizer):
        if is_own:
            ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            ids += plain(shown(piece), tokenizer)
    return ids


def plain(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Return the ids of a text that has no special token, whatever it spells.

    Raises:
        DataError: the tokenizer reads one all the same.
    """
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    ids: list[int] = tokenizer(text, **options)["input_ids"]
    pattern = spelling(tokenizer).every
    if not (spelled := pattern.search(text)):
        return ids
    if not _special_ids(tokenizer, pattern, text) & set(ids):
        return ids
    # A turn mark that is not special is never split by the tokenizer: it is cut here.
    cut = spelled.start() + 1
    ids = [*_plain_part(text[:cut], tokenizer), *plain(text[cut:], tokenizer)]
    if _special_ids(tokenizer, pattern, text) & set(ids):
        raise DataError(
            f"the text spells the special token {spelled[0]!r}, which the tokenizer cannot read as "
            "plain text: leave it out, or give --special-tokens"
        )
    return ids


def _plain_part(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _special_ids(
    tokenizer: "PreTrainedTokenizerBase", pattern: "re.Pattern[str]", text: str
) -> set[int]:
    """Return the ids of the special tokens that a text spells."""
    return {tokenizer.convert_tokens_to_ids(found[0]) for found in pattern.finditer(text)}


def _pieces(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """Cut a filled template at the special tokens around its marks; and say of each piece whether
    the template's own tokens are in it.
    """
    own = [found.span() for found in spelling(tokenizer).every.finditer(text)]
    pieces: list[tuple[str, bool]] = []
    done = 0
    for mark in _MARK.finditer(text):
        if mark.start() < done:
            continue
        start = max((end for _, end in own if end <= mark.start()), default=0)
        stop = min((begin for begin, _ in own if begin >= mark.end()), default=len(text))
        pieces += [(text[done:start], True), (text[start:stop], False)]
        done = stop
    pieces.append((text[done:], True))
    return [piece for piece in pieces if piece[0]]


def _any_of(tokens: Sequence[str]) -> "re.Pattern[str]":
    """Return a pattern that finds any of these tokens, the longest first; nothing for none."""
    ordered = sorted({token for token in tokens if token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def _mark(token: str) -> str:
    return f"{_OPEN}{int.from_bytes(token.encode(), 'big')}{_CLOSE}"


def _spelled(mark: "re.Match[str]") -> str:
    number = int(mark[1])
    return number.to_bytes((number.bit_length() + 7) // 8, "big").decode()
