"""Agreement: subjects beside the model behind the whole text, each number by its definition."""

from dataclasses import replace

import oracle
import pytest
import torch
from test_distill import CONFIG, QUERIES, TEXT, backbone, lesson_of

from foreword import chat
from foreword.config import DistillConfig, ResamplingConfig
from foreword.data.encoding import start_ids
from foreword.distillation import agreement as agreements
from foreword.distillation.agreement import WHOLE, compare
from foreword.distillation.unrelated import start_token, told_rows, written_rows
from foreword.errors import InputError
from foreword.evaluation.bootstrap import share
from foreword.evaluation.evaluation import Subject
from foreword.evaluation.first_token import median_seconds
from foreword.named_text import text_prompt
from foreword.training.validation import score_rows


def test_bare_model_and_prompt_are_counted_token_by_token_beside_the_text() -> None:
    model = backbone()
    lesson = lesson_of(model)
    text = text_prompt(model, TEXT)
    subjects = [
        Subject("bare model"),
        Subject("prompt", prompt=lesson.start),
        Subject("same", prompt=text),
    ]
    found = compare(model, text, QUERIES, subjects, CONFIG, rounds=1)
    for subject in subjects[:2]:
        agreed, exact, count = 0, 0, 0
        for query in QUERIES:
            turns = [{"role": "system", "content": TEXT}, *query]
            given = torch.tensor(chat.encode(model, turns, chat.encoding_of(None))[0])
            answer = oracle.greedy(model.model, None, given, 6)
            own = torch.tensor([*chat.encode(model, query, chat.encoding_of(None))[0], *answer])
            logits = oracle.row_logits(model.model, subject.prompt, own)[-7:-1]
            same = [int(one) for one in logits.argmax(-1)] == answer
            agreed += int((logits.argmax(-1) == torch.tensor(answer)).sum())
            exact, count = exact + same, count + 6
        ours = found.agreements[subject.name]
        assert ours.tokens.value == agreed / count and ours.answers.value == exact / len(QUERIES)
        assert ours.tokens.low <= ours.tokens.value <= ours.tokens.high
    same = found.agreements["same"]
    assert same.tokens.value == same.answers.value == 1 and same.divergence.value < 1e-6
    assert same.answers.low < 1 == same.answers.high, "all of eight is not all of any number"
    costs = found.costs
    assert costs["bare model"].cache_bytes == 0 and costs["bare model"].unrelated < 1e-9
    ratio = costs[WHOLE].cache_bytes / costs["prompt"].cache_bytes
    assert ratio == text.num_virtual_tokens / 8 and costs["prompt"].unrelated > 0
    assert WHOLE not in found.agreements and found.reading > 0


def test_a_share_has_the_interval_of_wilson() -> None:
    # Newcombe 1998, table I: 81 of 263 and 0 of 20 and 29 of 29, without continuity correction.
    for count, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (0, 20, 0, 0.1611),
        (29, 29, 0.8830, 1),
    ):
        found = share(count, total)
        assert found.low == pytest.approx(low, abs=5e-5)
        assert found.high == pytest.approx(high, abs=5e-5)
    assert share(5, 10, 0.5).high < share(5, 10, 0.9).high
    with pytest.raises(InputError, match="no examples"):
        share(0, 0)


def test_an_interval_of_tokens_is_wide_where_rows_go_together() -> None:
    model = backbone()
    lesson = lesson_of(model)
    rows = [*lesson.rows[:1] * 4, *lesson.held_out[:1] * 4]
    few = agreements.agreement(model, lesson.start, rows, resampling=ResamplingConfig(seed=1))
    each = agreements.agreement(model, lesson.start, rows[:1]).tokens
    assert not each.has_interval, "one row cannot be resampled"
    other = agreements.agreement(model, lesson.start, rows[-1:]).tokens
    expected = (each.value + other.value) / 2
    assert few.tokens.value == pytest.approx(expected)
    with pytest.raises(InputError, match="no queries"):
        agreements.agreement(model, lesson.start, [])


def test_times_are_taken_in_turn() -> None:
    calls: list[str] = []
    found = median_seconds({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=2)
    assert calls == ["a", "b"] * 3 and set(found) == {"a", "b"}


def test_one_start_token_tells_what_any_prefix_changes() -> None:
    model = backbone()
    prompt, known = start_token(model), model.tokenizer
    ids = (*start_ids(known), known.bos_token_id, known.eos_token_id)
    start = [next(one for one in ids if one is not None)]
    assert prompt.num_virtual_tokens == 1
    for row in told_rows(model, DistillConfig()):
        plain = replace(row, target=None)
        in_text = replace(plain, input_ids=(*start, *row.input_ids))
        losses = [
            score_rows(model, *pair).whole().loss for pair in ((prompt, [plain]), (None, [in_text]))
        ]
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_the_base_writes_the_unrelated_rows_that_are_trained_on() -> None:
    model, config = backbone(), DistillConfig(top_k=4, answer_batch=3)
    told = told_rows(model, config)
    for count in (0, 1, 7):
        rows = written_rows(model, count, config, seed=0)
        again, other = (written_rows(model, count, config, seed=seed) for seed in (0, 1))
        assert len({row.input_ids for row in rows}) == len(rows) == count
        assert rows == again and not {row.input_ids for row in rows + told} & {
            row.input_ids for row in other
        }
    start = start_ids(model.tokenizer)
    for row in (*rows, *told):  # whose teacher is the bare model, token by token
        assert [*row.input_ids[: len(start)]] == start and row.source == "unrelated text"
        logits = oracle.row_logits(model.model, None, torch.tensor(row.input_ids))
        expected = logits[len(row.input_ids) - row.num_labels - 1 : -1].log_softmax(-1)
        assert row.target is not None
        found = expected.gather(-1, row.target.ids)
        is_kept = row.target.log_probabilities > -torch.inf
        torch.testing.assert_close(row.target.log_probabilities[is_kept], found[is_kept].float())
