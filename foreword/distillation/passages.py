"""Passages: what of a text questions are asked about, which kinds, and in which order.

In: the parts of a text, how tokens are counted. Out: passages of a few hundred tokens; for each
question its passage and kind, in batches about one part each. Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from foreword.distillation.chunks import cut

LONGEST = 512  # tokens of a passage
SHORTEST = 48
NUM_PASSAGES = 8  # that a text is cut into at least, where they are not too short


@dataclass(frozen=True)
class Passage:
    """Some of a text, which questions are asked about.

    Attributes:
        text: its words.
        part: the number of the part of the text that holds it.
        name: of all passages.
    """

    text: str
    part: int
    name: str


def passages_of(
    parts: Sequence[str], context: int | None, count: Callable[[str], int]
) -> list[Passage]:
    """Return the passages of a text's parts."""
    empty = count("")
    whole = sum(count(part) - empty for part in parts)
    limit = longest_passage(context)
    size = max(SHORTEST, min(limit, -(-whole // NUM_PASSAGES)))
    texts = [
        (number, text)
        for number, part in enumerate(parts)
        for text in cut(part, size, lambda piece: count(piece) - empty)
        if text.strip()
    ]
    return [Passage(text, part, f"passage {n}") for n, (part, text) in enumerate(texts, 1)]


def longest_passage(context: int | None) -> int:
    """Return the most tokens of a passage on a model with so much context."""
    return LONGEST if context is None else max(1, min(LONGEST, context // 4))


def planned(passages: Sequence[Passage], kinds: list[str], count: int) -> list[tuple[Passage, str]]:
    """Return what each question is about and of which kind: passages in turn, and kinds in turn,
    in the order of the text's parts. Of more passages than questions, some all over the text.
    """
    number = min(len(passages), count)
    passages = [passages[index * len(passages) // number] for index in range(number)]
    plan = [
        (passages[index % number], kinds[(index + index // number) % len(kinds)])
        for index in range(count)
    ]
    return sorted(plan, key=lambda one: one[0].part)


def batches_of(
    plan: Sequence[tuple[Passage, str]], size: int
) -> Iterator[list[tuple[Passage, str]]]:
    """Yield batches that are about one part each."""
    batch: list[tuple[Passage, str]] = []
    for one in plan:
        if batch and (len(batch) == size or batch[0][0].part != one[0].part):
            yield batch
            batch = []
        batch.append(one)
    if batch:
        yield batch
