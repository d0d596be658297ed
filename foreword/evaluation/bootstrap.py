"""Bootstrap: scores with intervals, and paired differences between them.

In: outcomes and a metric. Out: a `Score`: the value, its interval, and the value of every resample;
for a share of yes or no alone, a `Share` with the Wilson interval.
Resamples depend on the seed and the number of examples alone, so two subjects on the same examples
are resampled alike, and their difference is paired. Knows no model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from foreword.config import ResamplingConfig
from foreword.errors import InputError
from foreword.evaluation.metrics import Counts, Metric, Outcome

MAX_COUNTS = 1 << 24  # numbers in one block of counts: 128 MB
_DEFAULTS = ResamplingConfig()


@dataclass(frozen=True)
class Score:
    """A value and how sure it is.

    Attributes:
        value: on all examples.
        low: end of the percentile bootstrap interval (Efron 1979); NaN for a single example.
        high: the other end.
        samples: the value on each resample, `[R]`.
        num_examples: that are drawn: a conversation with several answers is one.
        num_needed: as few examples as can be beyond chance: where all of fewer differ to one side,
            a sign test is not beyond the confidence.
    """

    value: float
    low: float
    high: float
    samples: NDArray[np.float64] = field(repr=False, compare=False)
    num_examples: int = 0
    num_needed: int = 2

    @property
    def has_interval(self) -> bool:
        """False for a single example, which cannot be resampled."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of a difference lies wholly above or below zero, and there are
        enough examples for that to mean anything.
        """
        is_enough = self.num_examples >= self.num_needed
        return is_enough and self.has_interval and not self.low <= 0 <= self.high

    def as_dict(self) -> dict[str, float | None]:
        """Return value and interval, ready for JSON."""
        low, high = (self.low, self.high) if self.has_interval else (None, None)
        return {"value": self.value, "low": low, "high": high}


@dataclass(frozen=True)
class Share:
    """A share of examples with its Wilson interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return value and interval, ready for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high}


def score(
    metric: Metric, outcomes: Sequence[Outcome], resampling: ResamplingConfig = _DEFAULTS
) -> Score:
    """Score outcomes, with an interval over resamples of them. Answers of one conversation are
    drawn together, as they are not independent (the cluster bootstrap: Davison and Hinkley 1997,
    section 3.8).

    Raises:
        InputError: no outcomes.
    """
    if not outcomes:
        raise InputError("no examples to score; give at least one")
    groups = _groups(outcomes)
    num_groups = int(groups.max()) + 1
    value = float(metric.sample(outcomes, np.ones((1, len(outcomes)), dtype=np.int64))[0])
    draws = _draws(num_groups, len(outcomes), resampling)
    parts = [metric.sample(outcomes, counts[:, groups]) for counts in draws]
    return _with_interval(value, np.concatenate(parts), num_groups, resampling)


def _groups(outcomes: Sequence[Outcome]) -> NDArray[np.int64]:
    """Return for each outcome the number of what is drawn with it: its conversation, or itself."""
    known: dict[str | int, int] = {}
    return np.array(
        [
            known.setdefault(one.conversation or place, len(known))
            for place, one in enumerate(outcomes)
        ]
    )


def difference(score: Score, first: Score, resampling: ResamplingConfig = _DEFAULTS) -> Score:
    """Return the paired difference of two scores on the same examples, `score` minus `first`.

    Args:
        score: of one subject.
        first: of the subject that it is compared with.
        resampling: what both scores were computed with.

    Raises:
        InputError: scores of other numbers of examples or resamples.
    """
    sizes = [(one.num_examples, len(one.samples)) for one in (score, first)]
    if sizes[0] != sizes[1]:
        raise InputError(
            "scores to compare are of the same examples and resamples; got {} examples with {} "
            "resamples beside {} with {}".format(*sizes[0], *sizes[1])
        )
    samples = score.samples - first.samples
    return _with_interval(score.value - first.value, samples, score.num_examples, resampling)


def share(count: int, total: int, confidence: float = _DEFAULTS.confidence) -> Share:
    """Return a share of yes among independent yes or no, with its Wilson score interval (Wilson
    1927), which has a width also where all say yes or none does.

    Raises:
        InputError: a total of nothing, or a count that is no part of it.
    """
    if total < 1:
        raise InputError("no examples to take a share of; give at least one")
    if not 0 <= count <= total:
        raise InputError(f"expected a count of 0 to {total}, got {count}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    value, square = count / total, z * z / total
    middle = (value + square / 2) / (1 + square)
    half = z * math.sqrt(value * (1 - value) / total + square / (4 * total)) / (1 + square)
    return Share(value, max(0.0, middle - half), min(1.0, middle + half))


def _draws(num_rows: int, num_counts: int, resampling: ResamplingConfig) -> Iterator[Counts]:
    """Yield counts `[R, n]` of how often each resample draws each of n, in blocks in which
    `num_counts` for each resample stay below a bound.
    """
    rng = np.random.default_rng(resampling.seed)
    size = max(1, MAX_COUNTS // num_counts)
    starts = range(0, resampling.num_resamples, size)
    sizes = [min(size, resampling.num_resamples - start) for start in starts]
    even = np.full(num_rows, 1 / num_rows)
    for count in sizes:
        yield rng.multinomial(num_rows, even, size=count)


def _with_interval(
    value: float, samples: NDArray[np.float64], num_rows: int, resampling: ResamplingConfig
) -> Score:
    if num_rows < 2:
        return Score(value, float("nan"), float("nan"), samples, num_rows)
    tail = (1 - resampling.confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    needed = 1 + math.ceil(-math.log2(1 - resampling.confidence))
    return Score(value, float(low), float(high), samples, num_rows, needed)
