"""On-policy distillation: the student's own samples, and the reverse divergence on them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN, backbone
from torch import Tensor

from foreword import Backbone, chat
from foreword.data.batches import collate
from foreword.data.encoding import Row
from foreword.data.target import Target, certain, together
from foreword.distillation import distill as distillation
from foreword.distillation.distill import distill
from foreword.distillation.lesson import Lesson, prepare
from foreword.distillation.on_policy import OnPolicy
from foreword.distillation.teacher import targets_of
from foreword.errors import InputError
from foreword.training.distributed import ALONE
from foreword.training.loss import divergence
from foreword.training.step import accumulate
from foreword.training.validation import validate

ON_POLICY = replace(CONFIG, on_policy=0.5, keep_mass=0.9, unrelated_share=0.2)


def lesson_of(model: Backbone, **options: Any) -> Lesson:
    return prepare(model, TEXT, QUERIES, 8, ON_POLICY, **options)


def source_of(model: Backbone, lesson: Lesson, seed: int = 0) -> OnPolicy:
    source = distillation._on_policy(model, lesson, seed)
    assert source is not None
    return source


def test_the_reverse_divergence_is_over_kept_ids_and_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = torch.randn(2, 5, 30, generator=generator, dtype=torch.float64)
    p, q = taught.softmax(-1), logits.softmax(-1)
    for k in (1, 7, 30):
        ids = q.topk(k).indices
        kept = torch.zeros_like(p, dtype=torch.bool).scatter(-1, ids, True)
        expected = (q * (q / p).log() * kept).sum(-1)
        rest, theirs = (q * ~kept).sum(-1), (p * ~kept).sum(-1)
        if k < 30:
            expected = expected + rest * (rest / theirs).log()
        target = Target(ids, p.log().gather(-1, ids), theirs.log())
        torch.testing.assert_close(divergence(logits, target), expected)
        wide = target.widened(k + 3) if k < 27 else target
        torch.testing.assert_close(divergence(logits, wide), expected)
    forward = Target(p.topk(3).indices, p.topk(3).values.log())
    own = Target(ids[:, :3], p.log().gather(-1, ids[:, :3]), theirs.log())
    mixed = together([forward, own])
    found = divergence(torch.cat([logits, logits]), mixed)
    torch.testing.assert_close(found[:5], divergence(logits, forward))


def test_samples_are_scored_by_the_model_behind_the_whole_text() -> None:
    model = backbone()
    lesson = lesson_of(model)
    rows = lesson.rows
    found = source_of(model, lesson).rows(lesson.start, rows, 4, ALONE)
    assert found[-1].source == "unrelated text" and found[-1] is rows[-1]
    for old, row in zip(rows, found, strict=True):
        if row.source == "unrelated text":
            continue
        question = old.input_ids[: -old.num_labels]
        assert row.input_ids[: -row.num_labels] == question and row.target is not None
        [query] = [q for q in QUERIES if chat.encode(model, q, lesson.encoding)[0] == [*question]]
        given = chat.encode(
            model, [{"role": "system", "content": TEXT}, *query], chat.encoding_of(None)
        )[0]
        whole = torch.tensor([*given, *row.input_ids[-row.num_labels :]])
        taught = oracle.row_logits(model.model, None, whole)[-row.num_labels - 1 : -1]
        student = oracle.row_logits(model.model, lesson.start, torch.tensor(row.input_ids))
        best = student[-row.num_labels - 1 : -1].topk(8).indices
        assert torch.equal(row.target.ids[:, :8], best)
        is_kept = row.target.log_probabilities > -torch.inf
        p = taught.log_softmax(-1)
        expected = p.gather(-1, row.target.ids)[is_kept]
        close = {"atol": 1e-5, "rtol": 1e-5, "check_dtype": False}
        torch.testing.assert_close(row.target.log_probabilities[is_kept], expected, **close)
        rest = p.scatter(-1, row.target.ids, -torch.inf).logsumexp(-1)
        torch.testing.assert_close(row.target.log_rest, rest, **close)


def asked(model: Backbone, query: Any) -> list[int]:
    return list(chat.encode(model, query, chat.encoding_of(None))[0])


def test_samples_are_repeated_by_seed_and_step_and_leave_the_process_alone() -> None:
    model = backbone()
    lesson = lesson_of(model)

    def drawn(seed: int, step: int) -> list[tuple[int, ...]]:
        rows = source_of(model, lesson, seed).rows(lesson.start, lesson.rows, step, ALONE)
        return [row.input_ids for row in rows]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = drawn(0, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert drawn(0, 4) == first and drawn(0, 5) != first != drawn(1, 4)


def test_the_gradient_is_that_of_the_slow_obvious_sum() -> None:
    """The kept ids' sum over the whole vocabulary's softmax, one row at a time."""
    model = backbone()
    lesson = lesson_of(model)
    rows = source_of(model, lesson).rows(lesson.start, lesson.rows, 4, ALONE)
    rows = [row for row in rows if row.source != "unrelated text"][:3]
    start = lesson.start.replaced([one.double() for one in lesson.start.tensors])
    leaves = start.states.map(lambda one: one.detach().clone().requires_grad_())
    loss = accumulate(model, [leaves], [collate(rows, model.padding_id)])
    obvious = start.replaced([one.detach().clone().requires_grad_() for one in start.tensors])
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = oracle.row_logits(model.model, obvious, torch.tensor(row.input_ids))
        students = logits[-row.num_labels - 1 : -1].softmax(-1)
        for q, (kept, p, p_rest) in zip(students, labels(row.target), strict=True):
            q_rest = 1 - q[kept].sum()
            total = total + (q[kept] * (q[kept] / p).log()).sum()
            total = total + q_rest * (q_rest / p_rest).log()
    total = total / sum(row.num_labels for row in rows)
    total.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(total.item(), rel=1e-9)
    for ours, theirs in zip(leaves.tensors, obvious.tensors, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-10)


def labels(target: Target | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    assert target is not None and target.log_rest is not None
    found = []
    for ids, values, rest in zip(
        target.ids, target.log_probabilities.double(), target.log_rest.double(), strict=True
    ):
        is_kept = values > -torch.inf
        found.append((ids[is_kept], values[is_kept].exp(), rest.exp()))
    return found


def test_an_answer_of_which_the_teacher_is_certain_is_sampled_too() -> None:
    model = backbone()
    lesson = lesson_of(model)
    rows = [
        replace(row, target=certain(row.input_ids[-row.num_labels :]))  # as of --top-k 1
        for row in lesson.rows
        if row.source != "unrelated text"
    ]
    made = source_of(model, lesson).rows(lesson.start, rows, 4, ALONE)
    assert rows and not [new for new, old in zip(made, rows, strict=True) if new is old]


def test_the_last_share_of_the_steps_is_the_students_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backbone()
    lesson = lesson_of(model)
    steps, rows_of = [], OnPolicy.rows

    def counted(self: OnPolicy, prompt: Any, rows: Any, step: int, ranks: Any) -> Any:
        steps.append(step)
        return rows_of(self, prompt, rows, step, ranks)

    monkeypatch.setattr(OnPolicy, "rows", counted)
    before = validate(model, lesson.start, lesson.rows)
    config = replace(TRAIN, num_steps=40, learning_rate=0.1, eval_every=0)
    *_, last = distill(model, lesson, config)
    assert steps == list(range(20, 40)) and last.prompt is not None
    assert validate(model, last.prompt, lesson.rows).loss < before.loss / 1.5
    steps.clear()
    *_, last = distill(model, replace(lesson, config=CONFIG), replace(config, num_steps=4))
    assert not steps


def test_a_run_that_was_stopped_among_its_samples_ends_bit_for_bit(tmp_path: Path) -> None:
    model = backbone(torch.float32)
    lesson = lesson_of(model)
    *_, whole = distill(model, lesson, TRAIN)
    events = distill(model, lesson, TRAIN, checkpoint=tmp_path)
    for _ in range(4):
        next(events)
    events.close()
    torch.manual_seed(99)
    *_, last = distill(model, lesson, TRAIN, checkpoint=tmp_path, resume=True)
    assert whole.prompt is not None and last.prompt is not None
    assert whole.prompt.content_hash == last.prompt.content_hash
    with pytest.raises(InputError, match="run: --on-policy was 0.5, is not given; give"):
        again = replace(lesson, config=CONFIG)
        next(distill(model, again, TRAIN, checkpoint=tmp_path, resume=True))


def test_more_ids_are_kept_where_they_hold_little() -> None:
    model = Backbone(tiny_models.build("llama", dtype=torch.float64, vocab_size=200))
    row = Row.from_ids([5, 6, 7], [8, 9, 10])
    [plain] = targets_of(model, None, [row], 2)
    [target] = targets_of(model, None, [row], 2, keep_mass=0.3)
    logits = oracle.row_logits(model.model, None, torch.tensor(row.input_ids))[2:-1]
    p = logits.softmax(-1).sort(descending=True)
    for label in range(3):
        count = int((target.log_probabilities[label] > -torch.inf).sum())
        mass = p.values[label].cumsum(-1)
        assert count > 2 and mass[count - 2] < 0.3 and (mass[count - 1] >= 0.3 or count == 32)
        assert torch.equal(target.ids[label, :count], p.indices[label, :count])
        assert (target.ids[label, count:] == target.ids[label, 0]).all()
    assert plain.ids.shape == (3, 2) and plain.mass < target.mass
    given = torch.randn(3, 200, dtype=torch.float64)
    wide = target.widened(40)
    torch.testing.assert_close(divergence(given, wide), divergence(given, target))
