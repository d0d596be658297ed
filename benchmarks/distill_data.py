"""Four contexts to distil: an instruction and answered examples, as turns of a conversation.

In: the rows of `quality_data`, and names and places below. Out: tasks whose queries to learn from,
to choose with and to test on share no input. The first three contexts hold real rows; the cards
are made up.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quality_data import TASKS, best_rouge_l

from foreword.data.media_parts import Message
from foreword.evaluation.metrics import rouge_l

FIRST = "Ada Bruno Carla Dario Elena Felix Greta Hugo Irene Jonas Karin Lukas Maria Nora Oscar Vera"
LAST = "Adler Baker Castro Dahl Ewing Fuchs Gomez Hansen Ivanov Jensen Keller Lopez Moreau Nagy"
CITY = "Paris Berlin Madrid Rome Oslo Vienna Lisbon Dublin Prague Athens Warsaw Zurich Milan Porto"
MONTH = "January February March April May June July August September October November December"
ASKED = (
    "{first} {last} from {city}, born on {day} {month} {year}",
    "born {month} {day}, {year}: {first} {last}, lives in {city}",
    "{last}, {first}; {city}; {day} {month} {year}",
)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Distilled:
    """A context and the queries that it is to answer.

    Attributes:
        context: turns that come before every query.
        train: queries, whose answers are not used.
        validation: queries with answers, to choose with.
        test: queries with answers, to measure with.
        max_new_tokens: room for every answer.
        score: of an answer and what was expected, between 0 and 1.
    """

    context: tuple[Message, ...]
    train: tuple[str, ...]
    validation: tuple[Pair, ...]
    test: tuple[Pair, ...]
    max_new_tokens: int
    score: Callable[[str, str], float]


def right(answer: str, expected: str) -> float:
    """Return 1 for the expected answer, else 0."""
    return float(answer.strip() == expected.strip())


def of_task(
    name: str, num_shots: int, num_train: int, score: Callable[[str, str], float] = right
) -> Distilled:
    """Return a task of `quality_data` with many examples in its context."""
    task = TASKS[name]()
    found = {str(row.prompt): row.completion for row in task.train}
    pairs = list(found.items())
    shots = _varied(pairs[: 12 * num_shots], num_shots)
    shown = {query for query, _ in shots}
    rest = [query for query, _ in pairs if query not in shown]
    held = [(str(row.prompt), row.completion) for row in (*task.validation, *task.test)]
    return Distilled(
        _turns(task.instructions[0], shots), tuple(rest[:num_train]), tuple(held[:24]),
        tuple(held[24:72]), task.max_new_tokens, score,
    )  # fmt: skip


def cards() -> Distilled:
    """Descriptions of people to a made-up format."""
    pairs = _people(400)
    return Distilled(
        _turns("Write each person as a card: last name in capitals, first name | city | year.",
               pairs[:20]),
        tuple(query for query, _ in pairs[20:300]), tuple(pairs[300:324]), tuple(pairs[324:372]),
        24, rouge_l,
    )  # fmt: skip


def _people(count: int) -> list[Pair]:
    generator, found = random.Random(0), dict[str, str]()
    while len(found) < count:
        first, last, city, month = (
            generator.choice(words.split()) for words in (FIRST, LAST, CITY, MONTH)
        )
        day, year = generator.randint(1, 28), generator.randint(1950, 2010)
        query = generator.choice(ASKED).format(
            first=first, last=last, city=city, month=month, day=day, year=year
        )
        found[query] = f"{last.upper()} {first} | {city} | {year}"
    return list(found.items())


CONTEXTS: dict[str, Callable[[], Distilled]] = {
    "intents": lambda: of_task("intents", 28, 280),
    "cards": cards,
    "sarcasm": lambda: of_task("sarcasm", 24, 280),
    "descriptions": lambda: of_task("descriptions", 12, 90, best_rouge_l),
}


def _turns(instruction: str, shots: Sequence[Pair]) -> tuple[Message, ...]:
    turns: list[Message] = [{"role": "system", "content": instruction}]
    for query, answer in shots:
        turns += [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
    return tuple(turns)


def _varied(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return the first pairs, no answer twice before every answer was there once, shuffled."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[1], []).append(pair)
    depth = max(map(len, groups.values()))
    order = [group[i] for i in range(depth) for group in groups.values() if i < len(group)]
    chosen = order[:count]
    random.Random(0).shuffle(chosen)
    return chosen
