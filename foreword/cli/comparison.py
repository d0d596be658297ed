"""Comparison: what `eval` and `compare` share, from evaluating subjects to tables and files.

In: subjects and examples. Out: a progress line, tables, JSON, and a file of predictions. Computes
no score itself.
"""

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from foreword.cli import options
from foreword.cli.console import one_line, strict_json
from foreword.cli.counted import counted
from foreword.config import EncodingConfig, EvalConfig, ResamplingConfig
from foreword.errors import InputError
from foreword.storage import check_file, write_file

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.examples import Example
    from foreword.data.tool_calls import ToolCall
    from foreword.evaluation.bootstrap import Score
    from foreword.evaluation.evaluation import Evaluation, Subject
    from foreword.evaluation.metrics import Metric, MetricChoice
    from foreword.prompt.soft_prompt import SoftPrompt


def ask(
    backbone: "Backbone",
    subjects: "Sequence[Subject]",
    examples: "Sequence[Example]",
    choice: "MetricChoice",
    config: EvalConfig,
    resampling: ResamplingConfig,
    choices: Sequence[str] = (),
) -> "list[Evaluation]":
    """Evaluate every subject on the same examples, and say which metrics were chosen."""
    from foreword.evaluation.evaluation import evaluate

    if backbone.weights:
        options.note(f"the weights of {backbone.name} are {backbone.weights}")
    names = ", ".join(metric.name for metric in choice.metrics)
    options.errors.print(f"metrics: {names} ({choice.reason})")
    results = []
    for subject in subjects:
        with counted(subject.name, len(examples)) as count:
            results.append(
                evaluate(
                    backbone,
                    subject,
                    examples,
                    choice.metrics,
                    config,
                    resampling,
                    choices=choices,
                    on_answer=count,
                )
            )
    return results


def check_rows(
    backbone: "Backbone",
    subjects: "Sequence[Subject]",
    examples: "Sequence[Example]",
    choice: "MetricChoice",
    config: EvalConfig,
    choices: Sequence[str] = (),
) -> None:
    """Read every subject's rows, so that what cannot be asked of the last one is refused before the
    first one answers.
    """
    from foreword.evaluation.evaluation import read_rows

    for subject in subjects:
        read_rows(backbone, subject, examples, choice.metrics, config, is_chosen=bool(choices))


def choices_in(config: EvalConfig, examples: "Sequence[Example]") -> tuple[str, ...]:
    """Return the answers that --choices names, as they are in a file or on the command line.

    Args:
        config: the options.
        examples: all of the data file, whatever --limit leaves.

    Raises:
        InputError: fewer than two. DataError: an example whose answer is none of them.
    """
    from foreword.evaluation.label_choice import choices_of

    if config.choices is None:
        return ()
    return choices_of(options.text_of(config.choices, "--choices"), examples)


def metrics_of(
    config: EvalConfig, examples: "Sequence[Example]", choices: Sequence[str] = ()
) -> "MetricChoice":
    """Return the metrics that are asked for, or that fit the answers; with choices also how far
    probabilities are from the share that is right.

    Raises:
        InputError: a metric that there is not.
    """
    from foreword.evaluation.metrics import choose

    has_calls = any(example.has_calls for example in examples)
    expected = [example.completion for example in examples]
    return choose(config.metrics, expected, has_calls, bool(choices))


def rows_of_bare(
    prompt: "SoftPrompt | None", examples: "Sequence[Example]"
) -> "EncodingConfig | None":
    """Return how rows are read without a prompt; None: by the base's own chat template. Rows with
    tools are read by the one that the prompt brings, as the base's own may show none.
    """
    from foreword.chat import encoding_of

    own = encoding_of(prompt)
    if own.chat_template is None or not any(example.tools for example in examples):
        return None
    return EncodingConfig(chat_template=own.chat_template, opening=own.opening, date=own.date)


def unused(name: str, taken: "Container[str]") -> str:
    """Return the name of a subject that is no prompt; none of the prompts is called so."""
    while name in taken:
        name = f"{name} (no prompt)"
    return name


def shown(score: "Score", metric: "Metric", *, is_difference: bool = False) -> str:
    """Return a score with its interval: shares in percent, differences of shares in points."""
    scale, digits = (100, 1) if metric.is_share else (1, 3)
    sign, unit = ("+", "") if is_difference else ("", "%" if metric.is_share else "")

    def number(value: float) -> str:
        return f"{value * scale:{sign}.{digits}f}"

    if not score.has_interval:
        return f"{number(score.value)}{unit}"
    return f"{number(score.value)}{unit} [{number(score.low)}, {number(score.high)}]"


def _cell(scores: "Mapping[str, Score]", metric: "Metric", *, is_difference: bool = False) -> str:
    """Return a metric's score for a table; a vote has no loss."""
    if metric.name not in scores:
        return "-"
    score = scores[metric.name]
    is_marked = is_difference and score.excludes_zero
    return shown(score, metric, is_difference=is_difference) + (" *" if is_marked else "")


def scores_table(
    results: "Sequence[Evaluation]", metrics: "Sequence[Metric]", resampling: ResamplingConfig
) -> Table:
    """Return one row for each subject."""
    count, share = len(results[0].outcomes), resampling.confidence
    title = f"{count} examples; in brackets {100 * share:g}% bootstrap intervals"
    table = Table("subject", *(metric.name for metric in metrics), "seconds", title=title)
    if (commonest := _commonest(results)) is not None:
        table.caption = one_line(f"who always answers {commonest[0]!r}: {commonest[1]:.1%} right")
    for result in results:
        scores = [_cell(result.scores, metric) for metric in metrics]
        table.add_row(one_line(result.subject.name), *scores, f"{result.seconds:.1f}")
    return table


def _commonest(results: "Sequence[Evaluation]") -> tuple[str, float] | None:
    """Return the class that most examples are of, and their share; None without classes."""
    from foreword.data.class_names import commonest

    return commonest([outcome.expected for outcome in results[0].outcomes])


def differences_table(
    results: "Sequence[Evaluation]", metrics: "Sequence[Metric]", resampling: ResamplingConfig
) -> Table:
    """Return how every other subject differs from the first one, paired by examples."""
    first = results[0].subject.name
    title = f"against {one_line(first)}, paired (points for shares); * beyond chance"
    table = Table("subject", *(metric.name for metric in metrics), title=title)
    for result in results[1:]:
        found = differences(results[0], result, resampling)
        cells = [_cell(found, metric, is_difference=True) for metric in metrics]
        table.add_row(one_line(result.subject.name), *cells)
    return table


def differences(
    first: "Evaluation", result: "Evaluation", resampling: ResamplingConfig
) -> "dict[str, Score]":
    """Return a subject's paired differences from the first, by metric."""
    from foreword.evaluation.bootstrap import difference

    return {
        name: difference(score, first.scores[name], resampling)
        for name, score in result.scores.items()
    }


def as_dict(results: "Sequence[Evaluation]", resampling: ResamplingConfig) -> dict[str, Any]:
    """Return results, ready for JSON, and the class that most examples are of."""
    said: dict[str, Any] = {
        "results": [_as_dict(result, results[0], resampling) for result in results]
    }
    if results and (commonest := _commonest(results)) is not None:
        said["commonest"] = dict(zip(("answer", "share"), commonest, strict=True))
    return said


def _as_dict(
    result: "Evaluation", first: "Evaluation", resampling: ResamplingConfig
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "subject": result.subject.name,
        "num_examples": len(result.outcomes),
        "scores": {name: score.as_dict() for name, score in result.scores.items()},
        "seconds": result.seconds,
    }
    if result is not first:
        against = differences(first, result, resampling)
        found["differences"] = {name: score.as_dict() for name, score in against.items()}
    return found


def check_predictions(path: str, metrics: "Sequence[Metric]", *inputs: str | None) -> None:
    """Refuse early what could not be written at the end; `inputs` are files that are read.

    Raises:
        InputError: no metric needs answers, a place that cannot be written, or a file of somebody
            else's.
    """
    if all(metric.needs_loss for metric in metrics):
        raise InputError(
            "--predictions writes answers, and --metrics loss asks for none: add a metric of "
            "answers, such as exact"
        )
    check_file(path, "--predictions", lambda head: head.startswith(b'{"source": '), inputs)


def write_predictions(
    path: str,
    examples: "Sequence[Example]",
    results: "Sequence[Evaluation]",
    metrics: "Sequence[Metric]",
) -> None:
    """Write one line for each example: prompt, expected, and every subject's answer as judged.

    Raises:
        StorageError: the file cannot be written; what was there is kept.
    """
    judges = [metric for metric in metrics if metric.of_row]
    lines = []
    for index, example in enumerate(examples):
        line: dict[str, Any] = {"source": example.source, "prompt": example.prompt}
        line["expected"] = example.completion
        if calls := results[0].outcomes[index].expected_calls:
            line["expected_calls"] = as_plain(calls)
        line["answers"] = {
            result.subject.name: _judged(result, index, judges) for result in results
        }
        # Images that the data file itself holds are named, not written.
        shown = strict_json(line, ensure_ascii=False, default=lambda part: type(part).__name__)
        # Half a surrogate pair becomes JSON's own escape for it.
        lines.append(shown.encode("utf-8", "backslashreplace").decode() + "\n")
    write_file(path, lambda file: file.write_text("".join(lines), encoding="utf-8"))


def as_plain(calls: "Sequence[ToolCall]") -> list[dict[str, Any]]:
    """Return calls of tools, ready for JSON."""
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _judged(result: "Evaluation", index: int, judges: "Sequence[Metric]") -> dict[str, Any]:
    outcome = result.outcomes[index]
    judged = {judge.name: judge.of_row(outcome) for judge in judges if judge.of_row}
    found: dict[str, Any] = {"answer": outcome.answer}
    if outcome.calls:
        found["calls"] = as_plain(outcome.calls)
    if outcome.confidence:
        found["confidence"] = outcome.confidence
    verdicts = [value for value in judged.values() if isinstance(value, bool)]
    if verdicts:
        found["right"] = verdicts[0]
    if result.answers and not result.answers[index].is_finished:
        found["cut off"] = True
    return found | {name: v for name, v in judged.items() if not isinstance(v, bool)}
