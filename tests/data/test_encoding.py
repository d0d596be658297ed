"""Encoding: a row begins with the ids that generation sees, and its labels are what follows."""

import random
import statistics
from dataclasses import replace
from typing import Any

import pytest
import small_tokenizers
import torch
from tiny_tokenizer import CHATML, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.normalizers import Prepend, Strip
from transformers import PreTrainedTokenizerFast

from foreword.config import EncodingConfig
from foreword.data.batches import collate, epoch_order
from foreword.data.encoding import Row, decode, encode, encode_examples, encode_prompt, end_ids
from foreword.data.examples import Example
from foreword.data.media_parts import Message
from foreword.errors import DataError, InputError

PLAIN = EncodingConfig()
TEMPLATE = EncodingConfig(row_template="<|im_start|>{prompt}<|im_end|>{x}\n")
USER: Message = {"role": "user", "content": "Good?"}
CHAT = ({"role": "system", "content": "Be brief."}, USER)
END = 2  # <|im_end|>, which is also the padding id


def row_of(prompt: Any, completion: str, config: EncodingConfig = PLAIN, **options: Any) -> Row:
    return encode(Example(prompt, completion, "rows.csv:2"), tiny_tokenizer(**options), config, 999)


def labels_of(row: Row) -> list[int]:
    return list(row.input_ids[-row.num_labels :])


def rows_of_lengths(*lengths: int) -> list[Row]:
    return [Row.from_ids(range(length), [7], f"row {n}") for n, length in enumerate(lengths)]


# --- prompts -----------------------------------------------------------------------------------


def test_messages_are_what_the_chat_template_gives() -> None:
    tokenizer = tiny_tokenizer("<|bos|> $A <|im_end|>")
    expected = tokenizer.apply_chat_template(
        list(CHAT), add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(CHAT, tokenizer, PLAIN) == expected


def test_text_parts_read_as_text() -> None:
    parts = [{"type": "text", "text": "Go"}, {"type": "text", "text": "od"}]
    same = [{"role": "user", "content": "Go\nod"}]
    encoded = encode_prompt([{"role": "user", "content": parts}], tiny_tokenizer(), PLAIN)
    assert encoded == encode_prompt(same, tiny_tokenizer(), PLAIN)


def test_plain_text_gets_a_start_token_but_no_end_token() -> None:
    tokenizer = tiny_tokenizer("<|bos|> $A <|im_end|>")
    text_ids = tiny_tokenizer()("ab")["input_ids"]
    assert encode_prompt("ab", tokenizer, PLAIN) == [0, *text_ids]
    assert encode_prompt("", tokenizer, PLAIN) == [0]


@pytest.mark.parametrize("prompt", ["{y}", [{"role": "user", "content": "{y}"}]])
def test_a_row_template_spells_out_every_special_token_but_the_start(prompt: Any) -> None:
    expected = tiny_tokenizer()("<|im_start|>{y}<|im_end|>{x}\n")["input_ids"]
    tokenizer = tiny_tokenizer("<|bos|> $A")
    assert encode_prompt(prompt, tokenizer, TEMPLATE) == [0, *expected]
    without = replace(TEMPLATE, start_token=False)
    assert encode_prompt(prompt, tokenizer, without) == expected
    spelled = EncodingConfig(row_template=f"<|bos|>{TEMPLATE.row_template}")
    assert encode_prompt(prompt, tokenizer, spelled) == [0, *expected]


@pytest.mark.parametrize(
    ("prompt", "config", "expected"),
    [
        (CHAT, TEMPLATE, "expected one user message for --row-template, found system, user"),
        ([], TEMPLATE, "found none"),
        ([], PLAIN, "expected at least one message"),
        ([{"role": "tool", "content": "a"}], PLAIN, "template refuses the messages: unknown role"),
        ([{"role": "user", "content": [{"type": "image"}]}], PLAIN, "a part of type 'image'"),
    ],
)
def test_messages_that_a_template_cannot_take_are_refused(
    prompt: Any, config: EncodingConfig, expected: str
) -> None:
    with pytest.raises(DataError, match=f"^[^:]*{expected}"):
        encode_prompt(prompt, tiny_tokenizer(), config)
    with pytest.raises(DataError, match=f"^rows.csv:2: .*{expected}"):
        row_of(prompt, "yes", config)


def test_messages_without_a_chat_template_need_a_row_template() -> None:
    with pytest.raises(InputError, match="no chat template for messages: use --row-template"):
        encode_prompt(CHAT, tiny_tokenizer(chat_template=None), PLAIN)


# --- labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("completion", ["yes", " yes", "\nyes\n", "é {prompt}"])
@pytest.mark.parametrize(
    ("prompt", "config"),
    [(CHAT, PLAIN), ("a:", PLAIN), ("a\n", PLAIN), ("", PLAIN), ("a", TEMPLATE)],
)
def test_a_row_is_the_prompt_of_generation_then_the_answer_as_written(
    prompt: Any, config: EncodingConfig, completion: str
) -> None:
    row, tokenizer = row_of(prompt, completion, config), tiny_tokenizer()
    assert list(row.input_ids[: -row.num_labels]) == encode_prompt(prompt, tokenizer, config)
    assert decode(labels_of(row), tokenizer) == completion
    assert labels_of(row).count(END) == 1 and labels_of(row)[-1] == END


def test_a_token_across_the_border_is_cut_there() -> None:
    assert len(tiny_tokenizer()("a\n\n\nb")["input_ids"]) == 4  # a, \n\n, \n, b
    assert len(row_of("a\n", "\n\nb").input_ids) == 6  # a, \n | \n, \n, b, end


def test_an_answer_is_tokenized_in_its_place() -> None:
    # This normalizer writes a mark at the start of a text, as SentencePiece does.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Prepend("_")
    row = encode(Example("ab", "c", ""), tokenizer, PLAIN, 99)
    assert tokenizer.decode(row.input_ids) == "_abc<|im_end|>"


def test_an_answer_that_ends_itself_is_not_ended_twice() -> None:
    for prompt in ("a", CHAT):
        assert labels_of(row_of(prompt, "yes<|im_end|>")) == labels_of(row_of(prompt, "yes"))


def test_a_chat_answer_ends_as_the_template_ends_it() -> None:
    template = CHATML.replace("~ '<|im_end|>\n'", "~ '!<|im_end|>\n'")
    options = {"chat_template": template, "eos": "<|bos|>"}
    row = row_of(CHAT, "yes", **options)
    assert tiny_tokenizer().decode(labels_of(row)) == "yes!<|im_end|>"
    assert end_ids("text", tiny_tokenizer(**options), PLAIN) == [0]


def test_a_template_that_writes_before_the_answer_leaves_the_labels_alone() -> None:
    template = CHATML.replace("~ message['content']", "~ '<think></think>' ~ message['content']")
    row = row_of([USER], "yes", chat_template=template)
    assert tiny_tokenizer().decode(labels_of(row)) == "yes<|im_end|>"


def test_a_template_without_an_end_takes_the_end_token() -> None:
    template = CHATML.replace("<|im_end|>", "")
    assert end_ids(CHAT, tiny_tokenizer(chat_template=template), PLAIN) == [END]
    with pytest.raises(InputError, match="no end token: set its eos_token"):
        end_ids(CHAT, tiny_tokenizer(chat_template=template, eos=None), PLAIN)


def test_a_template_that_hides_the_answer_is_refused() -> None:
    with pytest.raises(InputError, match="does not show an answer: use --row-template"):
        end_ids(CHAT, tiny_tokenizer(chat_template="<|im_end|>"), PLAIN)


def test_an_answer_without_known_tokens_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Strip()
    with pytest.raises(DataError, match="^s:1: no label left: the tokenizer knows nothing"):
        encode(Example("a", "\u3000", "s:1"), tokenizer, PLAIN, 99)


# --- length ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_length", "context_length", "expected"),
    [
        (
            None,
            6,
            "^rows.csv:2: expected at most 6 tokens, got 7: shorten the row or cut .*--trunc",
        ),
        (6, 99, "expected at most 6 tokens, got 7: shorten the row, raise --max-length or"),
        (99, 6, "expected at most 6 tokens, got 7: shorten the row or cut"),
        (3, 99, "no label left: expected an answer of at most 3 tokens, got 4: shorten it, raise"),
    ],
)
def test_a_row_that_is_too_long_is_refused(
    max_length: int | None, context_length: int, expected: str
) -> None:
    example = Example("abc", "xyz", "rows.csv:2")
    with pytest.raises(DataError, match=expected):
        encode(example, tiny_tokenizer(), EncodingConfig(max_length=max_length), context_length)
    assert encode(example, tiny_tokenizer(), EncodingConfig(max_length=7), 7).num_labels == 4


@pytest.mark.parametrize("limit", [6, 4])
def test_truncation_cuts_the_start_of_the_prompt(limit: int) -> None:
    example = Example("abc", "xyz", "rows.csv:2")
    whole = encode(example, tiny_tokenizer(), PLAIN, 7)
    cut = encode(example, tiny_tokenizer(), EncodingConfig(truncate=True), limit)
    assert (cut.input_ids, cut.num_labels) == (whole.input_ids[-limit:], 4)


def test_truncation_never_cuts_a_label() -> None:
    with pytest.raises(DataError, match="^rows.csv:2: no label left"):
        encode(
            Example("abc", "xyz", "rows.csv:2"), tiny_tokenizer(), EncodingConfig(truncate=True), 3
        )


def test_the_report_counts_rows_tokens_and_labels() -> None:
    examples = [Example("abc", "xyz", "1"), Example("", "x", "2")]
    rows, report = encode_examples(examples, tiny_tokenizer(), EncodingConfig(truncate=True), 6)
    assert [row.source for row in rows] == ["1", "2"]
    assert str(report) == "2 rows, 1 truncated, 8 tokens, 6 of them labels"


def test_rows_of_ids_need_a_label_and_no_tokenizer() -> None:
    assert Row.from_ids([5, 6], [7]) == Row((5, 6, 7), 1, "ids")
    for ids, num_labels in (((5,), 0), ((5,), 2), ((), 0)):
        with pytest.raises(DataError, match="^here: no label left"):
            Row(ids, num_labels, "here")


# --- batches -----------------------------------------------------------------------------------


def test_a_batch_is_padded_on_the_right_and_marks_labels_not_padding() -> None:
    rows = [Row.from_ids([5, END], [6, END]), Row.from_ids([], [END])]
    batch = collate(rows, pad_id=END)
    assert batch.input_ids.tolist() == [[5, END, 6, END], [END, END, END, END]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.label_mask.int().tolist() == [[0, 0, 1, 1], [1, 0, 0, 0]]
    assert (batch.input_ids.dtype, batch.label_mask.dtype) == (torch.int64, torch.bool)
    assert batch.attention_mask.dtype == torch.int64


def test_an_epoch_holds_every_row_once_in_batches_sorted_by_length() -> None:
    rows = rows_of_lengths(*random.Random(0).choices(range(40), k=205))
    batches = epoch_order(rows, batch_size=10, seed=3, epoch=0)
    sources = [row.source for batch in batches for row in batch]
    assert sorted(sources) == sorted(row.source for row in rows)
    assert list(map(len, batches)) == [*[10] * 20, 5]
    lengths = [[len(row.input_ids) for row in batch] for batch in batches]
    assert all(one == sorted(one) for one in lengths)


def test_a_batch_holds_rows_of_all_lengths() -> None:
    batches = epoch_order(rows_of_lengths(*range(200)), batch_size=20, seed=0, epoch=0)
    means = [statistics.fmean(len(row.input_ids) for row in batch) for batch in batches]
    assert statistics.stdev(means) < 25  # about 58 / sqrt(20) at random; 60 where lengths are alike


def test_the_order_follows_seed_and_epoch_only() -> None:
    rows = rows_of_lengths(*range(30))
    first = epoch_order(rows, 4, seed=1, epoch=0)
    state = torch.get_rng_state()
    random.random()
    assert epoch_order(rows, 4, seed=1, epoch=0) == first
    assert torch.equal(state, torch.get_rng_state())
    assert epoch_order(rows, 4, seed=1, epoch=1) != first != epoch_order(rows, 4, seed=2, epoch=0)


def test_an_answer_tokenized_alone_gets_no_space_of_its_own() -> None:
    vocab = {token: i for i, token in enumerate(["</s>", "▁", "▁yes", "yes", "A:"])}
    backend = Tokenizer(models.Unigram([(token, -1.0 - i) for i, token in enumerate(vocab)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    row = encode(Example("A: ", "yes", "1"), tokenizer, PLAIN, 99)
    assert tokenizer.decode(row.input_ids[:-1]) == "A: yes"


@pytest.mark.parametrize("adds", ["<|bos|> $A <|im_start|>", "<|bos|> $A <|im_start|> <|im_end|>"])
def test_whatever_a_tokenizer_puts_behind_a_text_is_not_before_the_answer(adds: str) -> None:
    tokenizer = tiny_tokenizer(adds)
    row = encode(Example("a", "b", "1"), tokenizer, PLAIN, 99)
    assert tokenizer.decode(row.input_ids) == "<|bos|>ab<|im_end|>"
    closed = encode_prompt("a", tokenizer, PLAIN, is_closed=True)
    assert tokenizer.decode(closed) == adds.replace("$A", "a").replace(" ", "")


@pytest.mark.parametrize(
    ("name", "answer", "becomes"),
    [
        ("metaspace", 'a {"b": 1}', "a <unk>"),  # as T5 knows no braces
        ("metaspace", "a\nb", "a<unk"),  # nor line breaks
        ("word pieces", "a\nb", "a b"),
        ("word pieces", "hello x b", "hello <unk> b"),
    ],
)
def test_answers_that_a_tokenizer_cannot_say_are_told(name: str, answer: str, becomes: str) -> None:
    tokenizer = small_tokenizers.BUILDERS[name]()
    examples = [Example("a", "b", "rows.csv:2"), Example("a", answer, "rows.csv:3")]
    _, report = encode_examples(examples, tokenizer, PLAIN, 99)
    [said] = report.notes
    assert "(1 row)" in said and f"{answer!r} of rows.csv:3 becomes" in said
    assert becomes[:4] in said.partition("becomes")[2]


@pytest.mark.parametrize("name", sorted({*small_tokenizers.BUILDERS} - {"word ends"}))
@pytest.mark.parametrize("answer", ["hello", " a", "b ", "é", "a b", "日本 s"])
def test_answers_that_a_tokenizer_says_as_they_are_written_need_no_word(
    name: str, answer: str
) -> None:
    tokenizer = small_tokenizers.BUILDERS[name]()
    _, report = encode_examples([Example("a", answer)], tokenizer, PLAIN, 99)
    assert report.notes == ()


@pytest.mark.parametrize(
    "answer", ["e\u0301", "x<|im_end|>", "<|im_start|>", "\n\nyes", "a\nb", "  a  b "]
)
@pytest.mark.parametrize("prompt", ["a", CHAT], ids=["plain", "chat"])
def test_answers_of_bytes_are_said_whatever_they_spell(prompt: Any, answer: str) -> None:
    _, report = encode_examples([Example(prompt, answer)], tiny_tokenizer(), PLAIN, 99)
    assert report.notes == ()
