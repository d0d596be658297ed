"""Distill command: `foreword distill`, from a long text and queries to a small prompt.

In: a text, a data file of queries. Out: a prompt's directory, with the teacher's answers beside the
training state. Computes no score itself.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options, run_file
from foreword.cli.conclusion import where_it_goes_on
from foreword.cli.progress import Stop
from foreword.cli.run_output import claimed
from foreword.cli.train import attend
from foreword.config import DataConfig, DistillConfig, TrainConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.distillation.distill import Lesson
    from foreword.prompt.soft_prompt import SoftPrompt

Context = Annotated[
    str | None, typer.Option(help="file of the text that the prompt is to stand for")
]


@options.from_configs(DataConfig, DistillConfig, TrainConfig)
def command(
    columns: DataConfig,
    config: DistillConfig,
    training: TrainConfig,
    output: Annotated[str, typer.Option(help="directory for the prompt")],
    data: Annotated[
        str | None,
        typer.Option(help="queries: rows as of training; without, the model asks itself"),
    ] = None,
    context: Context = None,
    instruction: Annotated[
        str | None, typer.Option(help="the same for an instruction: a text, or @FILE")
    ] = None,
    model: Annotated[str, typer.Option(help="the base model")] = "smollm2-135m",
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where a run into --output stopped, bit for bit")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew in an --output that holds a run")
    ] = False,
) -> None:
    """Train a small prompt to say what the model says with a whole text before the query.

    Without --data the model, or --questions-from, asks questions about the text.

    Example: foreword distill --context handbook.md --output handbook
    """
    from foreword.training import distributed

    text = text_given(context, instruction)
    if data is not None and config.questions_from is not None:
        raise InputError("--data has the queries, and --questions-from asks them: give one")
    if data is None and config.labels:
        raise InputError(f"--labels {config.labels:g} is for rows with answers: give --data")
    ranks, stop = distributed.join(), Stop()
    with claimed(output, [Path(output)], resume=resume, overwrite=overwrite, is_main=ranks.is_main):
        queries = None if data is None else read_queries(data, columns)
        backbone, _ = options.load(model, None)
        lesson = _prepared(
            backbone, text, queries, training, config, output, instruction is not None
        )
        if resume:
            options.errors.print(where_it_goes_on(output, _saved_step(output)))
        if ranks.is_main:
            run_file.write(Path(output))
        prompt = _run(backbone, lesson, training, output, resume, stop, ranks)
        if prompt is not None:
            _conclude(backbone, lesson, prompt, output)
    if stop.signal:
        raise typer.Exit(128 + stop.signal)


def text_given(context: str | None, instruction: str | None) -> str:
    """Return the text that is named by one of two options.

    Raises:
        InputError: none or both, or a file that is no text.
    """
    if (context is None) == (instruction is None):
        raise InputError("give the text by --context FILE or by --instruction")
    if instruction is not None:
        return options.text_of(instruction, "--instruction")
    return options.text_of(f"@{str(context).removeprefix('@')}", "--context")


def read_queries(data: str, columns: DataConfig) -> list[Any]:
    """Return what each row of a data file asks, with its answer if it has one."""
    from foreword.data.readers import read_rows
    from foreword.distillation.queries import from_row

    return [from_row(row, source, columns) for source, row in read_rows(Path(data))]


def _prepared(
    backbone: "Backbone",
    text: str,
    queries: list[Any] | None,
    training: TrainConfig,
    config: DistillConfig,
    output: str,
    is_instruction: bool,
) -> "Lesson":
    """Let the teacher answer, and say what that came to."""
    from foreword.distillation.distill import NUM_VIRTUAL, prepare
    from foreword.training.validation import validate

    with options.errors.status("reading the text") as status:
        count, num_asked = 0, 0

        def on_question() -> None:
            nonlocal num_asked
            num_asked += 1
            status.update(f"questions: {num_asked} of {config.questions}")

        def on_answer() -> None:
            nonlocal count
            count += 1
            of = f" of {len(queries)}" if queries is not None else ""
            status.update(f"the teacher answers: {count}{of}")

        lesson = prepare(
            backbone,
            text,
            queries,
            training.num_virtual_tokens or NUM_VIRTUAL,
            config,
            seed=training.seed,
            folder=output,
            is_instruction=is_instruction,
            on_answer=on_answer,
            on_question=on_question,
        )
    for said in lesson.said:
        options.output.print(said)
    options.output.print(
        f"{lesson.num_tokens} tokens of text, read once; {len(lesson.queries)} queries, "
        f"answered behind it; the {config.top_k} likeliest ids hold {lesson.mass:.1%} of the "
        "probability"
    )
    if lesson.held_out:
        found = validate(backbone, lesson.start, lesson.held_out)
        options.output.print(
            f"start: the first {lesson.start.num_virtual_tokens} tokens; on {len(lesson.held_out)} "
            f"held-out queries {_shown(found)}"
        )
    return lesson


def _run(
    backbone: "Backbone",
    lesson: "Lesson",
    training: TrainConfig,
    output: str,
    resume: bool,
    stop: Stop,
    ranks: Any,
) -> "SoftPrompt | None":
    from foreword.cli.conclusion import conclude
    from foreword.distillation.distill import distill

    events = distill(backbone, lesson, training, checkpoint=output, resume=resume)
    last = attend(events, output, stop, ranks, None)
    if stop.signal:
        conclude(last, output, stop)
    return None if stop.signal or last is None else last.prompt


def _conclude(backbone: "Backbone", lesson: "Lesson", prompt: "SoftPrompt", output: str) -> None:
    """Say how close the prompt comes to the text, what it changes elsewhere, and what to type."""
    from shlex import quote

    from foreword.training.validation import validate

    for name, rows in (("held-out queries", lesson.held_out), ("unrelated text", lesson.unrelated)):
        if rows:
            found = validate(backbone, prompt, rows)
            said = _shown(found) if rows is lesson.held_out else f"divergence {found.loss:.3f}"
            options.output.print(f"{name}: {said}")
    long, short = lesson.num_tokens, prompt.num_virtual_tokens
    options.output.print(
        f"{short} virtual tokens for {long}, {long / short:.1f} times fewer; saved to {output}\n\n"
        f"try it:   foreword chat --prompt {quote(output)}\n"
        f"serve:    foreword prompts add NAME {quote(output)}\n"
        f"measure:  foreword eval --prompt {quote(output)} --context FILE --data FILE"
    )


def _shown(found: Any) -> str:
    return (
        f"{found.agreement:.1%} of the teacher's tokens, {found.exact:.1%} of whole answers, "
        f"divergence {found.loss:.3f}"
    )


def _saved_step(output: str) -> int | None:
    from foreword.training.seeds import saved_step

    return saved_step(Path(output))
