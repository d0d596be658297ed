"""Distillation: the teacher is the model behind the whole text, and the loss is what it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, TrainConfig, chat
from foreword.config import DistillConfig
from foreword.data.batches import collate
from foreword.data.encoding import Row
from foreword.data.target import Target
from foreword.distillation import teacher
from foreword.distillation.distill import distill
from foreword.distillation.lesson import Lesson, prepare
from foreword.distillation.student import student_encoding
from foreword.distillation.teacher import targets_of, teach
from foreword.errors import ArtifactError, DataError, InputError
from foreword.named_text import text_prompt
from foreword.prompt.prefix import same_prefix
from foreword.training.loss import divergence, score_labels
from foreword.training.validation import validate

TEXT = "The lamp is red. The door is blue. The cat is called Ann, and it sleeps on the sofa."
QUERIES: list[Any] = [
    [{"role": "user", "content": f"{word} {number}?"}]
    for number, word in enumerate(["lamp", "door", "cat", "sofa", "red", "blue", "Ann", "sleep"])
]
CONFIG = DistillConfig(top_k=8, keep_mass=0.0, answer_tokens=6, answer_batch=3, held_out=0.25)
TRAIN = TrainConfig(num_steps=6, batch_size=4, learning_rate=0.02, eval_every=3)


def backbone(dtype: torch.dtype = torch.float64) -> Backbone:
    tokenizer = tiny_tokenizer()
    return Backbone(tiny_models.build("llama", dtype=dtype, vocab_size=len(tokenizer)), tokenizer)


def lesson_of(model: Backbone, **options: Any) -> Lesson:
    return prepare(model, TEXT, QUERIES, 8, CONFIG, **options)


def test_the_teacher_answers_as_the_model_with_the_text_before_each_query() -> None:
    model = backbone()
    text = text_prompt(model, TEXT)
    for query, taught in zip(QUERIES, teach(model, text, QUERIES, CONFIG), strict=True):
        turns = [{"role": "system", "content": TEXT}, *query]
        given = chat.encode(model, turns, chat.encoding_of(None))[0]
        expected = oracle.greedy(model.model, None, torch.tensor(given), 6)
        ends = [*chat.end_tokens(model, query, chat.encoding_of(None))]
        length = next((n + 1 for n, one in enumerate(expected) if one in ends), 6)
        assert list(taught.ids) == expected[:length]
        whole = torch.tensor([*given, *taught.ids])
        logits = oracle.row_logits(model.model, None, whole)[len(given) - 1 : -1]
        best = logits.log_softmax(-1).topk(8)
        assert torch.equal(taught.target.ids, best.indices)
        torch.testing.assert_close(
            taught.target.log_probabilities.double(), best.values, atol=1e-5, rtol=1e-5
        )
        assert taught.target.ids[:, 0].tolist() == list(taught.ids)


def test_the_loss_is_the_divergence_over_kept_ids_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 30, generator=generator, dtype=torch.float64)
    p, q = taught.softmax(-1), logits.softmax(-1)
    for k in (1, 7, 30):
        best = p.log().topk(k)
        target = Target(best.indices, best.values)
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, best.indices, True)
        expected = (p * (p / q).log() * kept).sum(-1)
        if k < 30:
            rest, theirs = (p * ~kept).sum(-1), (q * ~kept).sum(-1)
            expected = expected + rest * (rest / theirs).log()
        torch.testing.assert_close(divergence(logits, target), expected)
    whole = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)
    torch.testing.assert_close(divergence(logits, target), whole)
    assert (divergence(taught, target).abs() < 1e-12).all()


def test_the_divergence_has_a_gradient_where_nothing_is_left_for_the_rest() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    certain = Target(torch.tensor([[2]]), torch.tensor([[0.0]]))
    divergence(logits, certain).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0, 2] < 0


@pytest.mark.parametrize("is_packed", [False, True])
def test_targets_stand_at_their_labels_in_any_order_of_rows(is_packed: bool) -> None:
    model = backbone()
    if is_packed:
        from foreword.training.packing import packed_decoder

        model = packed_decoder.packed(model)
    lesson = lesson_of(model)
    prefix = model.compile(lesson.start)
    rows = lesson.rows[:5]
    together = score_labels(model, same_prefix(prefix, 5), collate(rows, model.padding_id))
    for index, row in enumerate(rows):
        alone = score_labels(model, same_prefix(prefix, 1), collate([row], model.padding_id))
        torch.testing.assert_close(together.losses[together.rows == index], alone.losses)


def test_the_whole_text_diverges_from_itself_by_nothing() -> None:
    model = backbone()
    lesson = lesson_of(model)
    config = chat.encoding_of(lesson.text)
    rows = []
    for query, taught in zip(QUERIES, teach(model, lesson.text, QUERIES, CONFIG), strict=True):
        ids = chat.encode(model, query, config)[0]
        rows.append(replace(Row.from_ids(ids, taught.ids), target=taught.target))
    same = validate(model, lesson.text, rows)
    assert same.loss < 1e-6 and same.agreement == same.exact == 1
    start = validate(model, lesson.start, lesson.rows[:6])
    assert start.loss > 1e-3


@pytest.mark.parametrize(
    "text", [TEXT, [*QUERIES[0], {"role": "assistant", "content": "It is red, as all lamps are."}]]
)
def test_a_query_stands_behind_the_prompt_as_behind_the_text(text: Any) -> None:
    model = backbone()
    lesson = prepare(model, text, QUERIES, 8, CONFIG)
    for query in QUERIES:
        expected = chat.encode(model, query, chat.encoding_of(lesson.text))[0]
        assert chat.encode(model, query, lesson.encoding)[0] == expected
        assert any(list(r.input_ids[: -r.num_labels]) == expected for r in whole_rows(lesson))
    assert lesson.encoding.held_tokens < lesson.text.num_virtual_tokens


def whole_rows(lesson: Lesson) -> list[Row]:
    return [*lesson.rows, *lesson.held_out]


def test_a_query_that_would_stand_otherwise_is_encoded_as_the_bare_model_is_asked() -> None:
    model = backbone()
    text = text_prompt(model, TEXT)
    own = [[{"role": "system", "content": "Be brief."}, *QUERIES[0]], *QUERIES]
    found = student_encoding(model, text, own)
    for query in own:
        expected = chat.encode(model, query, chat.encoding_of(text))[0]
        assert found.held_text is None or chat.encode(model, query, found)[0] == expected
    plain = text_prompt(model, [{"role": "user", "content": TEXT}])
    assert student_encoding(model, plain, [[{"role": "tool", "content": "x"}]]).held_text is None


@pytest.mark.parametrize("start", ["even", "attention", "vocabulary"])
def test_a_lesson_starts_where_it_is_told_to(start: Any) -> None:
    model = backbone()
    lesson = prepare(model, TEXT, QUERIES, 8, replace(CONFIG, start=start))
    assert lesson.start.num_virtual_tokens == 8
    first = prepare(model, TEXT, QUERIES, 8, replace(CONFIG, start="first"))
    assert lesson.start.content_hash != first.start.content_hash
    assert (lesson.start.content_hash == lesson_of(model).start.content_hash) is (
        start == "attention"
    )


def test_training_brings_the_prompt_closer_to_its_teacher() -> None:
    model = backbone()
    lesson = lesson_of(model)
    before = validate(model, lesson.start, lesson.rows)
    *_, last = distill(model, lesson, replace(TRAIN, num_steps=60, learning_rate=0.1))
    assert last.prompt is not None and last.prompt.num_virtual_tokens == 8
    after = validate(model, last.prompt, lesson.rows)
    assert after.loss < before.loss / 2
    assert TEXT not in last.prompt.facts["encoding"]["held_text"]
    asked = chat.encode(model, QUERIES[0], chat.encoding_of(last.prompt))[0]
    assert any(list(row.input_ids[: -row.num_labels]) == asked for row in lesson.rows)


def test_a_run_that_was_stopped_ends_bit_for_bit(tmp_path: Path) -> None:
    model = backbone(torch.float32)
    *_, whole = distill(model, lesson_of(model), TRAIN)
    folder = tmp_path / "run"
    events = distill(model, lesson_of(model, folder=folder), TRAIN, checkpoint=folder)
    next(events), next(events)
    events.close()
    again = lesson_of(model, folder=folder)
    *_, last = distill(model, again, TRAIN, checkpoint=folder, resume=True)
    assert whole.prompt is not None and last.prompt is not None
    assert whole.prompt.content_hash == last.prompt.content_hash


def test_answers_that_are_kept_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backbone()
    text = text_prompt(model, TEXT)
    first = list(teach(model, text, QUERIES, CONFIG, tmp_path))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[1].unlink()  # as a run that was killed between two batches leaves it
    calls = []
    answered = teacher._answered
    monkeypatch.setattr(teacher, "_answered", lambda *a: calls.append(1) or answered(*a))
    again = list(teach(model, text, QUERIES, CONFIG, tmp_path))
    assert len(calls) == 1
    assert [(one.ids, one.target) for one in again] == [(one.ids, one.target) for one in first]


def test_answers_of_another_teacher_are_refused(tmp_path: Path) -> None:
    model = backbone()
    list(teach(model, text_prompt(model, TEXT), QUERIES, CONFIG, tmp_path))
    for text, queries, config in (
        (TEXT + "!", QUERIES, CONFIG),
        (TEXT, QUERIES[1:], CONFIG),
        (TEXT, QUERIES, replace(CONFIG, top_k=9)),
    ):
        with pytest.raises(InputError, match="holds answers of another context, base, options or"):
            list(teach(model, text_prompt(model, text), queries, config, tmp_path))
    (tmp_path / "00000.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="damaged"):
        list(teach(model, text_prompt(model, TEXT), QUERIES, CONFIG, tmp_path))


@pytest.mark.parametrize(
    ("text", "queries", "num_virtual", "expected"),
    [
        ("", QUERIES, 8, "a text that is not blank"),
        (TEXT, QUERIES[:1], 8, "at least 2 queries"),
        ("Hi.", QUERIES, 64, "no more than --num-virtual-tokens 64: as it is, it is smaller"),
    ],
)
def test_what_cannot_be_distilled_is_refused(
    text: str, queries: list[Any], num_virtual: int, expected: str
) -> None:
    with pytest.raises((InputError, DataError), match=expected):
        prepare(backbone(), text, queries, num_virtual, CONFIG)


def test_answers_from_which_nothing_is_learned_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1))
    empty = teacher.Taught((2,), target)
    same = teacher.Taught((5, 2), Target(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1)))
    for taught, expected in ((empty, "answers nothing to any"), (same, "the same answer")):
        monkeypatch.setattr(
            "foreword.distillation.parts.teach", lambda *a, one=taught, **options: iter([one] * 8)
        )
        with pytest.raises(InputError, match=expected):
            lesson_of(backbone())


def test_rows_with_and_without_targets_do_not_mix() -> None:
    model = backbone()
    [target] = targets_of(model, None, [Row.from_ids([5, 6], [7])], 3)
    taught = replace(Row.from_ids([5, 6], [7], "taught"), target=target)
    with pytest.raises(DataError, match="^bare: has no teacher's target"):
        collate([taught, Row.from_ids([5], [6], "bare")], 0)
    with pytest.raises(DataError, match="a target at each of 2 labels, got 1"):
        replace(Row.from_ids([5], [6, 7]), target=target)
