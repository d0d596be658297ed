"""The guards: each is seen to act, and says what it saw and did; none speaks of a healthy run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Row, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.errors import DivergedError, TrainingError
from foreword.training import guards, loop, out_of_memory, step
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.early_stopping import worsening
from foreword.training.guards import standstill
from foreword.training.objective import Likelihood
from foreword.training.out_of_memory import step_that_fits
from foreword.training.validation import Validation, score_rows

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(2, seed=5).tolist())
    for length in (4, 9, 6, 5)
]
CONFIG = TrainConfig(
    form="embeddings", num_virtual_tokens=4, batch_size=2, num_steps=30, eval_every=0,
    learning_rate=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=torch.float32, num_hidden_layers=1))


def events_of(backbone: Backbone, **changes: Any) -> list[TrainEvent]:
    return list(train(backbone, ROWS, dataclasses.replace(CONFIG, **changes)))


def said(events: list[TrainEvent]) -> str:
    return "\n".join(notice for event in events for notice in event.notices)


def breaking(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float], times: int = 1) -> None:
    """Let the `n`-th call of the step report a loss that it did not have."""
    step, calls = out_of_memory.train_step, [0]

    def changed(run: Any, state: Any, rows: Any) -> tuple[float, float]:
        loss, norm = step(run, state, rows)
        calls[0] += 1
        loss = losses.get(calls[0], loss)
        guards.check_gradient(loss, norm)
        return loss, norm

    monkeypatch.setattr(out_of_memory, "train_step", changed)


def test_a_healthy_run_says_nothing(backbone: Backbone) -> None:
    assert said(events_of(backbone)) == ""


def test_nan_goes_back_to_the_last_good_step_at_half_the_rate(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = events_of(backbone)
    breaking(monkeypatch, {25: math.nan})
    events = events_of(backbone)
    assert [e.step for e in events] == [*range(1, 25), *range(21, 31)]
    assert "near step 25 the loss is nan" in events[24].notices[0]
    assert "back to step 20, with 0.5 of the learning rate" in events[24].notices[0]
    assert events[24].loss == calm[20].loss, "the values are those of the good step"
    assert events[24].learning_rate == calm[20].learning_rate / 2
    assert said(events[25:]) == ""


def test_an_explosion_goes_back_too(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, {step: 50.0 for step in (23, 24, 25)})
    events = events_of(backbone)
    assert "rose from" in said(events) and "back to step 20" in said(events)


def test_one_hard_batch_is_no_explosion(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {23: 50.0, 24: 50.0})
    assert said(events_of(backbone)) == ""


class Given:
    """A source of rows that the last share of the steps takes: each an own one, in order."""

    group, num_more = 1, 0

    def __init__(self, rows: list[Row], share: float = 1.0) -> None:
        self.given, self.share, self.identity = rows, share, dict[str, Any]()

    def rows(self, prompt: Any, rows: Any, step: int, ranks: Any) -> list[Row]:
        return [self.given[step]]


@pytest.fixture(scope="module")
def uneven() -> Backbone:
    changes = {"num_hidden_layers": 1, "initializer_range": 0.6}
    return Backbone(tiny_models.build("llama", dtype=torch.float32, **changes))


def still(backbone: Backbone) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4))


@pytest.fixture(scope="module")
def easy_and_hard(uneven: Backbone) -> tuple[Row, Row]:
    rows = [Row.from_ids([3, 4, 5], [label], f"label {label}") for label in range(10, 97)]
    losses = score_rows(uneven, still(uneven), rows).losses
    return rows[losses.argmin()], rows[losses.argmax()]


STILL = dataclasses.replace(CONFIG, batch_size=1, learning_rate=1e-9)


def test_hard_rows_after_an_easy_one_are_no_explosion(
    uneven: Backbone, easy_and_hard: tuple[Row, Row]
) -> None:
    easy, hard = easy_and_hard
    source = Given([easy, *[hard] * 29])
    events = list(train(uneven, [easy, hard], STILL, source=source, initial=still(uneven)))
    assert events[1].loss > 2 * events[0].loss + 1 and events[1].loss == events[3].loss
    assert [event.step for event in events] == list(range(1, 31))
    assert said(events).count("loss") == 0


def test_another_source_of_rows_is_no_explosion_and_has_good_points(
    uneven: Backbone, easy_and_hard: tuple[Row, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    easy, hard = easy_and_hard
    source = Given([hard] * 30, share=0.5)
    breaking(monkeypatch, {25: math.nan})
    events = list(train(uneven, [easy], STILL, source=source, initial=still(uneven)))
    assert events[15].loss > 2 * events[14].loss + 1
    assert [event.step for event in events] == [*range(1, 25), *range(21, 31)]
    assert "back to step 20" in said(events)


def test_a_loss_of_other_rows_is_no_standstill(
    uneven: Backbone, easy_and_hard: tuple[Row, Row]
) -> None:
    easy, hard = easy_and_hard
    config = dataclasses.replace(STILL, num_steps=60, warmup_share=0.0)
    for share, is_said in ((0.5, False), (1.0, True)):
        source = Given([hard] * 60, share)
        events = list(train(uneven, [easy], config, source=source, initial=still(uneven)))
        assert ("it does not move" in said(events)) is is_said


def test_an_explosion_of_the_values_goes_back_too(
    uneven: Backbone, easy_and_hard: tuple[Row, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    easy, _ = easy_and_hard
    take, calls = out_of_memory.train_step, [0]

    def thrown(run: Any, state: Any, rows: Any) -> tuple[float, float]:
        calls[0] += 1
        found = take(run, state, rows)
        if calls[0] == 4:
            state.method.tensors[0].data = state.method.tensors[0].data.flip(-1)
        return found

    monkeypatch.setattr(out_of_memory, "train_step", thrown)
    config = dataclasses.replace(STILL, num_steps=10)
    events = list(train(uneven, [easy], config, initial=still(uneven)))
    assert [event.step for event in events] == [*range(1, 7), *range(1, 11)]
    assert f"rose from {events[0].loss:.3g} to {events[5].loss:.3g}" in said(events)
    assert events[6].loss == events[0].loss == events[-1].loss


def test_an_explosion_is_seen_across_a_stop(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, {step: 50.0 for step in (23, 24, 25)})
        calm = events_of(backbone)[-1].prompt
    with monkeypatch.context() as patch:
        breaking(patch, {23: 50.0, 24: 50.0})
        events = train(backbone, ROWS, CONFIG, checkpoint=tmp_path)
        for _ in range(24):
            next(events)
        events.close()
    breaking(monkeypatch, {1: 50.0})
    first, *_, last = train(backbone, ROWS, CONFIG, checkpoint=tmp_path, resume=True)
    assert "back to step 20" in first.notices[0]
    assert last.prompt.content_hash == calm.content_hash


def test_a_point_whose_loss_is_high_is_no_good_point(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {21: 50.0, 25: math.nan})
    assert "back to step 0" in said(events_of(backbone))


def test_a_run_that_keeps_diverging_ends(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {step: math.nan for step in range(25, 99)})
    with pytest.raises(DivergedError, match="went back 3 times in vain"):
        events_of(backbone)


def test_a_run_that_went_back_resumes_and_goes_back_as_one_never_stopped(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, {25: math.nan, 29: math.nan})
        calm = events_of(backbone)[-1].prompt
    with monkeypatch.context() as patch:
        breaking(patch, {25: math.nan})
        events = train(backbone, ROWS, CONFIG, checkpoint=tmp_path)
        for _ in range(27):
            next(events)
        events.close()
    stored = read_state(tmp_path / STATE_FILE)
    assert (stored.progress().step, stored.progress().num_returns) == (23, 1)
    breaking(monkeypatch, {1: math.nan})
    first, *_, last = train(backbone, ROWS, CONFIG, checkpoint=tmp_path, resume=True)
    assert "back to step 20, with 0.25 of" in first.notices[0]
    assert last.prompt.content_hash == calm.content_hash


def test_a_base_that_overflows_is_trained_at_a_lower_rate() -> None:
    model = tiny_models.build("llama", dtype=torch.float32, num_hidden_layers=1)

    def overflow(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * (math.inf if inputs[0].abs().max() > 2.5 else 1.0), *inputs[1:])

    model.model.layers[0].register_forward_pre_hook(overflow)
    events = events_of(Backbone(model), learning_rate=0.3)
    assert "back to step" in said(events) and events[-1].step == 30
    assert events[-1].loss < 0.7 * events[0].loss


def test_patience_ends_the_run_and_keeps_the_best(backbone: Backbone) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.5, eval_every=1, patience=2)
    held_out = [Row.from_ids([8, 9, 10], [90, 91])]
    events = list(train(backbone, ROWS, config, validation=held_out))
    losses = [event.validation.loss for event in events]
    assert len(events) < 30 and min(losses[-2:]) > min(losses)
    assert "with no better one in 2: stopped, the best is kept" in events[-1].notices[0]
    assert events[-1].prompt.facts["metrics"]["validation"]["loss"] == min(losses)


def test_an_early_end_stays_an_end(backbone: Backbone, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.5, eval_every=1, patience=1)
    held_out = [Row.from_ids([8, 9, 10], [90, 91])]
    first = list(train(backbone, ROWS, config, validation=held_out, checkpoint=tmp_path))
    (again,) = train(backbone, ROWS, config, validation=held_out, checkpoint=tmp_path, resume=True)
    assert again.step == first[-1].step < 30


def test_validations_that_worsen_are_spoken_of_once() -> None:
    worse = [(1, 2.0), (2, 1.0), (3, 1.1), (4, 1.2), (5, 1.3)]
    assert worsening(worse[:4], (2, 1.0), 0) == (None, False)
    sentence, is_over = worsening(worse, (2, 1.0), 0)
    assert "was 1 at step 2 and is 1.3 now" in str(sentence) and not is_over
    assert worsening([*worse, (6, 1.4)], (2, 1.0), 0) == (None, False)


def test_the_best_is_spoken_of_as_it_was_though_the_run_went_back(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 3.0, 2.0, 2.5, 2.6])  # the third step diverges, once
    steps = iter(range(1, 9))

    class Told(Likelihood):
        def validate(self, *_: Any) -> Validation:
            return Validation(next(losses), 0.0)

    def once_diverging(*given: Any) -> tuple[float, float]:
        if next(steps) == 3:
            raise DivergedError("the loss is nan")
        return step_that_fits(*given)

    monkeypatch.setattr(loop, "step_that_fits", once_diverging)
    config = dataclasses.replace(CONFIG, eval_every=1, patience=2)
    *_, last = train(backbone, ROWS, config, validation=ROWS, objective=Told())
    assert last.step == 4 and last.prompt is not None
    assert last.notices[-1].startswith("the validation loss was 1 at step 2 and is 2.6 now, with")
    assert last.prompt.facts["metrics"]["validation"]["loss"] == 1


def test_a_loss_that_does_not_move_is_spoken_of_once() -> None:
    flat = [3.0, 3.1] * 40
    assert "it does not move" in str(standstill(flat[:60], 10))
    assert standstill(flat[:59], 10) is standstill(flat[:61], 10) is None
    falling = [3.0 - 0.01 * step for step in range(60)]
    assert standstill(falling, 10) is None


def test_a_run_that_does_not_move_says_so(backbone: Backbone) -> None:
    assert "it does not move" in said(events_of(backbone, num_steps=60, learning_rate=1e-9))


def test_rows_that_lost_their_beginning_are_counted() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    rows = [{"prompt": "a" * 30, "completion": "b"}, {"prompt": "a", "completion": "b"}]
    encoding = EncodingConfig(max_length=10, truncate=True, plain=True)
    config = dataclasses.replace(CONFIG, num_steps=1)
    (event,) = train(Backbone(model, tokenizer), rows, config, encoding_config=encoding)
    assert "1 of 2 rows were too long and lost their beginning; every label" in event.notices[0]


def test_a_dead_gradient_names_its_suspects() -> None:
    model = tiny_models.build("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output * 0.0)
    with pytest.raises(TrainingError, match="gradient of the prompt is zero.*hooks on model.norm"):
        events_of(Backbone(model))


def test_memory_that_runs_out_halves_a_pass_and_not_the_step(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Backbone(tiny_models.build("llama"))
    calm = events_of(exact, batch_size=4, num_steps=3)
    score, sizes = step.score_labels, []

    def hungry(backbone: Any, prefixes: Any, batch: Any) -> Any:
        sizes.append(len(batch.input_ids))
        scores = score(backbone, prefixes, batch)
        if len(sizes) == 2:
            scores.losses.sum().backward()  # half of a backward pass is behind
            raise torch.OutOfMemoryError("CUDA out of memory")
        if sizes[-1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return scores

    monkeypatch.setattr(step, "score_labels", hungry)
    events = events_of(exact, batch_size=4, num_steps=3)
    assert sizes == [4, 2, 1, 1, 1, 1] + [1] * 8
    assert "with 4 rows in a pass; it goes on with 2" in events[0].notices[0]
    assert "goes on with 1, and as many rows in a step" in events[0].notices[1]
    for ours, theirs in zip(events, calm, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-9)


def test_one_row_that_does_not_fit_is_one_line(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "score_labels", full)
    with pytest.raises(TrainingError, match="with one row in a pass; use --gradient-checkpoint"):
        events_of(backbone)


def test_another_runtime_error_is_not_taken_for_memory(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step, "score_labels", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        events_of(backbone)
