"""Chunking: a text in pieces of at most so many tokens, cut where it pauses.

In: a text, a limit, how tokens are counted. Out: pieces that joined are the text, character for
character. Cuts between paragraphs where they fit, else between lines, sentences, words, and in the
last place within a word. Knows no model and no tokenizer.
"""

import math
import re
from collections.abc import Callable, Sequence

BORDERS = tuple(map(re.compile, (r"(?<=\n\n)(?=[^\n])", r"(?<=\n)", r"(?<=[.!?] )", r"(?<=\s)")))
SLACK = 1.1  # a piece may pass its even share by this


def cut(
    text: str,
    limit: int,
    count: Callable[[str], int],
    borders: Sequence[re.Pattern[str]] = BORDERS,
) -> list[str]:
    """Return a text in pieces of at most `limit` tokens, about as long as each other.

    Args:
        text: anything.
        limit: of `count`, at least that of any single character.
        count: the number of tokens of a piece.
        borders: where a piece may end, the best first.
    """
    whole = count(text)
    if whole <= limit or len(text) < 2:
        return [text]
    if not borders:
        half = len(text) // 2
        return [*cut(text[:half], limit, count, ()), *cut(text[half:], limit, count, ())]
    share = math.ceil(whole / math.ceil(whole / limit))
    joined = _joined(borders[0].split(text), min(limit, int(share * SLACK)), count)
    return [piece for one in joined for piece in cut(one, limit, count, borders[1:])]


def _joined(units: Sequence[str], limit: int, count: Callable[[str], int]) -> list[str]:
    """Return neighbours together, as long as they stay within the limit."""
    found: list[str] = []
    size = 0
    for unit in filter(None, units):
        length = count(unit)
        if found and size + length <= limit:
            found[-1] += unit
            size += length
        else:
            found.append(unit)
            size = length
    return found
