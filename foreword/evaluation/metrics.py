"""Metrics: scores of answers against what was expected, and which of them fit the data.

In: for each example what was expected, what was answered, and the loss of its labels. Out: for each
resample of the examples a score. A metric takes all resamples at once, as counts `[R, n]` of how
often each of `n` examples is drawn; a row of ones is the plain score. Knows no model, no file and
no interval.
"""

import functools
import importlib
import importlib.util
import json
import re
import statistics
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.data.class_names import label_of, num_classes
from foreword.data.several import several
from foreword.data.tool_calls import ToolCall
from foreword.errors import DependencyError, InputError

Counts = NDArray[np.int64]
Scores = NDArray[np.float64]

INSTALL = "pip install 'foreword[eval]'"
IDEOGRAPHS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
NUM_BINS = 10  # of confidence
MIN_LONG_WORDS = 8  # answers longer than this, in the median, are compared by overlap


@dataclass(frozen=True)
class Outcome:
    """One example and the model's answer to it.

    Attributes:
        expected: the answer of the data.
        answer: of the model.
        loss: cross entropy of all labels of the example together, in nats.
        num_labels: tokens that were labels, the end included.
        expected_calls: calls of tools in the answer of the data.
        calls: of tools, in the answer of the model.
        confidence: the probability of an answer that was chosen from a few.
        conversation: tells the conversation that it shares with others; "" where it shares none.
    """

    expected: str
    answer: str = ""
    loss: float = 0.0
    num_labels: int = 0
    expected_calls: tuple[ToolCall, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    confidence: float = 0.0
    conversation: str = ""


@dataclass(frozen=True)
class Metric:
    """One way to score.

    Attributes:
        name: as options and tables call it.
        sample: scores `[R]` of outcomes `n` under counts `[R, n]`.
        of_row: the score of one outcome, where that means something; True and False are right and
            wrong.
        is_share: whether it lies between 0 and 1, to be shown in percent.
        is_better_low: whether less is better.
        needs_loss: whether it needs the loss, and not the answer.
        needs_calls: whether it needs the calls in an answer, and not its text.
        needs_confidence: whether it needs how likely an answer is.
    """

    name: str
    sample: Callable[[Sequence[Outcome], Counts], Scores]
    of_row: Callable[[Outcome], float | bool] | None = None
    is_share: bool = True
    is_better_low: bool = False
    needs_loss: bool = False
    needs_calls: bool = False
    needs_confidence: bool = False


@dataclass(frozen=True)
class MetricChoice:
    """Metrics, and the reason why these were chosen."""

    metrics: tuple[Metric, ...]
    reason: str


def row_metric(name: str, of_pair: Callable[[str, str], float | bool]) -> Metric:
    """Return the mean over the examples of a function of answer and expected text."""

    return _mean_metric(name, lambda outcome: of_pair(outcome.answer, outcome.expected))


def _mean_metric(
    name: str, of_row: Callable[[Outcome], float | bool], *, needs_calls: bool = False
) -> Metric:
    def sample(outcomes: Sequence[Outcome], counts: Counts) -> Scores:
        values = np.array([of_row(outcome) for outcome in outcomes], dtype=np.float64)
        return np.asarray(counts @ values / counts.sum(1))

    return Metric(name, sample, of_row, needs_calls=needs_calls)


def exact(answer: str, expected: str) -> bool:
    """Whether the texts are equal, but for white space around them."""
    return answer.strip() == expected.strip()


def same_label(answer: str, expected: str) -> bool:
    """Whether both name the same class."""
    return label_of(answer) == label_of(expected)


def same_json(answer: str, expected: str) -> bool:
    """Whether both are JSON and mean the same."""
    found, wanted = read_json(answer), read_json(expected)
    try:
        return found is not None and _same(found, wanted)
    except RecursionError:
        return False


def read_json(text: str) -> Any:
    """Return the value of a JSON text in a list of one; None where it is not JSON.

    NaN and infinity, which Python accepts, and repeated names are not JSON. Fractions are exact.
    """
    try:
        return [
            json.loads(
                text,
                parse_float=Decimal,
                parse_constant=_refuse_constant,
                object_pairs_hook=_with_unique_names,
            )
        ]
    except (ValueError, ArithmeticError, RecursionError):
        return None


def same_calls(outcome: Outcome) -> bool:
    """Whether an answer calls the tools that it should, in the same order, each with arguments that
    mean the same in JSON; an answer without calls is right where none are expected.
    """
    pairs = zip(outcome.calls, outcome.expected_calls, strict=False)
    return len(outcome.calls) == len(outcome.expected_calls) and all(
        one.name == other.name and _same(one.arguments, other.arguments) for one, other in pairs
    )


def rouge_l(answer: str, expected: str) -> float:
    """Return ROUGE-L (F-measure): the longest common subsequence of words, in their order.

    Words are runs of letters and digits of any script with their marks, without case; a Chinese or
    Japanese character is one. Texts without any word are compared as they are.

    Raises:
        DependencyError: the extra `eval` is not installed.
    """
    found = float(_rouge_scorer().score(expected, answer)["rougeL"].fmeasure)
    if found or words_of(answer) or words_of(expected):
        return found
    return float(exact(answer, expected))


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON: 1 is 1.0; true is not 1, though it is in Python."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _refuse_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _with_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return found


class _WordTokenizer:
    """Splits text of any script; the library's own knows only Latin letters without accents."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words_of(text)


def words_of(text: str) -> list[str]:
    """Return the words of a text, in lower case and composed (Unicode's NFC)."""
    return _word().findall(unicodedata.normalize("NFC", text.lower()))


@functools.cache
def _word() -> re.Pattern[str]:
    """Return what finds a word. Python's `\\w` holds letters, and not the marks that stand on them,
    as vowels do in Hindi.
    """
    every = map(chr, range(sys.maxunicode + 1))
    marks = "".join(one for one in every if unicodedata.category(one)[0] == "M")
    letter = f"[^\\W_{IDEOGRAPHS}]"
    return re.compile(f"[{IDEOGRAPHS}][{marks}]*|{letter}(?:{letter}|[{marks}])*")


@functools.cache
def _rouge_scorer() -> Any:
    scorer = _extra("rouge_score.rouge_scorer", "rouge_l")
    return scorer.RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


def _mean_loss(outcomes: Sequence[Outcome], counts: Counts) -> Scores:
    losses = np.array([outcome.loss for outcome in outcomes])
    labels = np.array([outcome.num_labels for outcome in outcomes], dtype=np.float64)
    return np.asarray(counts @ losses / (counts @ labels))


def _macro_f1(outcomes: Sequence[Outcome], counts: Counts) -> Scores:
    """Average F1 over the classes of the expected answers; any other answer is just wrong.

    A class that a resample neither expects nor answers is left out of its average.
    """
    expected = np.array([label_of(outcome.expected) for outcome in outcomes])
    answered = np.array([label_of(outcome.answer) for outcome in outcomes])
    total, num_classes = np.zeros(len(counts)), np.zeros(len(counts))
    for name in np.unique(expected):
        is_expected, is_answered = expected == name, answered == name
        hits = counts @ (is_expected & is_answered)
        size = counts @ (is_expected.astype(np.int64) + is_answered)
        total += 2 * hits / np.maximum(size, 1)
        num_classes += size > 0
    return np.asarray(total / num_classes)


def _calibration_error(outcomes: Sequence[Outcome], counts: Counts) -> Scores:
    """Return the expected calibration error: over ten bins of equal width, the mean distance of
    confidence from the share that is right (Naeini et al. 2015; Guo et al., arXiv:1706.04599).
    """
    sure = np.array([outcome.confidence for outcome in outcomes])
    right = np.array([same_label(one.answer, one.expected) for one in outcomes], dtype=np.float64)
    places = np.minimum((sure * NUM_BINS).astype(int), NUM_BINS - 1)
    distance = sum(
        np.abs(counts[:, places == one] @ (sure - right)[places == one]) for one in range(NUM_BINS)
    )
    return np.asarray(distance / counts.sum(1))


CALIBRATION = Metric("ece", _calibration_error, is_better_low=True, needs_confidence=True)
METRICS = {
    metric.name: metric
    for metric in (
        Metric("loss", _mean_loss, is_share=False, is_better_low=True, needs_loss=True),
        row_metric("accuracy", same_label),
        Metric("macro_f1", _macro_f1),
        row_metric("exact", exact),
        row_metric("json", same_json),
        row_metric("rouge_l", rouge_l),
        _mean_metric("calls", same_calls, needs_calls=True),
        CALIBRATION,
    )
}
EXTRAS = {"rouge_l": "rouge_score"}
"""What a metric needs beyond foreword itself."""


def choose(
    names: str, expected: Sequence[str], has_calls: bool = False, has_choices: bool = False
) -> MetricChoice:
    """Return the metrics of a list such as "loss,exact", or those that fit the answers: "auto";
    where answers are chosen also how far their probabilities are from the share that is right.

    Args:
        names: as asked for.
        expected: the texts of the answers.
        has_calls: whether any of the answers calls a tool.
        has_choices: whether each answer is the likeliest of a few.

    Raises:
        InputError: an unknown name, or a metric of chosen answers where none are chosen.
        DependencyError: one that was asked for needs an extra.
    """
    found = _named(names, expected, has_calls)
    return replace(found, metrics=_for_choices(found.metrics, has_choices))


def _named(names: str, expected: Sequence[str], has_calls: bool) -> MetricChoice:
    if names == "auto" and has_calls:
        return MetricChoice((METRICS["loss"], METRICS["calls"]), "answers call tools")
    if names == "auto":
        return _chosen(expected)
    wanted = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    unknown = [name for name in wanted if name not in METRICS]
    if unknown or not wanted:
        raise InputError(
            f"--metrics: expected 'auto' or some of {', '.join(METRICS)}, got {names!r}"
        )
    for name in wanted:
        _check_extra(name)
    return MetricChoice(tuple(METRICS[name] for name in wanted), "as asked")


def _for_choices(metrics: tuple[Metric, ...], has_choices: bool) -> tuple[Metric, ...]:
    if has_choices:
        return metrics if CALIBRATION in metrics else (*metrics, CALIBRATION)
    for metric in metrics:
        if metric.needs_confidence:
            raise InputError(
                f"--metrics {metric.name} is of answers that are chosen from a few: give --choices"
            )
    return metrics


def metrics_of(
    given: Any, expected: Sequence[str], has_calls: bool = False, has_choices: bool = False
) -> tuple[Metric, ...]:
    """Return metrics that are given as such, or by their names: "loss,exact", ["loss", "exact"], or
    "auto", see `choose`.

    Raises:
        InputError: none of both. DependencyError: one needs an extra.
    """
    if isinstance(given, str):
        return choose(given, expected, has_calls, has_choices).metrics
    found = several("metrics", given, "metrics or their names")
    for one in found:
        if not isinstance(one, str | Metric):
            raise InputError(f"metrics: expected metrics or their names, got {type(one).__name__}")
    if not found:
        raise InputError(f"metrics: expected some of {', '.join(METRICS)}, got none")
    metrics = tuple(
        _named(one, expected, has_calls).metrics[0] if isinstance(one, str) else one
        for one in found
    )
    return _for_choices(metrics, has_choices)


def check_vote(metrics: Sequence[Metric]) -> None:
    """Refuse a vote where no metric is of answers: a vote has no losses and no confidence.

    Raises:
        InputError: there is none.
    """
    if all(metric.needs_loss or metric.needs_confidence for metric in metrics):
        raise InputError(
            "a vote is taken over answers, and the metrics read none: add exact or another metric "
            "of answers (--metrics), or take --ensemble average"
        )
    if any(metric.needs_calls for metric in metrics):
        raise InputError("a vote is taken over texts, and answers call tools: compare the prompts")


def _chosen(expected: Sequence[str]) -> MetricChoice:
    names, reason = _fitting(expected)
    missing = [name for name in names if not _has_extra(name)]
    if missing:
        reason += f"; without {', '.join(missing)}, which needs: {INSTALL}"
    return MetricChoice(tuple(METRICS[name] for name in names if name not in missing), reason)


def _fitting(expected: Sequence[str]) -> tuple[list[str], str]:
    words = [len(text.split()) for text in expected]
    if all(isinstance((read_json(text) or [None])[0], dict | list) for text in expected):
        return ["loss", "json", "exact"], "every answer is JSON"
    if count := num_classes(expected):
        return ["loss", "accuracy", "macro_f1"], f"{count} distinct short answers"
    median = statistics.median(words)
    if median > MIN_LONG_WORDS:
        return ["loss", "rouge_l"], f"long answers, in words: median {median:g}"
    count = len(set(map(label_of, expected)))
    return ["loss", "exact"], f"{count} distinct answers, in words: median {median:g}"


def _has_extra(name: str) -> bool:
    return name not in EXTRAS or importlib.util.find_spec(EXTRAS[name]) is not None


def _check_extra(name: str) -> None:
    if not _has_extra(name):
        raise DependencyError(f"metric {name} needs an extra: {INSTALL}")


def _extra(module: str, name: str) -> Any:
    _check_extra(name)
    return importlib.import_module(module)
