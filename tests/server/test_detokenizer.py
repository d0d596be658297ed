"""Ids to text, piece by piece: the pieces are the whole, and a stop string never shows."""

import random

import pytest
from tiny_tokenizer import tiny_tokenizer

from foreword.data.encoding import decode
from foreword.server.detokenizer import TextStream

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
