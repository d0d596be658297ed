"""Distill command: `foreword distill`, from a long text and queries to a small prompt.

In: a text, a data file of queries. Out: a prompt's directory, with the teacher's answers beside the
training state. Computes no score itself.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import distill_report, early, options, unused_options
from foreword.cli.clearing import clear
from foreword.cli.conclusion import end
from foreword.cli.progress import Stop
from foreword.cli.run_output import check_apart, claimed
from foreword.cli.seed_runs import Given, folders_of, follow
from foreword.config import DataConfig, DistillConfig, TrainConfig
from foreword.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.distillation.lesson import Lesson
    from foreword.distillation.queries import Query
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.prompt.stored_prompt import StoredPrompt
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent

BASE = "smollm2-135m"
Context = Annotated[
    str | None,
    typer.Option(
        help="what the prompt is to stand for: a file of text, or another prompt, as for --prompt"
    ),
]

TOLD = {
    "method": "how the prompt is learned, see docs/methods.md; default: prefix-tuning, or "
    "prompt-tuning with --form embeddings",
    "num_virtual_tokens": "P, the number of virtual tokens; a multiple of 16 serves best; default: "
    "64, or as many as a --context prompt of keys and values has, with --form embeddings",
    "learning_rate": "peak learning rate of AdamW, or auto: a short probe of four rates decides; "
    "default: 5e-3 for prefix-tuning and context-tuning, which start close to the text, and half "
    "to twice that by the scale of the base's values, the method's own for others: 5e-3 for "
    "residual, 3e-3 for p-tuning, 1e-3 for prefix-projection, 0.11 times the embedding "
    "table's root mean square for prompt-tuning",
}
WITHOUT_EFFECT = ("init", "init_text", "task_column", "learn")


@options.from_configs(DataConfig, DistillConfig, TrainConfig, told=TOLD, hidden=WITHOUT_EFFECT)
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
    model: Annotated[
        str | None,
        typer.Option(help=f"the base model; default: a --context prompt's own base, else {BASE}"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where a run into --output stopped, bit for bit")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="begin anew in an --output that holds a run")
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="runs, each from the next seed; the best by validation is kept")
    ] = 1,
) -> None:
    """Train a small prompt to say what the model says with a whole text before the query.

    Without --data the model, or --questions-from, asks questions about the text. With a prompt as
    --context, what is trained is a smaller one, or one of another --form.

    Example: foreword distill --context handbook.md --output handbook

    Example: foreword distill --context home --form embeddings --data queries.jsonl --output home-e
    """
    text = context_given(context, instruction)
    unused_options.check_distill(columns, config, has_data=data is not None)
    training.check_one_prompt("distill")
    training.check_step()
    _check_held_out(config, training, seeds)
    folders = folders_of(output, training, seeds)
    early.check(data=[data], model=model)
    reads = {"--data": data, "--context": context, "--distractors": config.distractors}
    check_apart(output, reads | {"--model": model})
    from foreword.distillation import input_checks
    from foreword.distillation.queries import read_queries
    from foreword.training import launch

    options.speak(launch.is_main())
    stop = Stop()
    with claimed(output, folders, resume=resume, overwrite=overwrite, is_main=launch.is_main()):
        queries = None if data is None else read_queries(data, columns, options.note)
        written = text if isinstance(text, str) else None
        input_checks.check(written, queries, config, input_checks.form_of(training))
        from foreword.training import distributed

        ranks = distributed.join()
        # What is spread over the processes is loaded beside them first, and moved layer by layer.
        place = "cpu" if launch.is_fsdp_asked_for() else "auto"
        backbone = base_for(text, model, place)
        lesson = _prepared(
            backbone,
            as_context(text),
            queries,
            training,
            config,
            output,
            data,
            ranks,
            is_instruction=instruction is not None,
            is_anew=overwrite,
        )
        given = Given(output, resume, overwrite, seeds)
        _run(backbone, lesson, training, given, stop, ranks)
    end(stop, ranks)


def _check_held_out(config: DistillConfig, training: TrainConfig, seeds: int) -> None:
    """Refuse what counts validations where no query is held out.

    Raises:
        InputError: names the option.
    """
    for name, is_set in (("--seeds", seeds > 1), ("--patience", training.patience > 0)):
        if is_set and not config.held_out:
            raise InputError(f"{name} goes by held-out queries: give --held-out above 0")


def context_given(context: str | None, instruction: str | None) -> "str | StoredPrompt":
    """Return the text or the prompt that is named by one of two options.

    Raises:
        InputError: none or both, or a file that is no text. ArtifactError: no prompt.
    """
    from foreword.prompt import directories, stored_prompt

    if (context is None) == (instruction is None):
        raise InputError("give the text by --context FILE or by --instruction")
    if instruction is not None:
        return options.text_of(instruction, "--instruction")
    assert context is not None
    if not directories.is_prompts_name(context):
        return options.text_of(f"@{context.removeprefix('@')}", "--context")
    try:
        return stored_prompt.read(context)
    except ArtifactError as error:
        raise ArtifactError(f"--context: no file of text, and as a prompt: {error}") from None


def as_context(given: "str | StoredPrompt") -> "str | SoftPrompt":
    """Return a text as it is, and a prompt with tensors."""
    from foreword.prompt.soft_prompt import SoftPrompt

    return given if isinstance(given, str) else SoftPrompt.from_stored(given)


def base_for(context: "str | StoredPrompt", model: str | None, device: str = "auto") -> "Backbone":
    """Load the base that is to read a context: as named, else a prompt's own.

    Raises:
        InputError: no such base.
    """
    base = {} if isinstance(context, str) else context.facts.get("base") or {}
    revision = None if model else base.get("revision")
    backbone, _ = options.load(model or base.get("name") or BASE, None, device, revision)
    return backbone


def _prepared(
    backbone: "Backbone",
    text: "str | SoftPrompt",
    queries: "list[Query] | None",
    training: TrainConfig,
    config: DistillConfig,
    output: str,
    data: str | None,
    ranks: "Ranks",
    *,
    is_instruction: bool,
    is_anew: bool,
) -> "Lesson":
    """Let the teacher answer, and say what that came to."""
    from foreword.distillation.input_checks import form_of
    from foreword.distillation.lesson import prepare

    with options.errors.status("reading the context") as status:
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
            training.num_virtual_tokens,
            config,
            form=form_of(training),
            seed=training.seed,
            folder=output,
            is_instruction=is_instruction,
            is_anew=is_anew,
            on_begin=partial(clear, output, keeps_answers=True) if is_anew else lambda: None,
            on_answer=on_answer,
            on_question=on_question,
        )
    distill_report.show_start(backbone, lesson, data, ranks)
    return lesson


def _run(
    backbone: "Backbone",
    lesson: "Lesson",
    training: TrainConfig,
    given: Given,
    stop: Stop,
    ranks: "Ranks",
) -> None:
    """Train from every seed, keep the best of several, and say what came of it."""
    from foreword.cli.progress import save
    from foreword.distillation.distill import distill_seeds

    runs = distill_seeds(
        backbone, lesson, training, given.seeds, folder=given.output, resume=given.resume
    )
    if not (results := follow(runs, given, stop, ranks, concludes=False)):
        return
    prompt = distill_report.show_end(backbone, lesson, best_of(results), given.output, ranks)
    if ranks.is_main:
        save(prompt, {}, given.output)


def best_of(results: "Mapping[int, TrainEvent]") -> "SoftPrompt":
    """Return the best prompt by validation of several seeds, or the only one."""
    from foreword.training.seeds import spread

    prompts = {seed: event.prompt for seed, event in results.items() if event.prompt is not None}
    return next(iter(prompts.values())) if len(prompts) == 1 else spread(prompts).best
