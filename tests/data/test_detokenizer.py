"""Ids to text, piece by piece: the pieces are the whole, and a stop string never shows."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import small_tokenizers
from tiny_tokenizer import tiny_tokenizer

from foreword.data.detokenizer import TextStream
from foreword.data.encoding import decode

TOKENIZER = tiny_tokenizer()


def pieces(ids: list[int], stop: list[str] | None = None, size: int = 1) -> list[str]:
    stream = TextStream(TOKENIZER, stop or [])
    found = [stream.put(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [*found, stream.end()]


def ids_of(text: str) -> list[int]:
    found: list[int] = TOKENIZER(text)["input_ids"]
    return found


@pytest.mark.parametrize("text", ["plain", "ä€😀 mixed 日本", "\n\n yes", "👨‍👩‍👧"])
def test_the_pieces_are_the_whole_and_never_half_a_character(text: str) -> None:
    found = pieces(ids_of(text))
    assert "".join(found) == text and not any("\ufffd" in piece for piece in found)


def test_text_comes_as_soon_as_it_is_certain() -> None:
    assert pieces(ids_of("a€b")) == ["a", "", "", "€", "b", ""]


@pytest.mark.parametrize("seed", range(20))
def test_any_ids_give_what_decoding_them_at_once_gives(seed: int) -> None:
    chance = random.Random(seed)
    ids = [chance.randrange(len(TOKENIZER)) for _ in range(60)]
    assert "".join(pieces(ids, size=chance.choice([1, 2, 7]))) == decode(ids, TOKENIZER)


def test_broken_characters_do_not_hold_the_text_up() -> None:
    half = ids_of("€")[:1]
    stream = TextStream(TOKENIZER)
    found = [stream.put(half) for _ in range(9)]
    assert found == [""] * 3 + ["\ufffd"] * 6 and stream.end() == "\ufffd" * 3


def test_a_broken_character_at_the_end_is_told_at_the_end() -> None:
    assert pieces(ids_of("a€")[:-1]) == ["a", "", "", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ["END"], "one "),
        ("one EN", ["END"], "one EN"),
        ("aab", ["ab"], "a"),
        ("abcabd", ["abd"], "abc"),
        ("x yes y", [" yes"], "x"),
        ("first second", ["second", "first"], ""),
        ("one two", ["two", "one t"], ""),
        ("a€b", ["€"], "a"),
    ],
)
def test_a_stop_string_is_found_across_borders(text: str, stop: list[str], expected: str) -> None:
    for size in (1, 2, 3, 100):
        stream = TextStream(TOKENIZER, stop)
        ids = ids_of(text)
        found = [stream.put(ids[start : start + size]) for start in range(0, len(ids), size)]
        assert "".join(found) + stream.end() == expected
        assert stream.is_stopped == (expected != text)


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    assert pieces(ids_of("xENy"), ["END"]) == ["x", "", "", "ENy", ""]


# Work --------------------------------------------------------------------------------------------


class Counting:
    """A tokenizer that counts the ids that it decodes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.num_decoded = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._tokenizer(*arguments, **options)

    def decode(self, ids: Sequence[int], **options: Any) -> Any:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids, **options)


class OnlyDecodes:
    """A tokenizer that nothing is known of: of bytes, of which 0 and 1 are special."""

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        return bytes(one for one in ids if one > 1).decode(errors="replace")


RUNS = {
    "special": ["</s>", "<|im_end|>"],
    "no token": [],
    "half characters": ["<0xF0>", "\u00f0"],
    "spaces": ["▁", "Ġ", "##"],
    "one word": ["a"],
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", small_tokenizers.BUILDERS)
def test_a_tokens_work_does_not_depend_on_those_before_it(name: str, run: str) -> None:
    plain = small_tokenizers.BUILDERS[name]()
    tokenizer, num, known = Counting(plain), 2000, plain.get_vocab()
    ids = [*(known[token] for token in RUNS[run] if token in known), len(plain) + 5][:1] * num
    stream = TextStream(tokenizer, ["stop here"])
    found = "".join(stream.put([one]) for one in ids)
    assert found + stream.end() == decode(ids, plain)
    assert tokenizer.num_decoded < 12 * num
    assert len(stream.take_places()) == num


@pytest.mark.parametrize("run", [[0], [0xF0], [0xF0, 0x9F], [0x20], [0x61], [0xC3, 0xA9]])
def test_an_unknown_tokenizers_work_does_not_grow_either(run: list[int]) -> None:
    tokenizer: Any = Counting(OnlyDecodes())
    ids = run * 1000 + [*"é🙂x".encode()]
    stream = TextStream(tokenizer)
    found = "".join(stream.put([one]) for one in ids)
    assert found + stream.end() == OnlyDecodes().decode(ids)
    assert tokenizer.num_decoded < 24 * len(ids)


def test_text_after_many_tokens_without_any_comes_at_once() -> None:
    stream = TextStream(OnlyDecodes())
    assert [stream.put([0]) for _ in range(1000)] == [""] * 1000
    assert stream.put([0x61]) == "a"


def test_a_run_of_bytes_is_a_text_as_a_whole_or_not_at_all() -> None:
    """As byte fallback decodes it: one bad byte spoils those beside it, which so must wait."""
    tokenizer = small_tokenizers.byte_fallback()
    ids = tokenizer.convert_tokens_to_ids(["<0xE2>", "<0x82>", "<0xAC>", "<0xFF>", "a"])
    for run, expected in ((ids, "\ufffd" * 4 + "a"), (ids[:3] + ids[4:], "€a")):
        stream = TextStream(tokenizer)
        assert [stream.put([one]) for one in run] == [""] * (len(run) - 1) + [expected]


@pytest.mark.parametrize("stops", [["abcd", "bc"], ["bc", "abcd"]])
def test_of_two_stop_strings_the_first_to_end_counts_whatever_the_pieces(stops: list[str]) -> None:
    ids = ids_of("xabcd")
    for size in (1, 2, 3, 5):
        assert "".join(pieces(ids, stops, size)) == "xa"
    assert "".join(pieces(ids, ["cd", "abcd"])) == "x"  # both end there: the longest
