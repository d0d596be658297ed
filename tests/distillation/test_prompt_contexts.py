"""A prompt as the context: the teacher is the model behind it, and rows stand as they do there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN, backbone

from foreword import Backbone, SoftPrompt, chat, distill
from foreword.distillation.lesson import prepare
from foreword.distillation.teacher import teach
from foreword.errors import InputError, MismatchError
from foreword.named_text import text_prompt
from foreword.training.validation import validate

PLAIN = [f"{word} {number}?" for number, word in enumerate(["lamp", "door", "cat", "sofa", "red"])]


def prompt_of(
    model: Backbone, num_virtual: int = 12, seed: int = 1, *, is_cached: bool = True, **said: Any
) -> SoftPrompt:
    """Return a prompt whose rows were encoded as `said`."""
    values = tiny_models.embeddings(model.model, num_virtual, seed)
    facts: dict[str, Any] = {"base": model.identity(), "tokenizer": model.tokenizer_facts()}
    facts["encoding"] = {"is_text": False, **said}
    prompt = SoftPrompt.from_embeddings(values, facts=facts)
    if not is_cached:
        return prompt
    return SoftPrompt.from_states(model.compile(prompt).cached, facts=facts)


def test_answers_that_are_kept_for_one_prompt_are_not_those_of_another(tmp_path: Path) -> None:
    model = backbone()
    list(teach(model, prompt_of(model), QUERIES, CONFIG, tmp_path))
    with pytest.raises(InputError, match="holds answers of another context, base, options or"):
        list(teach(model, prompt_of(model, seed=2), QUERIES, CONFIG, tmp_path))
    list(teach(model, prompt_of(model), QUERIES, CONFIG, tmp_path))


@pytest.mark.parametrize("is_cached", [True, False])
def test_the_teacher_is_the_model_behind_the_prompt(is_cached: bool) -> None:
    model = backbone()
    prompt = prompt_of(model, is_cached=is_cached)
    lesson = prepare(model, prompt, QUERIES, 4, replace(CONFIG, held_out=0.0))
    assert lesson.text is prompt and lesson.num_tokens == 12
    for query, row in zip(QUERIES, lesson.rows, strict=False):
        given = chat.encode(model, query, chat.encoding_of(prompt))[0]
        assert list(row.input_ids[: -row.num_labels]) == given
        expected = oracle.greedy(model.model, prompt, torch.tensor(given), 6)
        assert list(row.input_ids[-row.num_labels :]) == expected[: row.num_labels]


@pytest.mark.parametrize(
    ("said", "queries"),
    [
        ({"is_text": False}, QUERIES),
        ({"is_text": True}, PLAIN),
        ({"is_text": False, "row_template": "Q: {prompt}\nA:"}, PLAIN),
        ({"is_text": False, "opening": "generation"}, PLAIN),
    ],
)
def test_rows_stand_behind_the_student_as_behind_the_prompt(said: Any, queries: Any) -> None:
    model = backbone()
    prompt = prompt_of(model, **said)
    lesson = prepare(model, prompt, queries, 4, replace(CONFIG, unrelated_share=0.5))
    *_, last = distill(
        model, prompt, queries, replace(TRAIN, num_steps=1, num_virtual_tokens=4),
        distill_config=CONFIG,
    )  # fmt: skip
    student = last.prompt
    assert student is not None and lesson.encoding == chat.encoding_of(prompt)
    assert chat.reads_turns(model, student) == chat.reads_turns(model, prompt)
    rows = {row.input_ids[: -row.num_labels] for row in [*lesson.rows, *lesson.held_out]}
    for query in queries:
        text = chat.typed(model, prompt, query) if isinstance(query, str) else query
        ids = chat.encode(model, text, chat.encoding_of(prompt))[0]
        assert ids == chat.encode(model, text, chat.encoding_of(student))[0]
        assert tuple(ids) in rows


@pytest.mark.parametrize("start", ["first", "even", "attention", "vocabulary", None])
def test_a_smaller_prompt_starts_from_the_keys_of_the_larger_one(start: Any) -> None:
    model = backbone()
    prompt = prompt_of(model)
    lesson = prepare(model, prompt, QUERIES, 4, replace(CONFIG, start=start))
    assert lesson.start.form == "key_values" and lesson.start.num_virtual_tokens == 4
    if start == "first":
        for one, whole in zip(lesson.start.tensors, prompt.tensors, strict=True):
            torch.testing.assert_close(one, whole[:, :4].float())


def test_a_prompt_is_taught_to_a_smaller_one() -> None:
    model = backbone()
    prompt = prompt_of(model, 16)
    config = replace(CONFIG, start="first", unrelated_share=0.0)
    lesson = prepare(model, prompt, QUERIES, 4, config)
    before = validate(model, lesson.start, lesson.rows).loss
    training = replace(TRAIN, num_steps=60, learning_rate=0.1, num_virtual_tokens=4)
    *_, last = distill(model, prompt, QUERIES, training, distill_config=config)
    assert validate(model, last.prompt, lesson.rows).loss < before / 2


def test_a_text_under_a_name_is_the_text() -> None:
    model = backbone()
    named = text_prompt(model, TEXT)
    one, other = (prepare(model, text, QUERIES, 8, CONFIG) for text in (named, TEXT))
    assert one.encoding == other.encoding and one.start.content_hash == other.start.content_hash
    assert [row.input_ids for row in one.rows] == [row.input_ids for row in other.rows]


def test_a_prompt_that_cannot_be_the_context_is_refused_in_a_line() -> None:
    model = backbone()
    prompt = prompt_of(model)
    other = Backbone(tiny_models.build("llama", seed=7, vocab_size=263), model.tokenizer)
    foreign = replace_facts(prompt, tokenizer={**prompt.facts["tokenizer"], "chat_template": "0"})
    for context, queries, size, error, said in (
        (prompt_of(other), QUERIES, 4, MismatchError, "load the right base"),
        (foreign, QUERIES, 4, MismatchError, "chat template"),
        (prompt, None, 4, InputError, "a prompt holds no text to ask about: give queries"),
        (prompt, QUERIES[:1], 4, InputError, "at least 2 queries"),
        (prompt, QUERIES, 12, InputError, "has 12 virtual tokens.*not fewer"),
        (prompt, QUERIES, None, InputError, "--num-virtual-tokens 64"),
    ):
        with pytest.raises(error, match=said) as caught:
            prepare(model, context, queries, size, CONFIG)
        assert "\n" not in str(caught.value)


def replace_facts(prompt: SoftPrompt, **facts: Any) -> SoftPrompt:
    return prompt.replaced(prompt.tensors, prompt.facts | facts)
