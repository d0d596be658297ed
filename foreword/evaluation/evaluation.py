"""Evaluation: a prompt's answers on held-out examples, beside the bare model and an instruction.

In: a backbone, subjects to compare, examples. Out: for each subject its answers and scores with
intervals. Draws no table and writes no file.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword import chat, notebook
from foreword.backbone import Backbone
from foreword.chat import Answer, Text
from foreword.config import EncodingConfig, EvalConfig, ResamplingConfig
from foreword.data import encoding
from foreword.data.encoding import NO_LIMIT, Row
from foreword.data.example import message_text, named
from foreword.data.examples import Example
from foreword.data.held_text import joined
from foreword.data.several import several
from foreword.errors import DataError, InputError
from foreword.evaluation import ensembles
from foreword.evaluation.answered_calls import answered_calls, check_readable, expected_calls
from foreword.evaluation.bootstrap import Score, score
from foreword.evaluation.choice_losses import choice_losses
from foreword.evaluation.label_choice import Chosen, check_different, checked_choices, chosen
from foreword.evaluation.losses import mixed_losses
from foreword.evaluation.metrics import Metric, Outcome, check_vote, metrics_of
from foreword.generation.answer_options import settings
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

log = logging.getLogger("foreword")

_DEFAULTS = EvalConfig()
_RESAMPLING = ResamplingConfig()


@dataclass(frozen=True)
class Subject:
    """One way to get an answer.

    Attributes:
        name: as the table shows it.
        prompt: the soft prompt, if any.
        instruction: a system turn before every example, if any.
        encoding: how examples become ids; default: the prompt's own, else the chat template.
        members: prompts that answer together; such a subject has nothing else, and `evaluate` lets
            them answer by the mean of their probabilities.

    Raises:
        InputError: something else beside members.
    """

    name: str
    prompt: SoftPrompt | Prefix | None = None
    instruction: str | None = None
    encoding: EncodingConfig | None = None
    members: tuple[SoftPrompt | Prefix, ...] = ()

    def __post_init__(self) -> None:
        if self.members and (self.prompt or self.instruction or self.encoding):
            raise InputError("members answer as they are: give no prompt, instruction or encoding")

    @property
    def prompts(self) -> tuple[SoftPrompt | Prefix | None, ...]:
        """What stands before the text: one prompt or none, or several together."""
        return self.members or (self.prompt,)

    @property
    def is_trained(self) -> bool:
        """Whether a prompt stands before the text."""
        return self.prompts != (None,)

    @property
    def config(self) -> EncodingConfig:
        """How its examples become ids."""
        return self.encoding or chat.encoding_of(self.prompts[0])


@dataclass(frozen=True)
class Evaluation:
    """A subject's result.

    Attributes:
        scores: by the name of the metric.
        answers: in the order of the examples; none where no metric needs them.
        outcomes: in the order of the examples.
        seconds: for all examples.
        answering_seconds: of these, for answers alone.
    """

    subject: Subject
    scores: Mapping[str, Score]
    answers: tuple[Answer, ...]
    outcomes: tuple[Outcome, ...]
    seconds: float
    answering_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, over all rows of a batch."""
        return sum(one.num_tokens for one in self.answers) / max(self.answering_seconds, 1e-9)

    def _repr_html_(self) -> str:
        rows = [
            (name, *map(notebook.shown, (one.value, one.low, one.high)))
            for name, one in self.scores.items()
        ]
        title = f"{self.subject.name}, {len(self.outcomes)} examples"
        return notebook.columns(title, ("metric", "value", "from", "to"), rows)


def evaluate(
    backbone: Backbone,
    subject: Subject,
    examples: Sequence[Example],
    metrics: Sequence[Metric | str] | str = ("loss", "exact"),
    config: EvalConfig = _DEFAULTS,
    resampling: ResamplingConfig = _RESAMPLING,
    *,
    choices: Sequence[str] = (),
    on_answer: Callable[[], Any] | None = None,
    **options: Any,
) -> Evaluation:
    """Answer every example greedily, compute the loss of its labels, and score both.

    Args:
        backbone: with a tokenizer.
        subject: what answers: the bare model, an instruction, a prompt, or several prompts.
        examples: with the answers that are expected; at least one.
        metrics: what is scored, or its name; "auto" for those that fit the answers.
        config: batches and lengths; its metrics, choices and limit are the caller's business.
        resampling: of the bootstrap intervals.
        choices: the answers that there are: the likeliest is chosen, and nothing is generated.
        on_answer: called after each answer.
        **options: of `generate`.

    Raises:
        InputError: no examples, members that encode rows differently, options for members, or
            options where nothing is generated; an argument of another kind.
        MismatchError: a prompt of another base, or of another chat template.
        DataError: an example that does not fit the model's context.
    """
    examples = _checked(examples)
    has_calls = any(example.has_calls for example in examples)
    choices = checked_choices(choices, examples)
    expected = [example.completion for example in examples]
    metrics = metrics_of(metrics, expected, has_calls, bool(choices))
    ensembles.check_alike(subject.members)
    for prompt in subject.prompts:
        chat.check_template(backbone, prompt)
    if subject.members and any(example.tools for example in examples):
        raise InputError("members answer together without tools: evaluate each prompt alone")
    if subject.members and options:
        raise InputError(f"members answer greedily; leave out {', '.join(options)}")
    if given := {"batch_size", "max_length", "max_new_tokens"} & settings(options).keys():
        raise InputError(f"{', '.join(sorted(given))}: give it in config, an EvalConfig")
    if options and all(metric.needs_loss for metric in metrics):
        raise InputError(f"nothing is generated for a loss: leave out {', '.join(options)}")
    chat.check_options(backbone, options | {"max_new_tokens": config.max_new_tokens})
    _check_answers(examples, metrics)
    if choices and (options or any(example.is_beyond_text for example in examples)):
        raise InputError("choices are texts, and nothing is generated: leave out calls and options")
    if subject.instruction and not chat.shows_system_turn(backbone, subject.config):
        log.warning("the base has no system turn: the instruction stands before the first question")
    started = time.perf_counter()
    asked, rows = read_rows(backbone, subject, examples, metrics, config, is_chosen=bool(choices))
    outcomes = [
        Outcome(example.completion, expected_calls=calls, conversation=example.conversation)
        for example, calls in zip(examples, expected_calls(examples), strict=True)
    ]
    if any(metric.needs_loss for metric in metrics):
        losses = mixed_losses(backbone, subject.prompts, rows, config)
        pairs = zip(outcomes, losses, strict=True)
        outcomes = [replace(o, loss=loss, num_labels=labels) for o, (loss, labels) in pairs]
    found: list[Answer] = []
    answering = time.perf_counter()
    if choices:
        picked = _chosen(backbone, subject, asked, choices, config)
        found = [Answer(one.text.strip(), 0, is_finished=True) for one in picked]
        outcomes = [
            replace(o, confidence=p.confidence) for o, p in zip(outcomes, picked, strict=True)
        ]
    elif not all(metric.needs_loss for metric in metrics):
        for answer in _answers(backbone, subject, asked, config, options):
            found.append(answer)
            if on_answer:
                on_answer()
    answering = time.perf_counter() - answering
    if found:
        outcomes = [replace(o, answer=a.text) for o, a in zip(outcomes, found, strict=True)]
    if any(metric.needs_calls for metric in metrics):
        called = answered_calls(backbone, subject.config, asked, found)
        outcomes = [replace(o, calls=calls) for o, calls in zip(outcomes, called, strict=True)]
    scores = {metric.name: score(metric, outcomes, resampling) for metric in metrics}
    seconds = time.perf_counter() - started
    return Evaluation(subject, scores, tuple(found), tuple(outcomes), seconds, answering)


def read_rows(
    backbone: Backbone,
    subject: Subject,
    examples: Sequence[Example],
    metrics: Sequence[Metric],
    config: EvalConfig,
    *,
    is_chosen: bool = False,
) -> tuple[list[Example], list[Row]]:
    """Return the examples as a subject is asked them, and encoded; answers nothing, so that all
    subjects' rows can be read before the first answers.

    Args:
        backbone: with a tokenizer.
        subject: what answers.
        examples: with the answers that are expected.
        metrics: what is scored.
        config: batches and lengths.
        is_chosen: whether the likeliest of some answers is taken, and nothing is generated.

    Raises:
        InputError: an instruction that has no place, or calls that cannot be read.
        DataError: an example that does not fit the model's context, or whose own calls are read
            otherwise.
    """
    asked = [replace(e, prompt=read_as(backbone, subject, e.prompt)) for e in examples]
    rows = _rows(backbone, subject, asked)
    if any(metric.needs_calls for metric in metrics):
        check_readable(backbone, subject.config, asked, rows)
    is_answered = not is_chosen and not all(metric.needs_loss for metric in metrics)
    if is_answered and backbone.capabilities.is_context_hard and not backbone.reads_apart:
        _check_room(backbone, subject, rows, config.max_new_tokens)
    return asked, rows


def _check_room(backbone: Backbone, subject: Subject, rows: list[Row], num_new: int) -> None:
    """Refuse a row whose longest answer has positions that the model does not have."""
    limit = min(room(backbone, prompt) for prompt in subject.prompts)
    for row in rows:
        if (size := len(row.input_ids) - row.num_labels) + num_new > limit:
            raise DataError(
                f"{row.source}: expected at most {limit} tokens for {subject.name}, got {size} "
                f"and up to {num_new} of an answer: lower --max-new-tokens, shorten the row, or "
                "leave it out"
            )


def _checked(examples: Any) -> list[Example]:
    found = several("examples", examples, "Examples")
    if not found:
        raise InputError("no examples to evaluate on; give at least one")
    for number, one in enumerate(found, 1):
        if not isinstance(one, Example):
            raise InputError(f"example {number}: expected an Example, got {type(one).__name__}")
    return found


def _chosen(
    backbone: Backbone,
    subject: Subject,
    asked: Sequence[Example],
    choices: Sequence[str],
    config: EvalConfig,
) -> list[Chosen]:
    """Return the likeliest of some answers to each example, as its rows are encoded."""
    every = [replace(one, completion=text, answer=None) for one in asked for text in choices]
    rows = _rows(backbone, subject, every)
    for start in range(0, len(rows), len(choices)):
        with named(rows[start].source):
            check_different(rows[start : start + len(choices)], choices)
    losses = choice_losses(backbone, subject.prompts, rows, len(choices), config)
    return chosen(losses, choices)


def _check_answers(examples: Sequence[Example], metrics: Sequence[Metric]) -> None:
    """Refuse to compare text with a call of tools."""
    compares = [m.name for m in metrics if not m.needs_loss and not m.needs_calls]
    calls = [example for example in examples if example.is_beyond_text]
    if compares and calls:
        raise DataError(
            f"{calls[0].source}: the answer holds more than text, and {compares[0]} compares text: "
            "score these rows by loss, and calls by calls (--metrics loss,calls)"
        )


def _answers(
    backbone: Backbone,
    subject: Subject,
    asked: Sequence[Example],
    config: EvalConfig,
    options: Mapping[str, Any],
) -> Any:
    texts = [example.prompt for example in asked]
    limits: Any = {"batch_size": config.batch_size, "max_new_tokens": config.max_new_tokens}
    if subject.members:
        return ensembles.averaged(backbone, subject.members, texts, **limits)
    tools = [example.tools for example in asked]
    return chat.answers(
        backbone, subject.prompt, texts, subject.config, tools=tools, **limits, **options
    )


def voted(
    name: str,
    results: Sequence[Evaluation],
    metrics: Sequence[Metric],
    resampling: ResamplingConfig = _RESAMPLING,
) -> Evaluation:
    """Let the subjects of several results on the same examples vote on each answer.

    A vote has no probabilities, so only metrics of answers score it.

    Raises:
        InputError: no metric needs answers.
    """
    check_vote(metrics)
    votes = map(ensembles.majority, zip(*(result.answers for result in results), strict=True))
    answers = tuple(vote.answer for vote in votes)
    outcomes = tuple(
        replace(example, answer=answer.text)
        for example, answer in zip(results[0].outcomes, answers, strict=True)
    )
    judges = [one for one in metrics if not one.needs_loss and not one.needs_confidence]
    scores = {metric.name: score(metric, outcomes, resampling) for metric in judges}
    members = tuple(p for result in results for p in result.subject.prompts if p is not None)
    seconds = sum(result.seconds for result in results)
    return Evaluation(Subject(name, members=members), scores, answers, outcomes, seconds)


def read_as(backbone: Backbone, subject: Subject, prompt: Text) -> Any:
    """Return an example's prompt in the form that the subject is given.

    Behind a soft prompt it is as in the rows of its training, and as every other route asks it. The
    bare model and an instruction get a chat turn where the tokenizer has a chat template, else
    plain text with the instruction before it. A text that is a filled template stays as it is.

    Raises:
        InputError: an instruction that has no place: the text before it is in the prompt, or in a
            filled template.
    """
    config, instruction = subject.config, subject.instruction
    if instruction is not None and config.held_text is not None:
        raise InputError(f"{subject.name}: the prompt holds a text itself: give no instruction")
    if isinstance(prompt, str):
        if chat.begins_filled(backbone, config, prompt):
            if instruction is not None:
                raise InputError(
                    f"{subject.name}: a row begins with a special token, so it is a template that "
                    "is filled already and has no place for an instruction: leave --instruction "
                    "out, or give rows of prompt and completion"
                )
            return prompt
        if subject.is_trained and instruction is None:
            is_own = subject.encoding is None
            return chat.typed(backbone, subject.prompts[0], prompt) if is_own else prompt
    elif subject.is_trained and instruction is None:
        return prompt
    if config.row_template or not chat.has_template(backbone, config):
        return prompt if instruction is None else _told(instruction, prompt)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if instruction is None:
        return turns
    return chat.instructed(backbone, turns, instruction, config)


def _told(instruction: str, prompt: Text) -> Any:
    """Return a prompt with an instruction before it, as text."""
    if isinstance(prompt, str):
        return joined(instruction, prompt)
    first, *others = prompt
    return [first | {"content": joined(instruction, message_text(first))}, *others]


def _rows(backbone: Backbone, subject: Subject, asked: Sequence[Example]) -> list[Row]:
    """Encode examples without cutting them, also where the training cut long rows."""
    if backbone.tokenizer is None:
        raise InputError("text needs a tokenizer; give the backbone one")
    config = replace(subject.config, max_length=None, truncate=False)
    limit = min(room(backbone, prompt) for prompt in subject.prompts)
    rows, _ = encoding.encode_examples(
        asked,
        backbone.tokenizer,
        config,
        NO_LIMIT,
        backbone.processor,
        are_pairs=backbone.reads_apart,
    )
    for row in rows:
        backbone.check_row(row)
        check_begun(row)
        if len(row.input_ids) > limit:
            raise DataError(
                f"{row.source}: expected at most {limit} tokens for {subject.name}, got "
                f"{len(row.input_ids)}: shorten the row, or leave it out"
            )
    return rows


def check_begun(row: Row) -> None:
    """Refuse a row that is all answer: nothing says how likely its first token is.

    Raises:
        DataError: names the row.
    """
    if row.num_labels >= len(row.input_ids):
        raise DataError(
            f"{row.source}: nothing stands before the answer, so that its first token cannot be "
            "scored: give a text before it, or leave the row out"
        )


def room(backbone: Backbone, prompt: SoftPrompt | Prefix | int | None) -> int:
    """Return how many real tokens fit behind a prompt, or behind so many virtual tokens."""
    if isinstance(prompt, SoftPrompt | Prefix):
        prompt = prompt.num_virtual_tokens
    num_virtual = prompt or 0
    if backbone.reads_apart or backbone.capabilities.context_length is None:
        return NO_LIMIT  # an encoder and its decoder each have a context of their own
    return backbone.capabilities.context_length - num_virtual
