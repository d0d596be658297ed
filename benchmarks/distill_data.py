"""Four contexts to distil: an instruction and answered examples, as turns of a conversation.

In: the rows of `quality_data`, and names and places below. Out: tasks whose queries to learn from,
to choose with and to test on share no input. Intents and descriptions hold real rows, whose queries
to learn from are completed by their own attributes in other combinations; cards and bookings are
made up.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quality_data import TASKS, best_rouge_l

from foreword.data.media_parts import Message
from foreword.evaluation.metrics import rouge_l, same_json

FIRST = "Ada Bruno Carla Dario Elena Felix Greta Hugo Irene Jonas Karin Lukas Maria Nora Oscar Vera"
LAST = "Adler Baker Castro Dahl Ewing Fuchs Gomez Hansen Ivanov Jensen Keller Lopez Moreau Nagy"
CITY = "Paris Berlin Madrid Rome Oslo Vienna Lisbon Dublin Prague Athens Warsaw Zurich Milan Porto"
MONTH = "January February March April May June July August September October November December"
ASKED = (
    "{first} {last} from {city}, born on {day} {month} {year}",
    "born {month} {day}, {year}: {first} {last}, lives in {city}",
    "{last}, {first}; {city}; {day} {month} {year}",
)
DAY = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
BOOKED = (
    "{name} needs {room} on {day} at {hour} for {people} people",
    "please keep {room} for {people} of us, {day}, {hour} o'clock, {name}",
    "{day} {hour}:00, {people} guests of {name} in {room}",
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


def bookings() -> Distilled:
    """Requests for a room to JSON."""
    generator, found = random.Random(0), dict[str, str]()
    while len(found) < 400:
        name, room, day = (generator.choice(words.split()) for words in (FIRST, CITY, DAY))
        hour, people = generator.randint(8, 19), generator.randint(2, 30)
        query = generator.choice(BOOKED).format(
            name=name, room=room, day=day, hour=hour, people=people
        )
        found[query] = json.dumps({"room": room, "day": day[:3], "hour": hour, "seats": people})
    pairs = list(found.items())
    return Distilled(
        _turns("Turn each request into a JSON object of room, day, hour and seats.", pairs[:18]),
        tuple(query for query, _ in pairs[18:300]), tuple(pairs[300:324]), tuple(pairs[324:372]),
        40, same,
    )  # fmt: skip


def same(answer: str, expected: str) -> float:
    """Return 1 for the same JSON, else 0."""
    return float(same_json(answer, expected))


def descriptions() -> Distilled:
    """Attributes of restaurants to a sentence."""
    task = of_task("descriptions", 12, 90, best_rouge_l)
    held = {query for query, _ in (*task.validation, *task.test)}
    more = [query for query in _recombined(task.train, 400) if query not in held]
    return replace(task, train=(*task.train, *more)[:280])


def _recombined(queries: Sequence[str], count: int) -> list[str]:
    """Return new queries: the attributes of one, with values of any."""
    generator, values = random.Random(0), dict[str, list[str]]()
    every = [[part.split(": ", 1) for part in query.split(", ")] for query in queries]
    every = [parts for parts in every if all(len(part) == 2 for part in parts)]
    for parts in every:
        for name, value in parts:
            values.setdefault(name, []).append(value)
    drawn = (
        ", ".join(f"{name}: {generator.choice(values[name])}" for name, _ in parts)
        for parts in generator.choices(every, k=count)
    )
    return [query for query in dict.fromkeys(drawn) if query not in queries]


CONTEXTS: dict[str, Callable[[], Distilled]] = {
    "intents": lambda: of_task("intents", 28, 280),
    "cards": cards,
    "bookings": bookings,
    "descriptions": descriptions,
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
