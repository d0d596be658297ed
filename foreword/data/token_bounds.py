"""Token bounds: how many tokens a text has at least, told without tokenizing it.

In: a text and a tokenizer. Out: a lower bound, so that a text that cannot fit is refused before the
work. It is the text's size by the most that one token covers, of bytes and of letters, whichever
says more: exact is only that no text has fewer. 0 where a tokenizer may drop or merge text: all but
BPE that covers every byte, without normalizers that shorten. Knows no model.
"""

import json
import string
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from foreword.errors import InputError

LETTERS = string.ascii_letters.encode()
KEEPING = {"NFC", "Prepend", "Replace"}  # normalizers that are followed here
CUTTING = {"ByteLevel", "Split", "Digits", "Punctuation", "Metaspace"}  # and drop nothing


@dataclass(frozen=True)
class TokenBound:
    """The most that one token covers.

    Attributes:
        num_bytes: of UTF-8; 0 where nothing is known.
        num_letters: of a to z and A to Z.
        keeps_space: whether whitespace beside a special token is not swallowed by it.
        composes: whether a text is composed first (NFC).
    """

    num_bytes: int
    num_letters: int
    keeps_space: bool
    composes: bool = False


def check_length(text: str, tokenizer: Any, max_tokens: int) -> None:
    """Refuse a text that has certainly more tokens than there is room for.

    Raises:
        InputError: says how many it has at least.
    """
    if (number := least_tokens(text, tokenizer, max_tokens)) > max_tokens:
        raise InputError(
            f"a text of {len(text)} characters has at least {number} tokens; at most {max_tokens} "
            "are served"
        )


def least_tokens(text: str, tokenizer: Any, enough: int = 0) -> int:
    """Return a lower bound of a text's tokens; 0 for texts of at most `enough` bytes."""
    if 4 * len(text) <= enough:
        return 0
    bound = _bound(tokenizer)
    if not bound.num_bytes:
        return 0
    text = unicodedata.normalize("NFC", text) if bound.composes else text
    content = text.encode(errors="replace")
    letters = len(content) - len(content.translate(None, LETTERS))
    if not bound.keeps_space:
        content = "".join(text.split()).encode(errors="replace")
    return max(-(-len(content) // bound.num_bytes), -(-letters // bound.num_letters))


NOTHING = TokenBound(0, 0, True)


@lru_cache(maxsize=8)
def _bound(tokenizer: Any) -> TokenBound:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return NOTHING
    normalizers = list(_steps(backend.normalizer, "normalizers"))
    cutters = list(_steps(backend.pre_tokenizer, "pretokenizers"))
    kinds = {step["type"] for step in cutters}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    is_byte_level = "ByteLevel" in kinds
    if not (
        all(map(_keeps, normalizers))
        and kinds <= CUTTING
        and all(step.get("behavior") != "Removed" for step in cutters)
        and _covers_all(backend, vocabulary, is_byte_level)
    ):
        return NOTHING
    added = backend.get_added_tokens_decoder()
    written = {token.content for token in added.values()}
    # A byte-level vocabulary writes each byte as one character.
    sizes = [
        len(token) if is_byte_level and token not in written else len(token.encode())
        for token in vocabulary
    ]
    letters = [sum(char in _LETTERS for char in token) for token in vocabulary]
    keeps = not any(token.lstrip or token.rstrip for token in added.values())
    composes = any(step["type"] == "NFC" for step in normalizers)
    return TokenBound(max(sizes), max(1, *letters), keeps, composes)


_LETTERS = frozenset(string.ascii_letters)


def _steps(part: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or a pre-tokenizer, one after the other."""
    waiting = [json.loads(part.__getstate__())] if part is not None else []
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step[name]
        else:
            yield step


def _keeps(step: dict[str, Any]) -> bool:
    """Return whether a normalizer shortens no text, but for what NFC composes."""
    if step["type"] != "Replace":
        return step["type"] in KEEPING
    old = step["pattern"].get("String")
    return old == " " and bool(step["content"])


def _covers_all(backend: Any, vocabulary: dict[str, int], is_byte_level: bool) -> bool:
    """Return whether every byte has a token, so that nothing is dropped or merged as unknown."""
    if is_byte_level:
        from tokenizers.pre_tokenizers import ByteLevel

        return all(char in vocabulary for char in ByteLevel.alphabet())
    fallback = (f"<0x{byte:02X}>" for byte in range(256))
    return bool(backend.model.byte_fallback) and all(token in vocabulary for token in fallback)
