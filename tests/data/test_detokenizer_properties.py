"""Any ids, in any pieces: the text of all of them at once, the same places, the same end."""

from typing import Any

import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.data.detokenizer import Place, TextStream
from foreword.data.encoding import decode
from foreword.data.stop_strings import StopStrings
from foreword.data.token_texts import token_texts

TOKENIZERS = {name: build() for name, build in small_tokenizers.BUILDERS.items()}
NUM_IDS = 300  # a few more than the largest has


def streamed(tokenizer: Any, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[str, list[Place]]:
    """Return what a stream of single ids tells; each place as soon as it is told."""
    stream, text, places = TextStream(tokenizer, stop), "", []
    for token_id in ids:
        if stream.is_stopped:
            break
        text += stream.put([token_id])
        new = stream.take_places()
        assert all(place.offset <= len(text) for place in new)
        places += new
    text += stream.end()
    return text, places + stream.take_places()


def stopped(text: str, stop: tuple[str, ...]) -> str | None:
    """Return what is before the stop string that ends first in a text; None where there is none."""
    ends = [
        (end, end - len(one))
        for end in range(len(text) + 1)
        for one in stop
        if text[:end].endswith(one)
    ]
    return text[: min(ends)[1]] if ends else None


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stream_is_the_text_of_all_ids_at_once(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, min(NUM_IDS, len(tokenizer) + 2)), max_size=30))
    text, places = streamed(tokenizer, ids)
    assert text == decode(ids, tokenizer)
    assert len(places) == len(ids)
    offsets = [place.offset for place in places]
    assert offsets == sorted(offsets) and all(0 <= one <= len(text) for one in offsets)
    content = b"".join(
        token_texts(tokenizer).content(token_id, place.is_first)
        for token_id, place in zip(ids, places, strict=True)
    )
    # Where the end of a word is marked, a space belongs to two tokens.
    if "\ufffd" not in text and name != "word ends":
        assert content == text.encode()


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name != "word ends"])
@settings(max_examples=50, deadline=None)
@given(text=st.text(st.sampled_from("ab é日🙂END ."), max_size=20))
def test_a_token_stands_where_its_first_character_does(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found, places = streamed(tokenizer, ids)
    texts, content = token_texts(tokenizer), b""
    for token_id, place in zip(ids, places, strict=True):
        before = len(content.decode(errors="ignore"))
        content += texts.content(token_id, place.is_first)
        assert place.offset == before
    assert content.decode() == found


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stop_strings_do_not_depend_on_the_pieces(data: st.DataObject) -> None:
    alphabet = st.sampled_from("ab")
    text = data.draw(st.text(alphabet, max_size=30))
    stops = data.draw(st.lists(st.text(alphabet, min_size=1, max_size=5), max_size=4))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    before = stopped(text, tuple(stops))
    expected = text if before is None else before
    scanner, found = StopStrings(stops), ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        found += scanner.put(text[start:end])
    assert found + scanner.end() == expected
    assert scanner.is_found == (before is not None)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_stopped_stream_places_its_tokens_inside_of_its_text(
    name: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    of_bytes = token_texts(tokenizer).fallback_byte
    known = [one for one in range(len(tokenizer)) if of_bytes(one) is None]
    ids = data.draw(st.lists(st.sampled_from(known), max_size=20))
    stop = tuple(data.draw(st.lists(st.text("abEND ", min_size=1, max_size=3), max_size=3)))
    text, places = streamed(tokenizer, ids, stop)
    whole, before = decode(ids, tokenizer), stopped(decode(ids, tokenizer), stop)
    assert text == (whole if before is None else before)
    assert all(place.offset <= len(text) for place in places)


@pytest.mark.parametrize("name", ["byte fallback", "byte fallback, nothing stripped"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_stop_string_in_single_bytes_ends_the_text_at_its_last_byte(
    name: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    pieces = ["<0x0A>", "<0x20>", "<0x61>", "<0xC3>", "<0xA9>", "<s>", "a", "▁", "▁b"]
    known = tokenizer.convert_tokens_to_ids(pieces)
    ids = data.draw(st.lists(st.sampled_from(known), max_size=12))
    stop = tuple(data.draw(st.lists(st.text("\n aé", min_size=1, max_size=3), max_size=3)))
    expected, num_ids = decode(ids, tokenizer), len(ids)
    for size in range(1, len(ids) + 1):
        if (before := stopped(decode(ids[:size], tokenizer), stop)) is not None:
            expected, num_ids = before, size
            break
    stream, text, num_taken = TextStream(tokenizer, stop), "", 0
    while num_taken < len(ids) and not stream.is_stopped:
        text += stream.put([ids[num_taken]])
        num_taken += 1
    places = stream.take_places() if stream.is_stopped else None
    assert (text + stream.end(), num_taken) == (expected, num_ids)
    if places is not None:
        assert len(places) == num_taken
        assert all(place.offset <= len(expected) for place in places)
