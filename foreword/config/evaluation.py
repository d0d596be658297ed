"""Options of evaluation: what is asked of held-out examples, and how sure a score is."""

from dataclasses import dataclass

from foreword.config.checks import at_least_one, check_types
from foreword.config.declaring import option
from foreword.errors import InputError


@dataclass(frozen=True)
class EvalConfig:
    """What is asked of whoever answers held-out examples."""

    metrics: str = option(
        "auto",
        "'auto' looks at the answers; or some of loss, accuracy, macro_f1, exact, json, rouge_l, "
        "calls, with commas; with --choices also ece",
    )
    choices: str | None = option(
        None,
        "choose the likeliest of these answers, with its probability, and generate none: some with "
        "commas, @FILE with one on each line, or data for those of the data file",
    )
    limit: int | None = option(None, "evaluate the first N examples")
    batch_size: int = option(32, "rows answered at once")
    max_new_tokens: int = option(128, "longest answer in tokens")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "limit", "batch_size", "max_new_tokens")


@dataclass(frozen=True)
class ResamplingConfig:
    """How sure a score is: bootstrap intervals over the examples."""

    num_resamples: int = option(1000, "how often the examples are drawn anew for an interval")
    confidence: float = option(0.95, "share of the resamples inside an interval")
    seed: int = option(0, "seed of the resamples")

    def __post_init__(self) -> None:
        check_types(self)
        if self.num_resamples < 1:
            raise InputError(f"--num-resamples must be at least 1, got {self.num_resamples}")
        if not 0 < self.confidence < 1:
            raise InputError(f"--confidence must be between 0 and 1, got {self.confidence}")
        if self.seed < 0:
            raise InputError(f"--seed must not be negative, got {self.seed}")
