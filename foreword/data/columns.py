"""Columns: one row of a data file as examples, one for each of its answers that is learned.

In: a row's columns and the options that name them. Out: `Example`s, and a count of what was not
used. A null counts as not given. Problems are `DataError`s that name the row. Knows no tokenizer.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from foreword.config import TEMPLATE_FIELD, DataConfig
from foreword.data.example import Example, message_text, named
from foreword.data.json_files import STRICT
from foreword.data.media_parts import Message
from foreword.data.readers import kind_of
from foreword.data.turns import (
    answers_to_learn,
    described,
    native,
    read_turns,
    text_in,
)
from foreword.errors import BlankError, ColumnError, DataError

CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
    ("text", "label"),
)
"""Columns that are read as a prompt and its completion where none is named, the first that fit."""
QUERIES = ("prompt", "query", "question", "instruction", "text")
"""Columns that are read as a question where none is named, the first that is there."""
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")

MEND = "fill it in, drop the row, or leave out all such rows with --skip-blank"

_BRACES = re.compile(r"\{([^{}]+)\}")
_DEFAULT_COLUMNS = DataConfig()


def as_examples(
    row: Mapping[str, Any],
    source: str = "row",
    config: DataConfig = _DEFAULT_COLUMNS,
    task_column: str | None = None,
    said: "Counter[str] | None" = None,
) -> list[Example]:
    """Return the answers of one row of columns that are learned, each as an example.

    Args:
        row: columns by name.
        source: where the row stands, as "rows.jsonl:12".
        config: names columns and says which answers of a conversation are learned.
        task_column: names the task of the row.
        said: counts, in words, what of the row was not used or was guessed.

    Raises:
        DataError: the row cannot be used; names `source`. InputError: nothing names its answer.
    """
    config.check_answers()
    with named(source):
        columns = _Columns({str(name): native(value) for name, value in row.items()})
        examples = [replace(found, source=source) for found in _examples(columns, config)]
        if task_column is not None:
            task = text_in(columns.take(task_column, "--task-column"), f"column {task_column!r}")
            examples = [replace(example, task=task) for example in examples]
    if said is not None:
        said.update([*columns.said, *(f"column {name!r} is not used" for name in columns.unused())])
    if len(examples) == 1:
        return examples
    conversation = f"{source} {_digest(row)}"  # a place that is given need not be one row's only
    return [
        replace(example, source=f"{source} answer {number}", conversation=conversation)
        for number, example in enumerate(examples, 1)
    ]


def _digest(row: Mapping[str, Any]) -> str:
    """Return what tells a row from others."""
    parts = sorted((str(name), str(value)) for name, value in row.items())
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass
class _Columns:
    """A row's columns, and which of them were used."""

    row: dict[str, Any]
    used: set[str] = field(default_factory=set)
    said: list[str] = field(default_factory=list)

    def has(self, name: str) -> bool:
        """Whether a column is there and not null."""
        return self.row.get(name) is not None

    def take(self, name: str, option: str) -> Any:
        """Return what a column holds, and count it as used."""
        if name not in self.row:
            raise ColumnError(
                f"expected column {name!r}, found {self.names()}: name one of these in {option}"
            )
        if not self.has(name):
            raise BlankError(f"expected column {name!r}, found null: {MEND}")
        self.used.add(name)
        return self.row[name]

    def take_first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        """Return the name and value of the first column that is there and was not used."""
        for name in names:
            if self.has(name) and name not in self.used:
                return name, self.take(name, "")
        return "", None

    def unused(self) -> list[str]:
        """The columns that hold something and were not used."""
        return [name for name in self.row if name not in self.used and self.has(name)]

    def names(self) -> str:
        """The columns' names, for a message."""
        return ", ".join(map(repr, self.row)) or "no columns"


def as_query(
    row: Mapping[str, Any],
    source: str = "row",
    config: DataConfig = _DEFAULT_COLUMNS,
    said: "Counter[str] | None" = None,
) -> Example:
    """Return what a row asks, whatever it answers, as training reads it: an example whose prompt is
    a text, or the turns up to the last question, behind the row's system turn; its completion says
    nothing.

    Args:
        row: columns by name.
        source: where the row stands, as "rows.jsonl:12".
        config: names columns.
        said: counts, in words, what of the row was not used or was guessed.

    Raises:
        DataError: the row asks nothing; names `source`.
    """
    with named(source):
        columns = _Columns({str(name): native(value) for name, value in row.items()})
        asked = _asked(columns, config)
        fields = _fields(columns, config)
    if said is not None:
        said.update(columns.said)
    kept = {name: columns.row[name] for name in (*SYSTEM, *TOOLS) if columns.has(name)}
    # The answer is not looked at: it lets the row be read as one that has one.
    options = DataConfig(skip_blank=config.skip_blank, learn="last")
    [example] = as_examples(kept | asked | {"completion": "-"}, source, options)
    if example.tools:
        raise DataError(f"{source}: questions are asked without tools: leave that column out")
    return replace(example, fields=fields if isinstance(example.prompt, str) else ())


def has_answer(row: Mapping[str, Any], config: DataConfig = _DEFAULT_COLUMNS) -> bool:
    """Whether a row holds something in a column that answers are read from."""
    names = (config.completion_column, config.label_column, *(pair[1] for pair in PAIRS))
    return any(name is not None and row.get(name) is not None for name in names)


def _asked(columns: _Columns, config: DataConfig) -> dict[str, Any]:
    """Return the column of a row that asks, as one of a pair."""
    if config.template is not None:
        return {"prompt": _fill(config.template, columns)}
    name = _conversation_column(columns, config)
    if name is not None:
        return {"prompt": _open_turns(_parsed(columns.take(name, "--messages-column"), name), name)}
    name = _question_column(columns, config)
    value = turns_in(columns.take(name, "--prompt-column"))
    is_none_named = config.prompt_column is None and config.completion_column is None
    if name == "instruction" and (is_none_named or config.completion_column == "output"):
        value = _with_input(columns, value)
    return {"prompt": _open_turns(value, name) if isinstance(value, list) else value}


def _open_turns(value: Any, name: str) -> list[Message]:
    """Return the turns of a conversation up to its last question."""
    turns, _ = read_turns(value, f"column {name!r}")
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns:
        raise DataError(f"expected a question in column {name!r}, found none")
    return turns


def _question_column(columns: _Columns, config: DataConfig) -> str:
    """Return the column that a row's question is in: that of a known pair, where one is whole."""
    if config.prompt_column is not None:
        return config.prompt_column
    if config.completion_column is not None:  # the same as training reads before that answer
        name, _ = _named_pair(columns, config)
        if columns.has(name):
            return name
    pairs = (pair[0] for pair in PAIRS if all(map(columns.has, pair)))
    null = (name for name in QUERIES if name in columns.row)
    for name in (*pairs, *filter(columns.has, QUERIES), *null):
        return name
    raise ColumnError(
        f"expected a column of {', '.join(map(repr, (*CONVERSATIONS, *QUERIES)))}, found "
        f"{columns.names()}: name it with --prompt-column"
    )


def _examples(columns: _Columns, config: DataConfig) -> list[Example]:
    """Return the examples of a row, without their source and task."""
    name = _conversation_column(columns, config)
    if name is not None:
        value = _parsed(columns.take(name, "--messages-column"), name)
        return _conversation(columns, value, [], name, config)
    prompt, completion, name = _pair(columns, config)
    prompt = turns_in(prompt)
    if isinstance(prompt, list):
        completion = turns_in(completion)
        if completion == []:
            raise DataError(
                "expected a completion, found an empty list: fill it in or drop the row"
            )
        return _conversation(columns, prompt, _answer_turns(completion), name, config)
    prompt = text_in(prompt, f"column {name!r}")
    if config.skip_blank and not prompt.strip():
        raise BlankError(f"expected text in column {name!r}, found blank text: {MEND}")
    system, tools = _system(columns), _tools(columns)
    completion = _completion(completion)
    if system is None and not tools:
        return [Example(prompt, completion, fields=_fields(columns, config))]
    turns = ([_system_turn(system)] if system else []) + [{"role": "user", "content": prompt}]
    return [Example(tuple(turns), completion, tools=tools)]


def _conversation_column(columns: _Columns, config: DataConfig) -> str | None:
    """Return the column to read a conversation from; None where the row is a pair."""
    if config.template is not None:
        return None
    is_pair_named = config.prompt_column is not None or config.completion_column is not None
    named_column = config.messages_column
    if named_column is not None:
        if is_pair_named and not columns.has(named_column):
            return None
        completion = config.completion_column or "completion"
        if is_pair_named and columns.has(completion):
            raise DataError(
                f"columns {named_column!r} and {completion!r} are both named and both hold "
                "something: leave out --messages-column or the other"
            )
        return named_column
    if is_pair_named:
        return None
    return next((name for name in CONVERSATIONS if columns.has(name)), None)


def _pair(columns: _Columns, config: DataConfig) -> tuple[Any, Any, str]:
    """Return what comes before an answer, the answer, and the column of the first."""
    if config.template is not None and config.label_column is not None:
        prompt: Any = _fill(config.template, columns)
        return prompt, columns.take(config.label_column, "--label-column"), "--template"
    if config.prompt_column is None and config.completion_column is None:
        names = _known_pair(columns)
    else:
        names = _named_pair(columns, config)
    prompt = columns.take(names[0], "--prompt-column")
    completion = columns.take(names[1], "--completion-column")
    if names == ("instruction", "output"):
        prompt = _with_input(columns, prompt)
    return prompt, completion, names[0]


def _with_input(columns: _Columns, instruction: Any) -> Any:
    """Return an instruction, and behind it the column of its input, where a row has one."""
    if not columns.has("input"):
        return instruction
    extra = text_in(columns.take("input", ""), "column 'input'")
    return f"{text_in(instruction, 'column instruction')}\n\n{extra}" if extra else instruction


def _named_pair(columns: _Columns, config: DataConfig) -> tuple[str, str]:
    prompt, completion = config.prompt_column, config.completion_column or "completion"
    if prompt is None:  # the answer alone is named: what it answers is the row's text or its turns
        names = ("prompt", *CONVERSATIONS)
        prompt = next((name for name in names if columns.has(name)), "prompt")
    return prompt, completion


def _known_pair(columns: _Columns) -> tuple[str, str]:
    for pair in PAIRS:
        if all(map(columns.has, pair)):
            if pair != PAIRS[0]:
                columns.said.append(f"columns {pair[0]!r} and {pair[1]!r} are read as a pair")
            return pair
    given = (pair for pair in PAIRS if all(name in columns.row for name in pair))
    if whole := next(given, None):
        return whole  # one of the two is null
    if any(name in columns.row for name in PAIRS[0]):
        return PAIRS[0]
    is_null = any(name in columns.row for name in CONVERSATIONS)
    raise (DataError if is_null else ColumnError)(
        f"expected column 'messages', or 'prompt' and 'completion', found {columns.names()}: name "
        "them with --messages-column or --prompt-column and --completion-column, or use --template "
        "and --label-column"
    )


def _fields(columns: _Columns, config: DataConfig) -> tuple[str, ...]:
    """Return the texts of the columns that --template was filled with."""
    names = TEMPLATE_FIELD.findall(config.template or "")
    return tuple(columns.row[name] for name in names if isinstance(columns.row[name], str))


def turns_in(value: Any) -> Any:
    """Return the turns that a cell of text holds as JSON, as tables without lists write them; any
    other value as it is.
    """
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        found = STRICT.decode(value)
    except (ValueError, RecursionError):
        return value
    is_turns = isinstance(found, list) and all(
        isinstance(turn, dict) and ({"role", "content"} <= {*turn} or {"from", "value"} <= {*turn})
        for turn in found
    )
    return found if is_turns and found else value


def _fill(template: str, columns: _Columns) -> str:
    def value(found: re.Match[str]) -> str:
        cell = columns.take(found[1], "--template")
        if isinstance(cell, int | float) and not isinstance(cell, bool):
            return str(cell)
        return text_in(cell, f"column {found[1]!r}")

    for inside in _BRACES.findall(template):
        if columns.has(inside) and not TEMPLATE_FIELD.fullmatch(f"{{{inside}}}"):
            raise DataError(
                f"--template: {{{inside}}} has the name of a column, and a field takes letters, "
                "digits, spaces and _ . - only: rename the column"
            )
    return TEMPLATE_FIELD.sub(value, template)


def _answer_turns(completion: Any) -> list[Any]:
    if isinstance(completion, list):
        return completion
    return [{"role": "assistant", "content": _completion(completion)}]


def _conversation(
    columns: _Columns, before: list[Any], after: list[Any], name: str, config: DataConfig
) -> list[Example]:
    """Return the answers of a conversation; where it is in two parts, those of the second."""
    place = f"column {name!r}"
    turns, learned = read_turns(before if not after else [*before, *after], place)
    start = sum(turn is not None for turn in before) if after else 0
    if (system := _system(columns)) is not None:
        if not turns or turns[0]["role"] not in ("system", "developer"):
            turns, learned, start = [_system_turn(system), *turns], [None, *learned], start + 1
        elif message_text(turns[0]) != system:
            raise DataError(
                f"the first message and a column of {' or '.join(SYSTEM)} hold different system "
                "turns: leave one of them"
            )
    tools = _tools(columns)
    if turns and turns[0]["role"] == "assistant":
        columns.said.append("an answer with nothing before it is not learned")
    return [
        _answer(turns, index, tools)
        for index in answers_to_learn(turns, learned, config.learn, start)
    ]


def _answer(turns: list[Message], index: int, tools: tuple[dict[str, Any], ...]) -> Example:
    answer = turns[index]
    text = message_text(answer)
    example = Example(
        tuple(turns[:index]),
        text,
        tools=tools,
        answer=answer if set(answer) - {"role", "content"} else None,
    )
    return example if example.is_beyond_text else replace(example, completion=_completion(text))


def _completion(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = text_in(value, "the completion")
    if not text.strip():
        raise BlankError(f"expected a completion, found blank text: {MEND}")
    return text


def _system(columns: _Columns) -> str | None:
    """Return the text of a column for the system turn; None where there is none, or a blank."""
    name, value = columns.take_first(SYSTEM)
    if not name:
        return None
    text = text_in(value, f"column {name!r}")
    return text if text.strip() else None


def _system_turn(text: str) -> Message:
    return {"role": "system", "content": text}


def _tools(columns: _Columns) -> tuple[dict[str, Any], ...]:
    """Return the tools that a column describes, from a list or from one written as JSON."""
    name, value = columns.take_first(TOOLS)
    if not name or value == "":
        return ()
    value = _parsed(value, name)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(
            f"expected a list of objects in column {name!r}, found {kind_of(value)}: describe each "
            "tool as an object"
        )
    if name == "functions":
        value = [{"type": "function", "function": tool} for tool in value]
    return tuple(map(described, value))


def _parsed(value: Any, name: str) -> Any:
    """Return a list that a cell of text holds as JSON, as tables without lists write it."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return STRICT.decode(value)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"expected a list in column {name!r}, found invalid JSON: {error}"
        ) from None
