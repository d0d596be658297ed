"""Queries: what the teacher is asked, from rows of data or from texts, and what is refused.

In: rows as mappings, texts or turns. Out: `Query`s, with the row's own answer where it has one.
Knows no model.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.config import DataConfig
from foreword.data.columns import as_examples, as_query, has_answer
from foreword.data.example import Example, named
from foreword.data.examples import log, read_each
from foreword.data.media_parts import Message
from foreword.data.several import several
from foreword.data.turns import read_turns
from foreword.errors import DataError

if TYPE_CHECKING:
    from foreword.chat import Text


@dataclass(frozen=True)
class Query:
    """What the teacher is asked.

    Attributes:
        asked: a text, or turns up to a question.
        source: where it comes from, as "queries.jsonl:12".
        own: the query with the answer that its row gives; None without.
        group: what is set aside together, as the passage that a question is about; None: the query.
        part: the number of the part of the text that it is about; None: any.
        fields: texts of columns that a template was filled with, to make what is asked.
    """

    asked: str | tuple[Message, ...]
    source: str
    own: Example | None = None
    group: str | None = None
    part: int | None = None
    fields: tuple[str, ...] = ()


def as_queries(
    rows: "Sequence[Query | Mapping[str, Any] | Text]", config: DataConfig | None = None
) -> list[Query]:
    """Return rows as queries: mappings as rows of a data file, texts and turns as they are.

    Raises:
        InputError: one text, and not several.
        DataError: a row that asks nothing.
    """
    given = several("queries", rows, "texts, conversations or rows of data")
    return [_query(row, f"query {number}", config) for number, row in enumerate(given, 1)]


def read_queries(
    path: str | Path,
    config: DataConfig | None = None,
    say: Callable[[str], None] = log.warning,
) -> list[Query]:
    """Return what each row of a data file asks, with its own answer if it has one.

    Raises:
        DataError: the file or some of its rows cannot be used; tells all of them.
    """

    def read(row: Mapping[str, Any], source: str, said: Any) -> Query:
        return from_row(row, source, config, said)

    return read_each(path, read, config or DataConfig(), say)


def from_row(
    row: Mapping[str, Any],
    source: str,
    config: DataConfig | None = None,
    said: "Counter[str] | None" = None,
) -> Query:
    """Return one row of a data file as a query, with its own answer if it has one.

    Args:
        row: columns by name.
        source: where the row stands.
        config: names columns.
        said: counts, in words, what of the row was not used or was guessed.

    Raises:
        DataError: the row asks nothing; names `source`.
    """
    config, of_pair = config or DataConfig(), Counter[str]()
    query = as_query(row, source, config)
    asked, plain = query.prompt, Query(query.prompt, source, fields=query.fields)
    if config.template is not None and config.label_column is None:
        return plain
    try:
        own = as_examples(row, source, config, said=of_pair)[-1]
    except DataError as error:  # a question without an answer, as most are
        if said is not None and has_answer(row, config):
            said[f"an answer is not used: {str(error).removeprefix(f'{source}: ')}"] += 1
        return plain
    if said is not None:
        said.update(of_pair)
    asks_the_same = own.prompt == asked or own.prompt == ({"role": "user", "content": asked},)
    return replace(plain, own=own if asks_the_same else None)


def _query(
    row: "Query | Mapping[str, Any] | Text", source: str, config: DataConfig | None
) -> Query:
    if isinstance(row, Query):
        return row
    if isinstance(row, Mapping):
        return from_row(row, source, config)
    if isinstance(row, str):
        if not row.strip():
            raise DataError(f"{source}: expected a question, found a blank text")
        return Query(row, source)
    if not isinstance(row, Sequence) or isinstance(row, bytes):
        raise DataError(
            f"{source}: expected a text, turns, or a row of columns, got {type(row).__name__}"
        )
    with named(source):
        return Query(tuple(read_turns(list(row), "the query")[0]), source)


def check_holds_no_text(queries: Sequence[Query], texts: Sequence[str]) -> None:
    """Refuse queries that hold the whole text: from them a prompt learns to read, not to know.

    Raises:
        DataError: names the first.
    """
    known = [one for one in map(flat, texts) if one]
    for query in queries:
        said = flat(text_of(query.asked))
        if any(one in said for one in known):
            raise DataError(
                f"{query.source}: holds the whole text that the prompt is to stand for: leave it "
                "out of the query"
            )


def text_of(asked: "Text | str | Sequence[Message]") -> str:
    """Return all that a text or turns say, as one text."""
    if isinstance(asked, str):
        return asked
    found: list[str] = []
    for turn in asked:
        content = turn.get("content") or ""
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        found += [str(part) for part in parts]
    return "\n".join(found)


def flat(text: str) -> str:
    """Return a text in which only words count: white space and case do not."""
    return " ".join(text.casefold().split())
