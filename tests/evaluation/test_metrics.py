"""Metrics, bootstrap intervals and paired differences, beside slow computations and libraries."""

import importlib.util
import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from foreword.config import ResamplingConfig
from foreword.errors import DependencyError, InputError
from foreword.evaluation import bootstrap, metrics
from foreword.evaluation.bootstrap import difference, score
from foreword.evaluation.metrics import (
    CALIBRATION,
    METRICS,
    Outcome,
    check_vote,
    choose,
    row_metric,
    same_json,
    same_label,
)

FAST = ResamplingConfig(num_resamples=200)
LABELS = [Outcome(e, a) for e, a in ("aa", "ab", "bb", "bb", "ca", "cc", "ac", "b?")]


def names(expected: list[str]) -> list[str]:
    return [metric.name for metric in choose("auto", expected).metrics]


def test_json_is_compared_by_meaning() -> None:
    assert same_json('{"a": 1.0, "b": 2}', '{"b":2,"a":1}')
    assert not same_json("{", "{}") and not same_json("{", "{")
    assert not same_json('{"a": true}', '{"a": 1}') and not same_json("[[1]]", "[1]")


@pytest.mark.parametrize(
    "one, other",
    [
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a": 1e400}', '{"a": Infinity}'),
        ('{"a": 1, "a": 2}', '{"a": 2}'),
        ("9007199254740993.0", "9007199254740992"),
        ("1e99999999999999999999", "1e99999999999999999999"),
        ('["1.5"]', "[1.5]"),
    ],
)
def test_what_python_alone_takes_for_equal_json_is_not(one: str, other: str) -> None:
    assert not same_json(one, other)


def test_fractions_are_equal_however_they_are_written() -> None:
    assert same_json("[1.50, 1e2]", "[15e-1, 100]") and not same_json("[0.1]", "[0.10000001]")


def test_a_label_has_no_case_and_no_final_stop() -> None:
    assert same_label(' "Sports."\n', "sports") and not same_label("sports news", "sports")
    assert same_label('"yes".', "yes") and same_label("'Yes!'", "yes")


def test_labels_that_are_punctuation_stay_apart() -> None:
    assert same_label(".", ".") and not same_label("!", ".") and not same_label("", ".")


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "the cat mat" is common: 3 of 4 answered words, 3 of 6 expected ones.
    found = metrics.rouge_l("the cat, a mat", "the cat sat on the mat")
    assert found == pytest.approx(2 * 0.75 * 0.5 / 1.25)


def test_rouge_l_knows_the_words_of_any_script() -> None:
    assert metrics.rouge_l("Привет, мир", "привет мир") == 1.0
    assert metrics.rouge_l("größe über", "größe unter") == pytest.approx(0.5)
    assert metrics.rouge_l("你好世界", "你好") == pytest.approx(2 * 0.5 / 1.5)
    # Marks belong to the letter that they stand on, written as one character or two.
    assert metrics.rouge_l("कि", "का") == 0.0 and metrics.rouge_l("हिन्दी में", "हिन्दी") > 0.6
    assert metrics.words_of("हिन्दी में पानी") == ["हिन्दी", "में", "पानी"]
    assert (
        metrics.rouge_l("cafe\u0301", "café") == 1.0 and metrics.rouge_l("cafe\u0301", "cafe") == 0
    )
    assert metrics.words_of("can't_do 1️⃣ a1") == ["can", "t", "do", "1️⃣", "a1"]
    assert metrics.rouge_l("...", " ...") == 1.0 and metrics.rouge_l("...", "!") == 0.0


def test_macro_f1_is_scikit_learns_over_the_expected_classes() -> None:
    expected, answered = ([getattr(o, side) for o in LABELS] for side in ("expected", "answer"))
    counts = np.random.default_rng(0).multinomial(8, [1 / 8] * 8, size=20)
    options = {"average": "macro", "labels": ["a", "b", "c"], "zero_division": np.nan}
    slow = [f1_score(expected, answered, sample_weight=row, **options) for row in counts]
    assert METRICS["macro_f1"].sample(LABELS, counts) == pytest.approx(slow)
    plain = f1_score(expected, answered, **options)
    assert score(METRICS["macro_f1"], LABELS, FAST).value == pytest.approx(plain)


def test_the_loss_is_the_mean_over_labels_not_over_rows() -> None:
    rows = [Outcome("", loss=6.0, num_labels=2), Outcome("", loss=1.0, num_labels=5)]
    assert score(METRICS["loss"], rows, FAST).value == 1.0


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_counts_score_as_repeated_rows_do(name: str) -> None:
    counts = np.array([[2, 0, 1, 1, 1, 1, 1, 1], [1, 2, 0, 1, 2, 1, 1, 0]])
    repeated = [[o for o, n in zip(LABELS, row, strict=True) for _ in range(n)] for row in counts]
    slow = [METRICS[name].sample(rows, np.ones((1, 8), int))[0] for rows in repeated]
    assert METRICS[name].sample(LABELS, counts) == pytest.approx(slow)


def test_a_class_missing_from_a_resample_does_not_count() -> None:
    found = METRICS["macro_f1"].sample(LABELS, np.array([[8, 0, 0, 0, 0, 0, 0, 0]]))
    assert found == [1.0]


def test_the_interval_is_that_of_plain_resampling() -> None:
    rows = [Outcome("x", "x" if index % 3 else "y") for index in range(60)]
    found = score(METRICS["exact"], rows, ResamplingConfig(num_resamples=2000))
    chance = random.Random(1)
    slow = sorted(sum(o.answer == "x" for o in chance.choices(rows, k=60)) / 60 for _ in range(999))
    assert found.value == pytest.approx(2 / 3)
    assert found.low == pytest.approx(slow[25], abs=0.02)
    assert found.high == pytest.approx(slow[974], abs=0.02)


def test_the_seed_decides_the_interval_and_blocks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    once = score(METRICS["accuracy"], LABELS, FAST)
    monkeypatch.setattr(bootstrap, "MAX_COUNTS", 24)
    again = score(METRICS["accuracy"], LABELS, FAST)
    other = score(METRICS["accuracy"], LABELS, ResamplingConfig(num_resamples=200, seed=5))
    assert (once.samples == again.samples).all() and (once.samples != other.samples).any()


def test_a_difference_is_paired_by_examples() -> None:
    first = [Outcome("x", "x" if index % 2 else "y") for index in range(40)]
    better = [*first[:-4], *(Outcome("x", "x"),) * 4]
    one, two = (score(METRICS["exact"], rows, FAST) for rows in (first, better))
    paired = difference(two, one, FAST)
    assert paired.value == pytest.approx(0.05)
    # Only four rows differ: unpaired, both would sway by some thirty points.
    assert paired.low >= 0 and paired.high <= 0.2 and one.high - one.low > 0.2
    assert not difference(one, one, FAST).excludes_zero


@pytest.mark.parametrize(("confidence", "enough"), [(0.9, 5), (0.95, 6), (0.999, 11)])
def test_few_examples_are_never_beyond_chance(confidence: float, enough: int) -> None:
    """Where all of n differ to one side, a sign test gives 2 ** (1 - n)."""
    resampling = ResamplingConfig(num_resamples=50, confidence=confidence)
    for count in (2, enough - 1, enough, enough + 1):
        right, wrong = (
            score(METRICS["exact"], [Outcome("x", said)] * count, resampling) for said in "xy"
        )
        found = difference(right, wrong, resampling)
        assert found.excludes_zero is (count >= enough)
        assert found.excludes_zero is (2 ** (1 - count) <= 1 - confidence + 1e-12)


def test_scores_of_other_examples_are_not_paired() -> None:
    loss = METRICS["loss"]
    two, three = (score(loss, [Outcome("", loss=1.0, num_labels=1)] * n, FAST) for n in (2, 3))
    with pytest.raises(InputError, match="3 examples with 200 resamples beside 2"):
        difference(three, two)


def test_one_example_has_no_interval() -> None:
    found = score(METRICS["exact"], [Outcome("a", "a")], FAST)
    assert found.value == 1 and not found.has_interval and found.as_dict()["low"] is None
    assert not difference(found, found, FAST).excludes_zero


def test_auto_looks_at_the_answers() -> None:
    assert names(["spam", "ham"] * 5) == ["loss", "accuracy", "macro_f1"]
    assert names(['{"a": 1}', "[2]"]) == ["loss", "json", "exact"]
    assert names(["a sentence of many more words than any label would have"] * 4)[1] == "rouge_l"
    assert names(["12", "15", "19"]) == ["loss", "exact"]
    assert "2 distinct short answers" in choose("auto", ["spam", "ham"] * 5).reason


def test_metrics_are_asked_for_by_name() -> None:
    chosen = choose("exact, json,exact", ["a"]).metrics
    assert [metric.name for metric in chosen] == ["exact", "json"]
    with pytest.raises(InputError, match="ece, got 'bleu'"):
        choose("bleu", ["a"])


def test_a_missing_extra_is_said_and_only_a_wish_for_it_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"rouge_l needs an extra: pip install 'foreword\["):
        choose("rouge_l", ["a"])
    chosen = choose("auto", ["a sentence of many more words than any label would have"])
    assert [metric.name for metric in chosen.metrics] == ["loss"]
    assert "without rouge_l, which needs: pip install 'foreword[eval]'" in chosen.reason


def test_any_function_of_two_texts_is_a_metric() -> None:
    longer = row_metric("longer", lambda answer, expected: len(answer) > len(expected))
    assert score(longer, [Outcome("a", "bb"), Outcome("a", "b")], FAST).value == 0.5


def test_a_vote_needs_a_metric_of_answers() -> None:
    check_vote([METRICS["loss"], METRICS["exact"]])
    for none in ([METRICS["loss"]], [METRICS["loss"], CALIBRATION]):
        with pytest.raises(InputError, match="the metrics read none"):
            check_vote(none)


def test_answers_of_one_conversation_are_drawn_together() -> None:
    """Ten answers of one conversation are one example; alone or in pairs they are as before."""
    right = [Outcome("x", "x", conversation=f"row {number // 10}") for number in range(40)]
    wrong = [replace(one, answer="y") for one in right]
    found = [score(METRICS["exact"], outcomes, FAST) for outcomes in (right, wrong)]
    assert [one.num_examples for one in found] == [4, 4]
    assert not difference(found[0], found[1], FAST).excludes_zero
    # Half of the conversations are right in all: the interval is that of four examples.
    mixed = [replace(one, answer="x" if one.conversation < "row 2" else "y") for one in right]
    few = [Outcome("x", answer) for answer in "xxyy"]
    one, other = score(METRICS["exact"], mixed, FAST), score(METRICS["exact"], few, FAST)
    assert (one.value, one.low, one.high) == (other.value, other.low, other.high)
    alone = score(METRICS["exact"], [replace(one, conversation="") for one in mixed], FAST)
    assert alone.num_examples == 40 and alone.high - alone.low < one.high - one.low
