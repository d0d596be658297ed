"""Classification: the likeliest of a few answers to each example, and how likely it is.

In: the losses of every answer that may be chosen. Out: the choice and its probability. Knows no
model.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foreword.data.class_names import label_of
from foreword.data.examples import Example
from foreword.data.several import several
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from foreword.data.row import Row

FROM_DATA = "data"


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

    table = -torch.tensor(losses, dtype=torch.float64, device="cpu").view(-1, len(choices))
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
        InputError: fewer than two, one twice, or two that name the same class. DataError: an
            example whose answer is none of them.
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
    return _checked(found, examples, "--choices")


def check_expected(choices: Sequence[str], examples: Sequence[Example]) -> None:
    """Refuse an example whose answer cannot be chosen.

    Raises:
        DataError: names it.
    """
    known = {one.strip() for one in choices}
    labels = {label_of(one): one for one in known}
    for example in examples:
        answer = example.completion
        if answer.strip() in known:
            continue
        if (same := labels.get(label_of(answer))) is not None:
            raise DataError(
                f"{example.source}: the answer {answer!r} is the choice {same!r} apart from case, "
                "quotes or a final stop: write both alike"
            )
        raise DataError(
            f"{example.source}: the answer {answer!r} is none of --choices: add it, or leave the "
            "row out"
        )


def checked_choices(given: Any, examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the answers that may be chosen, as the data writes them; () where none are given.

    Raises:
        InputError: one text, fewer than two, one twice, or two that name the same class. DataError:
            an example whose answer is none of them.
    """
    found = tuple(several("choices", given, "answers"))
    if not found:
        return ()
    if wrong := [one for one in found if not isinstance(one, str)]:
        raise InputError(f"choices: expected texts, got {wrong[0]!r:.80}")
    if len({one.strip() for one in found}) < max(2, len(found)):
        raise InputError(f"choices: expected two different answers or more, got {found!r:.200}")
    return _checked(found, examples, "choices")


def _checked(choices: Sequence[str], examples: Sequence[Example], what: str) -> tuple[str, ...]:
    """Return answers as the data writes them, where each is a class of its own."""
    known: dict[str, str] = {}
    for one in map(str.strip, choices):
        if (other := known.setdefault(label_of(one), one)) != one:
            raise InputError(
                f"{what}: {other!r:.80} and {one!r:.80} differ in case, quotes or a final stop "
                "alone, and accuracy takes them for one class: write it in one way, also in the "
                "data, or rename one"
            )
    check_expected(choices, examples)
    return _as_written(choices, [example.completion for example in examples])


def _as_written(choices: Sequence[str], answers: Sequence[str]) -> tuple[str, ...]:
    """Return answers as the data writes them: each as it mostly does there; one that is not there
    with the white space that it is given with, or behind a space where all others are.
    """
    forms: dict[str, Counter[str]] = {}
    for text in answers:
        forms.setdefault(text.strip(), Counter())[text] += 1
    lead = " " if answers and all(text.startswith(" ") for text in answers) else ""

    def written(choice: str) -> str:
        if (known := forms.get(choice.strip())) is not None:
            return known.most_common(1)[0][0]
        return choice if choice != choice.strip() else lead + choice

    return tuple(map(written, choices))
