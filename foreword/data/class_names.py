"""Class names: short answers that name a class, and which of them are one class written otherwise.

In: the texts of answers. Out: whether few of them are different, which is the most frequent, and
what to say where some differ only in how they are written. Knows no rows, no tokenizer and no
scores.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

from foreword.data.example import counted

MAX_CLASSES = 50  # distinct answers that still count as classes
MAX_LABEL_WORDS = 5
MOST_SAID = 3  # classes
QUOTES = "\"'`“”„‘’‚«»‹›「」『』"
STOPS = ".!。．！"


def label_of(text: str) -> str:
    """Return a class name as it is compared: without case, white space, quotes and final stop, of
    any script, and composed (Unicode's NFC).
    """
    whole = unicodedata.normalize("NFC", text.strip().casefold())
    name, before = whole, ""
    while name != before:
        name, before = name.strip().strip(QUOTES).rstrip(STOPS), name
    return name or whole


def num_classes(answers: Sequence[str]) -> int:
    """Return how many classes answers name; 0 where they are too many or too long to name any."""
    if max((len(text.split()) for text in answers), default=0) > MAX_LABEL_WORDS:
        return 0
    count = len(set(map(label_of, answers)))
    return count if count <= MAX_CLASSES and 2 * count <= len(answers) else 0


def commonest(answers: Sequence[str]) -> tuple[str, float] | None:
    """Return the most frequent class that answers name, and its share of them: the accuracy of one
    who always gives it. None where they name no two.
    """
    if num_classes(answers) < 2:
        return None
    name, count = Counter(map(label_of, answers)).most_common(1)[0]
    return next(text for text in answers if label_of(text) == name), count / len(answers)


def written_otherwise(answers: Sequence[str]) -> str | None:
    """Say which classes are written in several ways; None where each is written in one."""
    if not num_classes(answers):
        return None
    ways: dict[str, Counter[str]] = {}
    for text in answers:
        ways.setdefault(label_of(text), Counter())[text] += 1
    found = [_said(counts) for counts in ways.values() if len(counts) > 1]
    if not found:
        return None
    more = f"; and {len(found) - MOST_SAID} more" if len(found) > MOST_SAID else ""
    return (
        "answers that differ only in case, white space around them, quotes or a final stop: "
        f"{'; '.join(found[:MOST_SAID])}{more}: each is learned as it is written; write every "
        "class in one way"
    )


def _said(counts: Counter[str]) -> str:
    """Return the ways of writing a class, the most frequent first, each with its rows."""
    (first, most), *others = counts.most_common(MOST_SAID + 1)
    more = ", …" if len(counts) > len(others) + 1 else ""
    return f"{first!r} ({counted(most)}), " + ", ".join(f"{o!r} ({n})" for o, n in others) + more
