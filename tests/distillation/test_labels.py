"""Label mixing: the loss of a row's own answer beside the teacher's, each at its weight."""

from dataclasses import replace
from typing import Any

import oracle
import pytest
import seq2seq_models
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, backbone
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor

from foreword import Backbone, Row, SoftPrompt, TrainConfig
from foreword.config import EncodingConfig
from foreword.data.example import Example
from foreword.data.target import Target, certain
from foreword.distillation.distill import _on_policy, distill
from foreword.distillation.labels import label_rows, toward_answer
from foreword.distillation.lesson import prepare
from foreword.distillation.queries import Query
from foreword.errors import DataError, InputError
from foreword.training.distributed import ALONE
from foreword.training.loss import divergence
from foreword.training.methods.direct import Direct
from foreword.training.micro_batches import micro_batches
from foreword.training.step import _backward, accumulate, detached, prefix_states
from foreword.training.validation import validate

ANSWERS = ["red it is", "blue", "Ann", "on the sofa", "no", "yes", "a cat", "zzz"]
ROWS: list[Any] = [
    {"messages": [*query, {"role": "assistant", "content": answer}]}
    for query, answer in zip(QUERIES, ANSWERS, strict=True)
]
SOME: list[Any] = [*ROWS[:3], *QUERIES[3:]]  # the others have no answer
NONE_ASIDE = replace(CONFIG, held_out=0.0, unrelated_share=0.0)


def test_the_divergence_from_a_certain_target_is_the_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, 0, 29, 3])
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    [slow] = torch.autograd.grad(expected.sum(), logits)
    for width in (1, 5, 30):
        found = divergence(logits, certain(labels.tolist()).widened(width))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        [gradient] = torch.autograd.grad(found.sum(), logits)
        torch.testing.assert_close(gradient, slow, rtol=1e-10, atol=1e-12)


def slow_loss(model: torch.nn.Module, prompt: SoftPrompt, rows: list[Row], weight: float) -> Tensor:
    """Return the mean over all labels, one unpadded row at a time: divergence over the kept ids and
    the rest at `1 - weight` where a query has an answer of its own, cross entropy of that at
    `weight`, and 1 where it has none.
    """
    total, sum_of_weights = torch.zeros((), dtype=torch.float64), 0.0
    asked = [row.input_ids[: -row.num_labels] for row in rows]
    for row, before in zip(rows, asked, strict=True):
        ids = torch.tensor(row.input_ids)
        logits = oracle.row_logits(model, prompt, ids)[-row.num_labels - 1 : -1]
        own = row.target is not None and bool((row.target.log_probabilities[:, 0] == 0).all())
        if own:
            part = torch.nn.functional.cross_entropy(
                logits, ids[-row.num_labels :], reduction="none"
            )
            share = weight
        else:
            part = slow_divergence(logits, row.target)
            share = 1 - weight if asked.count(before) == 2 else 1.0
        total = total + share * part.sum()
        sum_of_weights += share * row.num_labels
    return total / sum_of_weights


def slow_divergence(logits: Tensor, target: Target | None) -> Tensor:
    assert target is not None
    q = logits.softmax(-1)
    found = []
    for at, ids in enumerate(target.ids):
        p = target.log_probabilities[at].to(q.dtype).exp()
        rest = 1 - p.sum()
        others = torch.ones(q.shape[-1], dtype=torch.bool)
        others[ids] = False
        found.append((p * (p / q[at, ids]).log()).sum() + rest * (rest / q[at, others].sum()).log())
    return torch.stack(found)


@pytest.mark.parametrize("size", [2, 16])
def test_the_gradient_is_that_of_both_losses_at_their_weights(size: int) -> None:
    model = backbone()
    lesson = prepare(model, TEXT, SOME, 8, replace(NONE_ASIDE, labels=0.3))
    assert [row.weight for row in lesson.rows] == [0.7, 0.3] * 3 + [1.0] * 5
    assert lesson.said[0] == "3 of 8 rows have an answer, which weighs 0.3"
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model.model, 6))
    ours, theirs = Direct.begin(prompt, torch.float64), prompt.trainable(torch.float64)
    batches = micro_batches(model, ALONE, lesson.rows, size)
    states = prefix_states(model, ours, batches)
    leaves = [detached(one) for one in states]
    loss = accumulate(model, leaves, batches)
    _backward(states, leaves)
    expected = slow_loss(model.model, theirs, list(lesson.rows), 0.3)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected.item(), rel=1e-5)  # targets are float32
    for mine, slow in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.grad is not None and slow.grad is not None
        assert (mine.grad - slow.grad).norm() < 1e-5 * slow.grad.norm()


def test_a_step_counts_each_label_as_its_row_weighs() -> None:
    model = backbone()
    lesson = prepare(model, TEXT, SOME, 8, replace(NONE_ASIDE, labels=0.3))
    event = next(distill(model, lesson, TrainConfig(num_steps=1, batch_size=64)))
    expected = slow_loss(model.model, lesson.start, list(lesson.rows), 0.3)
    assert event.loss == pytest.approx(expected.item(), rel=1e-5)


def test_own_answers_are_the_rows_of_training_and_are_learned() -> None:
    model = backbone()
    lesson = prepare(model, TEXT, ROWS, 8, replace(CONFIG, labels=0.9, answer_tokens=3))
    assert all(row.weight == 1 for row in lesson.held_out)
    own = [row for row in lesson.rows if row.weight == 0.9]
    assert own and len(own) == 8 - len(lesson.held_out)
    said = [model.tokenizer.decode(row.input_ids[-row.num_labels :]) for row in own]
    assert {one.removesuffix("<|im_end|>").strip() for one in said} <= set(ANSWERS)
    before = validate(model, lesson.start, own).loss
    *_, last = distill(model, lesson, TrainConfig(num_steps=20, batch_size=16, learning_rate=0.1))
    assert validate(model, last.prompt, own).loss < 0.8 * before


def test_labels_without_answers_and_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"--labels 0\.3: no row has an answer of its own"):
        prepare(backbone(), TEXT, QUERIES, 8, replace(CONFIG, labels=0.3))
    for weight in (1.0, -0.1, float("nan")):
        with pytest.raises(InputError, match="--labels must be"):
            replace(CONFIG, labels=weight)
    with pytest.raises(DataError, match="a weight above 0"):
        replace(Row.from_ids([5], [6]), weight=0.0)


@pytest.mark.parametrize(("form", "room"), [("embeddings", 40), ("key_values", 10)])
def test_an_own_answer_has_the_room_that_the_form_leaves_it(form: Any, room: int) -> None:
    tokenizer = tiny_tokenizer("$A <|im_end|>")
    bart = Backbone(seq2seq_models.build("bart", vocab_size=len(tokenizer)), tokenizer)
    training = TrainConfig(num_virtual_tokens=30, form=form)

    def rows_of(answer: str) -> Any:
        queries = [Query("hi", "q", own=Example("hi", answer))]
        return label_rows(bart, queries, EncodingConfig(), training, 0.5)

    assert rows_of("x" * 5)[0].num_labels <= 10
    with pytest.raises(DataError, match=f"labels of .* at most {room} fit"):
        rows_of("x" * 60)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.9])
def test_a_target_toward_the_answer_is_both_losses_at_their_weights(weight: float) -> None:
    """But for a constant; kept ids in any order, and the first filling what is not kept."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 30, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[4, 7, 9], [2, 5, 2], [8, 1, 3]])
    kept = torch.tensor([[0.5, 0.3, 0.1], [0.7, 0.2, 0.0], [0.4, 0.3, 0.2]])
    target = Target(ids, kept.log())
    labels = [7, 2, 29]  # the last is not kept
    row = replace(Row.from_ids([1], labels), target=target)
    found = divergence(logits, toward_answer(row, weight).target)
    plain = divergence(logits, target)
    hard = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="none")
    for at, share in enumerate((weight, weight, 0.0)):
        slow = (1 - share) * plain[at] + share * hard[at]
        [one] = torch.autograd.grad(found[at], logits, retain_graph=True)
        [other] = torch.autograd.grad(slow, logits, retain_graph=True)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert toward_answer(row, 0.0) is row


@pytest.mark.parametrize("weight", [0.1, 0.2, 0.3, 0.7, 0.9])
def test_own_answers_stay_labels_where_the_student_answers_the_others(weight: float) -> None:
    model = backbone()
    config = replace(NONE_ASIDE, labels=0.4, answer_weight=weight, on_policy=0.999)
    lesson = prepare(model, TEXT, SOME, 8, config)
    own = [row for row in lesson.rows if row.weight == 0.4]
    assert len(own) == 3
    assert all(row.target == certain(row.input_ids[-row.num_labels :]) for row in own)
    source = _on_policy(model, lesson, 0)
    assert source is not None
    made = source.rows(lesson.start, lesson.rows, 0, ALONE)
    kept = [new for new, old in zip(made, lesson.rows, strict=True) if new is old]
    assert kept == own and len(made) == len(lesson.rows) > 3


def test_answers_weigh_in_what_is_learned_and_not_in_what_is_held_out() -> None:
    config = replace(CONFIG, answer_weight=0.5)
    plain, weighed = (prepare(backbone(), TEXT, QUERIES, 4, one) for one in (CONFIG, config))
    assert (
        weighed.held_out == plain.held_out
        and weighed.start.content_hash == plain.start.content_hash
    )
    num_taught = 0
    for one, other in zip(plain.rows, weighed.rows, strict=True):
        if one.source.startswith("unrelated"):
            assert one == other
            continue
        num_taught += 1
        assert other == toward_answer(one, 0.5) != one
    assert num_taught
