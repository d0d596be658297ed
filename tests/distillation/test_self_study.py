"""Self-study: the model asks about the text; what is of use is kept, and nothing is asked twice."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distill import CONFIG, TEXT, TRAIN, backbone
from test_parts import LONG, small
from tiny_models import build
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, chat, distill
from foreword.config import DistillConfig
from foreword.distillation import self_study
from foreword.distillation.lesson import Lesson, prepare
from foreword.distillation.passages import Passage, batches_of, passages_of, planned
from foreword.distillation.questions import (
    MESSAGES,
    NAMED,
    QUESTIONS,
    asked_about,
    question_in,
    why_dropped,
)
from foreword.errors import ArtifactError, InputError
from foreword.named_text import text_prompt

ASKING = replace(CONFIG, questions=12, question_tokens=20, answer_batch=4)
WORDS = ["chairs", "doors", "lamps", "cats", "rooms", "walls", "beds", "keys", "pens", "cups"]


def telling(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let every batch of questions be made up, and return the batches as they are asked for."""
    calls: list[Any] = []

    def said(model: Any, teachers: Any, batch: Sequence[Any], *rest: Any) -> list[str]:
        calls.append(batch)
        return [f"How many {WORDS[(len(calls) + n) % 10]} {len(calls)}?" for n in range(len(batch))]

    monkeypatch.setattr(self_study, "_said", said)
    return calls


def test_the_model_asks_behind_the_text_by_seed(tmp_path: Path) -> None:
    model = small()
    teachers = [text_prompt(model, TEXT)]
    batch = [(Passage("The lamp is red.", 0, "a"), kind) for kind in QUESTIONS]
    found = [self_study._said(model, teachers, batch, ASKING, False, [seed]) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    torch.manual_seed(1)  # the obvious computation: the model with the text before each
    turns = [
        [
            {"role": "system", "content": TEXT},
            {"role": "user", "content": asked_about("The lamp is red.", one, False, True)},
        ]
        for one in QUESTIONS.values()
    ]
    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 20}
    expected = [answer.text for answer in chat.answers(model, None, turns, **options)]
    assert found[0] == expected
    assert all(NAMED in turn[1]["content"] for turn in turns)


def test_passages_and_kinds_are_asked_about_in_turn_and_behind_their_own_part() -> None:
    passages = passages_of(["aaaa " * 40, "bbbb " * 60], 400, lambda text: 5 + len(text.split()))
    assert {one.part for one in passages} == {0, 1}
    assert len({one.name for one in passages}) == len(passages)
    assert "".join(one.text for one in passages) == "aaaa " * 40 + "bbbb " * 60
    plan = planned(passages, list(QUESTIONS), 40)
    assert {*Counter(kind for _, kind in plan).values()} <= {7, 8, 9}
    some = planned(passages, list(QUESTIONS), 3)  # fewer than passages: all over the text
    assert len({one for one, _ in some}) == 3 and {one.part for one, _ in some} == {0, 1}
    assert len(set(plan)) == min(40, len(passages) * 5)
    batches = list(batches_of(plan, 7))
    assert [one for batch in batches for one in batch] == plan
    assert all(len({one.part for one, _ in batch}) == 1 and len(batch) <= 7 for batch in batches)


def test_whole_passages_are_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = telling(monkeypatch)
    model = small(2048)
    config = replace(ASKING, questions=40, held_out=0.25, unrelated_share=0.0)
    lesson = prepare(model, LONG, None, 8, config)
    passage: dict[str, str] = {}
    for number, batch in enumerate(calls, 1):
        for n, (one, _) in enumerate(batch):
            passage.setdefault(f"How many {WORDS[(number + n) % 10]} {number}?", one.name)

    def about(rows: Sequence[Any]) -> set[str]:
        said = [model.tokenizer.decode(row.input_ids) for row in rows]
        return {name for question, name in passage.items() if any(question in one for one in said)}

    assert about(lesson.held_out) and not about(lesson.held_out) & about(lesson.rows)
    assert about(lesson.held_out) | about(lesson.rows) == set(passage.values())
    assert (
        "40 questions about 12 of 12 passages, asked by the model; 0 of 40 dropped"
        in lesson.said[0]
    )


def lesson_of(model: Backbone, config: DistillConfig = ASKING, **options: Any) -> Lesson:
    return prepare(model, TEXT, None, 8, config, **options)


def test_questions_go_on_after_a_kill_and_are_those_of_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_study, "_check_enough", lambda *_: None)  # of random weights
    monkeypatch.setattr(self_study, "why_dropped", lambda *_: None)
    model = small(1024)
    whole = lesson_of(model, folder=tmp_path / "whole")
    asked = self_study._said
    calls: list[int] = []

    def killed(*given: Any) -> list[str]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return asked(*given)

    monkeypatch.setattr(self_study, "_said", killed)
    with pytest.raises(KeyboardInterrupt):
        lesson_of(model, folder=tmp_path / "run")
    assert len(list((tmp_path / "run" / "questions").iterdir())) == 1
    again = lesson_of(model, folder=tmp_path / "run")
    assert len(calls) == 4  # the first batch of three was kept
    assert [row.input_ids for row in again.rows] == [row.input_ids for row in whole.rows]
    assert [row.target for row in again.rows] == [row.target for row in whole.rows]


def test_questions_about_another_text_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling(monkeypatch)
    model = small(1024)
    lesson_of(model, folder=tmp_path)
    for config, options in (
        (replace(ASKING, questions=13), {}),
        (replace(ASKING, question_tokens=21), {}),
        (ASKING, {"seed": 1}),
        (ASKING, {"is_instruction": True}),
    ):
        with pytest.raises(InputError, match="holds questions about another text, of another base"):
            lesson_of(model, config, folder=tmp_path, **options)
    with pytest.raises(InputError, match="holds questions about another text"):
        lesson_of(small(1024, seed=7), folder=tmp_path)
    (tmp_path / "questions" / "00001.json").write_text("{")
    with pytest.raises(ArtifactError, match="00001.json: damaged"):
        lesson_of(model, folder=tmp_path)


@pytest.mark.parametrize(
    ("said", "is_message", "expected"),
    [
        ("What is red?", False, "What is red?"),
        ('Here is a question:\n\n1. "What is red?"\n2. What is blue?', False, "What is red?"),
        ("**Question:** What is red?", False, "What is red?"),
        ("- Q: What is red?", False, "What is red?"),
        ("List the colours:", False, "List the colours:"),
        ("  \n ", False, ""),
        ("Hello,\n\nmy lamp is broken.\nAnn", True, "Hello,\nmy lamp is broken.\nAnn"),
        ("2024 was a good year, why?", False, "2024 was a good year, why?"),
        ("<think>The user wants\na question.</think>\n\nWhat is red?", False, "What is red?"),
        ("The user wants one.</think>What is red?", False, "What is red?"),
        ("<think>The user wants", False, ""),
        ("Sure, here's one.\n\nWhat is red?", False, "What is red?"),
        ("Okay, is it red?\nWhy?", False, "Okay, is it red?"),
        ("Sure.", False, "Sure."),
    ],
)
def test_the_question_is_what_was_said_without_what_stands_around_it(
    said: str, is_message: bool, expected: str
) -> None:
    assert question_in(said, is_message, True) == expected


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ("What is red?", None),
        ("", "empty"),
        ("?!? 12", "empty"),
        ("What is \ufffd?", "not text"),
        (QUESTIONS["facts"], "repeating what they were asked for"),
        (f"{QUESTIONS['facts']} {NAMED}", "repeating what they were asked for"),
        (f"What? {TEXT}", "repeating the text"),
        ("The cat is called Ann, and it sleeps", "repeating the text"),
        ("The lamp", None),
        ("what " * 80, "too long"),
    ],
)
def test_what_is_no_question_is_dropped(question: str, why: str | None) -> None:
    assert why_dropped(backbone(), question, TEXT, 60) == why


def test_too_few_questions_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = ["What?", "what?", "", "Why?", "Why?", QUESTIONS["facts"], "", "", "", "", "", ""]
    monkeypatch.setattr(self_study, "_said", lambda m, t, batch, *_: [answers.pop() for _ in batch])
    with pytest.raises(InputError) as caught:
        lesson_of(small(1024))
    assert "2 of 12 questions are of use (dropped: 7 empty, 2 asked twice, 1 rep" in str(
        caught.value
    )
    assert "give --data with queries" in str(caught.value) and "\n" not in str(caught.value)


def test_an_instruction_is_sent_messages_that_users_would_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = telling(monkeypatch)
    lesson = lesson_of(small(1024), is_instruction=True)
    assert {kind for batch in calls for _, kind in batch} == set(MESSAGES)
    assert lesson.held_out  # by message: there is one passage only
    assert asked_about(TEXT, MESSAGES["short"], True, True).startswith(MESSAGES["short"])
    turns = [{"role": "system", "content": TEXT}]
    assert len(prepare(small(1024), turns, None, 8, ASKING).queries) == 12


def test_a_base_without_a_chat_template_asks_and_is_asked_plain_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    telling(monkeypatch)
    tokenizer = tiny_tokenizer(chat_template=None)
    options = {"vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    model = Backbone(build("llama", **options), tokenizer)
    lesson = lesson_of(model, replace(ASKING, unrelated_share=0.0))
    said = [tokenizer.decode(row.input_ids[: -row.num_labels]) for row in lesson.rows]
    assert all(one.startswith("Question: How many") and one.endswith("?\nAnswer:") for one in said)


def test_a_text_in_parts_is_asked_about_and_distilled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = telling(monkeypatch)
    text = "\n\n".join(f"Room {n} has {n * 7} chairs. Its door is blue." for n in range(40))
    run = replace(TRAIN, num_virtual_tokens=8, num_steps=2)
    config = replace(ASKING, questions=30, answer_tokens=2)
    *_, last = distill(small(1024), text, None, run, distill_config=config)
    assert last.prompt is not None
    asked = [one for batch in calls for one, _ in batch]
    assert {one.part for one in asked} == set(range(1 + max(one.part for one in asked)))
    assert len({one.part for one in asked}) > 2
    known = {one.name: one.text for one in asked}
    assert all(piece in text for piece in known.values())
