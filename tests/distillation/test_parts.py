"""Texts that are longer than the model's context, and queries that are refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN, backbone
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, chat, distill
from foreword.distillation.chunks import cut
from foreword.distillation.lesson import prepare
from foreword.distillation.parts import counting, nearest, parts_of
from foreword.distillation.queries import Query, as_queries
from foreword.errors import DataError, InputError
from foreword.named_text import text_prompt

LONG = "\n\n".join(f"Room {n} has {n * 7} chairs. Its door is blue." for n in range(12))


def small(context: int = 256, seed: int = 0) -> Backbone:
    """Return a model whose context has so many tokens."""
    tokenizer = tiny_tokenizer()
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": context}
    return Backbone(tiny_models.build("llama", seed=seed, **options), tokenizer)


def held(prompt: SoftPrompt) -> str:
    """Return the text that a prompt says it holds."""
    [turn] = json.loads(chat.encoding_of(prompt).held_text or "")
    return str(turn["content"])


@pytest.mark.parametrize("count", [40, 300])
def test_parts_are_as_few_as_fit(count: int) -> None:
    """What a template adds is there once in a part, and not with each of its lines."""
    model, text = small(), "\n".join(f"line {n}" for n in range(count))
    parts = parts_of(model, text, 60)
    assert parts is not None and "".join(parts) == text
    size = counting(model)
    frame, room = size(""), model.capabilities.context_length - 60  # type: ignore[operator]
    assert all(size(part) <= room for part in parts)
    assert len(parts) <= 1 + math.ceil((size(text) - frame) / (room - frame))


def test_pieces_are_the_text_and_keep_to_the_limit() -> None:
    for text in (LONG, LONG.replace("\n\n", " "), "x" * 500, "a. b! c? " * 40, "\n" * 300, "ab"):
        for limit in (1, 7, 50, 10_000):
            pieces = cut(text, limit, len)
            assert "".join(pieces) == text
            assert all(0 < len(piece) <= limit for piece in pieces)
    assert all(piece.startswith("Room") for piece in cut(LONG, 120, len))
    lengths = [len(piece) for piece in cut(LONG, 200, len)]
    assert min(lengths) > max(lengths) / 2


def test_each_query_is_answered_behind_one_part_of_a_long_text(tmp_path: Path) -> None:
    model = small()
    rows = as_queries([Query(QUERIES[n], f"q{n}", part=n % 2) for n in range(6)])
    lesson = prepare(model, LONG, rows, 8, replace(CONFIG, held_out=0.0), folder=tmp_path)
    assert len(lesson.teachers) > 2
    assert f"{len(lesson.teachers)} parts of at most" in lesson.said[0]
    assert lesson.num_tokens == sum(one.num_virtual_tokens for one in lesson.teachers)
    for query, row in zip(rows, lesson.rows, strict=False):
        text = held(lesson.teachers[query.part or 0])
        given = chat.encode(
            model, [{"role": "system", "content": text}, *query.asked], chat.encoding_of(None)
        )[0]
        found = list(row.input_ids[-row.num_labels :])
        assert found == oracle.greedy(model.model, None, torch.tensor(given), 6)[: len(found)]
    assert "".join(map(held, lesson.teachers)) == LONG
    again = prepare(model, LONG, rows, 8, replace(CONFIG, held_out=0.0), folder=tmp_path)
    assert [row.target for row in again.rows] == [row.target for row in lesson.rows]


def test_a_query_without_a_part_goes_where_the_model_expects_it_most() -> None:
    model = small()
    teachers = [text_prompt(model, text) for text in ("The lamp is red.", "Bears eat honey.")]
    queries = as_queries(QUERIES[:4])
    found = nearest(model, teachers, queries)
    for query, part in zip(queries, found, strict=True):
        losses = []
        for text in ("The lamp is red.", "Bears eat honey."):
            whole = [{"role": "system", "content": text}, *query.asked]
            ids = chat.encode(model, whole, chat.encoding_of(None))[0]
            own = chat.encode(model, query.asked, chat.encoding_of(teachers[0]))[0]
            logits = oracle.row_logits(model.model, None, torch.tensor(ids))[-len(own) : -1]
            labels = torch.tensor(ids[-len(own) + 1 :])
            losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
        assert losses[part] == min(losses)


def test_a_query_of_one_token_is_about_the_first_part() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    model = Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)
    parts = ("The lamp is red.", "Bears eat honey.")
    texts = [text_prompt(model, text) for text in parts]
    teachers = [one.replaced(one.tensors, {"encoding": {"is_text": True}}) for one in texts]
    assert nearest(model, teachers, as_queries(["a", "b"])) == [0, 0]
    alone = nearest(model, teachers, as_queries(["honey?"]))
    assert nearest(model, teachers, as_queries(["a", "honey?"])) == [0, *alone]


def test_what_fits_in_no_part_is_refused() -> None:
    with pytest.raises(InputError, match="leave no room for the text: give shorter queries or"):
        prepare(small(64), LONG, QUERIES, 8, replace(CONFIG, answer_tokens=60))
    with pytest.raises(InputError, match="no part of an instruction is one: shorten it"):
        prepare(small(), LONG, QUERIES, 8, CONFIG, is_instruction=True)


@pytest.mark.parametrize(
    "query",
    [
        [{"role": "user", "content": f"Read this: {TEXT.upper()}\n\nWhat is red?"}],
        f"{TEXT.replace(' ', '  ')} What is red?",
        [{"role": "system", "content": TEXT}, {"role": "user", "content": "What?"}],
        [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
    ],
)
def test_queries_that_hold_the_whole_text_are_refused(query: Any) -> None:
    with pytest.raises(DataError, match=r"^query 9: holds the whole text .* leave it out"):
        prepare(backbone(), TEXT, [*QUERIES, query], 8, CONFIG)


@pytest.mark.parametrize("text", ["", " \n", "\0PNG\0\0 and so on, long enough to be cut", []])
def test_texts_that_are_blank_or_binary_are_refused(text: Any) -> None:
    with pytest.raises(InputError, match="not blank|zero byte"):
        prepare(backbone(), text, QUERIES, 8, CONFIG)


def test_queries_of_several_turns_are_answered_to_their_last() -> None:
    model = backbone()
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "What is red?"},
    ]
    rows = [turns, {"messages": [*turns, {"role": "assistant", "content": "The lamp."}]}, "Why?"]
    lesson = prepare(model, TEXT, rows, 8, replace(CONFIG, held_out=0.0, unrelated_share=0.0))
    assert lesson.rows[0].input_ids == lesson.rows[1].input_ids
    whole = [{"role": "system", "content": TEXT}, *turns]
    given = chat.encode(model, whole, chat.encoding_of(None))[0]
    found = list(lesson.rows[0].input_ids[-lesson.rows[0].num_labels :])
    assert found == oracle.greedy(model.model, None, torch.tensor(given), 6)[: len(found)]
    asked = chat.encode(model, turns, chat.encoding_of(lesson.text))[0]
    assert list(lesson.rows[0].input_ids[: len(asked)]) == asked
    with pytest.raises(DataError, match="query 1"):
        prepare(model, TEXT, [[{"role": "robot", "content": 3}], *QUERIES], 8, CONFIG)


def test_one_call_yields_the_events_of_training(tmp_path: Path) -> None:
    model = backbone()
    run = replace(TRAIN, num_virtual_tokens=8)
    *_, whole = distill(model, TEXT, QUERIES, run, distill_config=CONFIG)
    options: dict[str, Any] = {"checkpoint": tmp_path, "distill_config": CONFIG}
    events = distill(model, TEXT, QUERIES, run, **options)
    assert next(events).step == 1
    events.close()
    *_, last = distill(model, TEXT, QUERIES, run, resume=True, **options)
    assert last.prompt is not None and whole.prompt is not None
    assert last.prompt.num_virtual_tokens == 8
    assert last.prompt.content_hash == whole.prompt.content_hash


def test_answers_of_another_base_are_refused(tmp_path: Path) -> None:
    prepare(backbone(), TEXT, QUERIES, 8, CONFIG, folder=tmp_path)
    other = backbone()
    with torch.no_grad():
        next(other.model.parameters()).add_(0.5)
    with pytest.raises(InputError, match="holds answers of another context, base, options"):
        prepare(Backbone(other.model, other.tokenizer), TEXT, QUERIES, 8, CONFIG, folder=tmp_path)
