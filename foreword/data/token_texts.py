"""Token texts: each token of a vocabulary by itself: its bytes, its text, its name.

In: a tokenizer. Out: what one id adds to a text, at its start or inside of it, each computed once.
A token that is part of a character has bytes and no text; a special token is not part of a text.
Knows no answer.
"""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any


class TokenTexts:
    """The tokens of one tokenizer.

    Args:
        tokenizer: of transformers; anything that decodes ids will do, at a higher price.
        keeps_special: whether special tokens are part of a text, or the ids of those that are.

    Attributes:
        is_byte_level: a token is bytes, and a text is the bytes of its tokens as UTF-8.
    """

    def __init__(self, tokenizer: Any, keeps_special: bool | frozenset[int] = False) -> None:
        self._tokenizer, self._keeps_special = tokenizer, bool(keeps_special)
        kinds = set(_decoder_kinds(tokenizer))
        self.is_byte_level = kinds == {"ByteLevel"}
        self._has_fallback = "ByteFallback" in kinds
        special = _special_ids(tokenizer)
        kept = special if keeps_special is True else keeps_special or frozenset()
        self._hidden = special - kept
        self._bytes: dict[tuple[int, bool], bytes] = {}
        self._texts: dict[tuple[int, bool], str] = {}
        self._names: dict[tuple[int, bool], str] = {}
        self.anchor = [] if self.is_byte_level else self._find_anchor()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        return str(
            self._tokenizer.decode(
                list(ids),
                skip_special_tokens=not self._keeps_special,
                clean_up_tokenization_spaces=False,
            )
        )

    def is_hidden(self, token_id: int) -> bool:
        """Return whether a token is no part of a text: special, or not of the vocabulary."""
        if token_id in self._hidden:
            return True
        return self._can_name and self._token(token_id) is None

    def fallback_byte(self, token_id: int) -> int | None:
        """Return the byte of a token such as `<0xE2>`, which stands for no more than a byte."""
        token = self._token(token_id) if self._has_fallback else None
        if token is None or len(token) != 6 or token[:3] != "<0x" or token[5] != ">":
            return None
        digits = token[3:5]
        return int(digits, 16) if all(one in _HEX for one in digits) else None

    def text(self, token_id: int, is_first: bool) -> str:
        """Return what a token adds to a text, at its start or inside of it; its half characters are
        replacement characters.
        """
        key = token_id, is_first
        if key not in self._texts:
            self._texts[key] = self._text(token_id, is_first)
        return self._texts[key]

    def content(self, token_id: int, is_first: bool) -> bytes:
        """Return the bytes that a token adds to a text: none where it is no part of one."""
        key = token_id, is_first
        if key not in self._bytes:
            self._bytes[key] = self._content(token_id, is_first)
        return self._bytes[key]

    def name(self, token_id: int, is_first: bool) -> str:
        r"""Return what answers call a token: its text, `bytes:\xf0\x9f` for a part of a character,
        or `token_id:7` for an id without a token.
        """
        key = token_id, is_first
        if key not in self._names:
            self._names[key] = self._name(token_id, is_first)
        return self._names[key]

    def _name(self, token_id: int, is_first: bool) -> str:
        if self.is_hidden(token_id):
            token = self._token(token_id)
            return token if token is not None else f"token_id:{token_id}"
        content = self.content(token_id, is_first)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _content(self, token_id: int, is_first: bool) -> bytes:
        if self.is_hidden(token_id):
            return b""
        if self.is_byte_level:
            return _bytes_of(self._token(token_id) or "")
        if (byte := self.fallback_byte(token_id)) is not None:
            is_stripped = is_first and not self.decode([token_id])  # a space before all
            return b"" if is_stripped else bytes([byte])
        return self.text(token_id, is_first).encode()

    def _text(self, token_id: int, is_first: bool) -> str:
        if self.is_hidden(token_id):
            return ""
        if self.is_byte_level:
            return self.content(token_id, is_first).decode(errors="replace")
        before = [] if is_first else self.anchor
        return self.decode([*before, token_id])[len(self.decode(before)) if before else 0 :]

    def _find_anchor(self) -> list[int]:
        """Return one token with a visible text, after which others are not at a text's start."""
        try:
            found = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        except Exception:  # it only decodes
            return []
        return [one for one in found if self.decode([one]).strip()][-1:]

    @property
    def _can_name(self) -> bool:
        return hasattr(self._tokenizer, "convert_ids_to_tokens")

    def _token(self, token_id: int) -> str | None:
        if not self._can_name:
            return None
        found: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return found


_HEX = frozenset("0123456789abcdefABCDEF")


@lru_cache(maxsize=8)
def token_texts(tokenizer: Any, keeps_special: bool | frozenset[int] = False) -> TokenTexts:
    """Return the tokens of a tokenizer, the same ones each time."""
    return TokenTexts(tokenizer, keeps_special)


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that `skip_special_tokens` leaves out."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return frozenset(getattr(tokenizer, "all_special_ids", ()))
    added = tokenizer.added_tokens_decoder
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _decoder_kinds(tokenizer: Any) -> Iterator[str]:
    """Yield the kinds of steps by which a tokenizer makes a text of tokens."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return
    waiting = [json.loads(decoder.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting += step["decoders"]
        else:
            yield step["type"]


def _bytes_of(token: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; what it does not write is text."""
    try:
        return bytes(_BYTES[char] for char in token)
    except KeyError:
        return token.encode()


def _byte_characters() -> dict[str, int]:
    """Return how byte-level vocabularies write bytes: visible Latin-1 as it is, the others from
    U+0100 on (GPT-2's `bytes_to_unicode`).
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    shown = {chr(byte): byte for byte in visible}
    return shown | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}


_BYTES = _byte_characters()
