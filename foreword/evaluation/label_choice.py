"""Classification: the likeliest of a few answers to each example, and how likely it is.

In: the losses of every answer that may be chosen. Out: the choice and its probability; how far
probabilities are from the share of right choices. Knows no model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from foreword.data.examples import Example
from foreword.data.several import several
from foreword.errors import DataError, InputError
from foreword.evaluation.metrics import Counts, Metric, Outcome, Scores, same_label

if TYPE_CHECKING:
    from foreword.data.row import Row

FROM_DATA = "data"
NUM_BINS = 10


@dataclass(frozen=True)
class Chosen:
    """The likeliest answer to one example.

    Attributes:
        text: the answer.
        probabilities: of every answer that could be chosen, in their order, together 1.
    """

    text: str
    probabilities: tuple[float, ...]

    @property
    def confidence(self) -> float:
        """The probability of the answer that was chosen."""
        return max(self.probabilities)


def chosen(losses: Sequence[float], choices: Sequence[str]) -> list[Chosen]:
    """Return the likeliest answer to each example.

    Args:
        losses: the summed cross entropy of each answer, its end included, in nats: first of every
            answer to the first example.
        choices: the answers.
    """
    import torch

    table = -torch.tensor(losses, dtype=torch.float64).view(-1, len(choices))
    best = table.argmax(-1).tolist()
    shares = table.softmax(-1).tolist()
    return [Chosen(choices[i], tuple(row)) for i, row in zip(best, shares, strict=True)]


def check_different(rows: "Sequence[Row]", choices: Sequence[str]) -> None:
    """Refuse choices of which two become the same row: nothing tells them apart.

    Args:
        rows: of one question, a row for each choice.
        choices: the answers.

    Raises:
        DataError: names both.
    """
    known: dict[tuple[int, ...], str] = {}
    for row, choice in zip(rows, choices, strict=True):
        if (other := known.setdefault(row.input_ids, choice)) != choice:
            raise DataError(
                f"choices: {other!r:.80} and {choice!r:.80} become the same tokens: leave one out"
            )


def choices_of(option: str, examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the answers that `--choices` names: those of the data, or some with commas or lines;
    with the white space around them that the data has, since rows are written with it.

    Raises:
        InputError: fewer than two, or one twice. DataError: an example whose answer is none of
            them.
    """
    if option == FROM_DATA:
        found = tuple(dict.fromkeys(example.completion.strip() for example in examples))
    else:
        parts = option.strip().splitlines()
        parts = parts if len(parts) > 1 else option.split(",")
        found = tuple(part.strip() for part in parts if part.strip())
    if len(found) < 2 or len(set(found)) < len(found):
        raise InputError(
            f"--choices: expected two different answers or more, got {', '.join(found) or 'none'}"
        )
    check_expected(found, examples)
    return _as_written(found, [example.completion for example in examples])


def check_expected(choices: Sequence[str], examples: Sequence[Example]) -> None:
    """Refuse an example whose answer cannot be chosen.

    Raises:
        DataError: names it.
    """
    known = {one.strip() for one in choices}
    for example in examples:
        if example.completion.strip() not in known:
            raise DataError(
                f"{example.source}: the answer {example.completion!r} is none of --choices: add "
                "it, or leave the row out"
            )


def checked_choices(given: Any, examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the answers that may be chosen; () where none are given.

    Raises:
        InputError: one text, fewer than two, or one twice. DataError: an example whose answer is
            none of them.
    """
    found = tuple(several("choices", given, "answers"))
    if not found:
        return ()
    if wrong := [one for one in found if not isinstance(one, str)]:
        raise InputError(f"choices: expected texts, got {wrong[0]!r:.80}")
    if len({one.strip() for one in found}) < max(2, len(found)):
        raise InputError(f"choices: expected two different answers or more, got {found!r:.200}")
    check_expected(found, examples)
    return found


def _as_written(choices: Sequence[str], answers: Sequence[str]) -> tuple[str, ...]:
    """Return answers as the data writes them: each as it mostly does there; one that is not there
    behind a space where all others are.
    """
    forms: dict[str, Counter[str]] = {}
    for text in answers:
        forms.setdefault(text.strip(), Counter())[text] += 1
    lead = " " if answers and all(text.startswith(" ") for text in answers) else ""
    return tuple(forms[one].most_common(1)[0][0] if one in forms else lead + one for one in choices)


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
