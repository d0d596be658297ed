"""Named text: an answer behind it is the bare model's with the text before the row, id for id."""

import json
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import CHATML, tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example, SoftPrompt, chat, text_prompt
from foreword.data.encoding import encode, encode_prompt
from foreword.errors import DataError, InputError, UnsupportedError
from foreword.prompt.store import Store

TEXT = "Answer in one word.\nNever shout. <|im_end|>"  # spells a special token: it is text
SYSTEM = {"role": "system", "content": TEXT}
USER = {"role": "user", "content": "Good?"}
TURNS = [SYSTEM, USER, {"role": "assistant", "content": "yes"}]
GENERATION = EncodingConfig(opening="generation")


def backbone(template: str | None = CHATML, family: str = "llama") -> Backbone:
    tokenizer = tiny_tokenizer("<|bos|> $A", chat_template=template)
    return Backbone(tiny_models.build(family, vocab_size=len(tokenizer)), tokenizer)


def slow(model: Backbone, ids: list[int], num_new: int = 8) -> list[int]:
    return oracle.greedy(model.model, None, torch.tensor(ids), num_new)


def behind(model: Backbone, prompt: SoftPrompt, rows: Any, num_new: int = 8) -> list[int]:
    ids = chat.encode(model, rows, chat.encoding_of(prompt))[0]
    return oracle.greedy(model.model, prompt, torch.tensor(ids), num_new)


@pytest.mark.parametrize(
    ("before", "rows", "whole"),
    [
        (TEXT, [USER], [SYSTEM, USER]),
        (TEXT, [USER, *TURNS[2:], USER], [*TURNS, USER]),
        (
            TEXT,
            [{"role": "system", "content": "Own."}, USER],
            [SYSTEM | {"content": f"{TEXT}\n\nOwn."}, USER],
        ),
        (TURNS, [USER], [*TURNS, USER]),
    ],
)
def test_an_answer_is_that_of_the_text_before_the_row(
    before: Any, rows: list[Any], whole: list[Any]
) -> None:
    model = backbone()
    prompt = text_prompt(model, before)
    ids = encode_prompt(whole, model.tokenizer, GENERATION)
    row = chat.encode(model, rows, chat.encoding_of(prompt))[0]
    assert len(row) + prompt.num_virtual_tokens == len(ids) and ids[-len(row) :] == row
    assert behind(model, prompt, rows) == slow(model, ids)
    [answer] = chat.answers(model, prompt, [rows], max_new_tokens=8)
    [told] = chat.answers(model, None, [whole], max_new_tokens=8)
    assert answer == told


def test_plain_text_stands_before_plain_text() -> None:
    model = backbone(None)
    prompt = text_prompt(model, "Translate.")
    ids = encode_prompt("Translate.\n\nabc", model.tokenizer, GENERATION)
    assert ids[0] == 0 and behind(model, prompt, "abc") == slow(model, ids)
    asked = USER | {"content": "abc"}
    assert behind(model, prompt, [asked]) == behind(model, prompt, "abc")
    with pytest.raises(DataError, match="one user message for rows of plain text, found system"):
        behind(model, prompt, [SYSTEM, asked])


def test_without_a_system_turn_a_text_stands_before_the_question() -> None:
    model = backbone(CHATML.replace("['system', ", "["))
    prompt = text_prompt(model, "Be brief.")
    asked = [USER | {"content": "Be brief.\n\nGood?"}]
    ids = encode_prompt(asked, model.tokenizer, GENERATION)
    assert behind(model, prompt, [USER]) == slow(model, ids)


def test_rows_of_training_begin_behind_the_text() -> None:
    model = backbone()
    config = chat.encoding_of(text_prompt(model, TEXT))
    row = encode(Example((USER,), "yes", "1"), model.tokenizer, config, 999)
    whole = encode(Example((SYSTEM, USER), "yes", "1"), model.tokenizer, GENERATION, 999)
    assert whole.input_ids[-len(row.input_ids) :] == row.input_ids
    assert row.num_labels == whole.num_labels


def test_what_the_text_cannot_stand_before_is_refused() -> None:
    model = backbone()
    prompt, turns = text_prompt(model, TEXT), text_prompt(model, TURNS)
    asked = USER | {"content": "text"}
    assert behind(model, prompt, "text") == behind(model, prompt, [asked])
    with pytest.raises(DataError, match="leave the system turn out"):
        behind(model, turns, [SYSTEM, USER])
    model.tokenizer.chat_template = CHATML.replace("<|im_start|>", "<|bos|><|im_start|>")
    with pytest.raises(DataError, match="does not begin with the text"):
        chat.encode(model, [USER], chat.encoding_of(prompt))


@pytest.mark.parametrize("text", ["", " \n", [], [1], {"role": "user"}])
def test_no_text_is_refused(text: Any) -> None:
    with pytest.raises((DataError, InputError), match="expected a text|message 1: expected"):
        text_prompt(backbone(), text)


def test_a_text_that_leaves_no_room_is_refused() -> None:
    model = backbone()
    with pytest.raises(InputError, match="leaves no room for rows: the model's context has"):
        text_prompt(model, "a" * 100_000)


def test_models_on_which_embeddings_are_not_tokens_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    gemma = Backbone(tiny_models.build("gemma3n", vocab_size=len(tokenizer)), tokenizer)
    with pytest.raises(UnsupportedError, match="looks tokens up in every layer"):
        text_prompt(gemma, TEXT)


def test_the_same_text_is_one_version(tmp_path: Path) -> None:
    model, store = backbone(), Store(tmp_path / "store")
    versions = set()
    for folder in ("a", "b", "c"):
        text_prompt(model, TEXT).save(tmp_path / folder)
        versions.add(store.add("rule", tmp_path / folder).version)
    assert len(versions) == 1


def test_a_name_is_a_text(tmp_path: Path) -> None:
    model = backbone()
    model.model.to(torch.float32)
    prompt = text_prompt(model, TEXT)
    prompt.save(tmp_path / "prompt")
    entry = Store(tmp_path / "store").add("support", tmp_path / "prompt")
    loaded = SoftPrompt.load(entry.path)
    assert json.loads(loaded.facts["encoding"]["held_text"]) == [SYSTEM]
    assert chat.encoding_of(loaded) == chat.encoding_of(prompt)
