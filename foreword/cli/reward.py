"""Reward command: `foreword reward`, from a prompt and a reward function to a better prompt.

In: a prompt's directory, a data file of questions, a function of the user's. Out: a prompt's
directory. Draws no answer itself.
"""

from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import early, options, unused_options
from foreword.cli.conclusion import end
from foreword.cli.progress import Stop
from foreword.cli.run_output import check_apart, claimed
from foreword.cli.seed_runs import Given, check_validation, folders_of, follow, share_of
from foreword.config import AUTO, DataConfig, RewardConfig, TrainConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.training.questions import Question
    from foreword.training.rewards import RewardFunction

TOLD = {
    "method": "how the prompt is learned, see docs/methods.md; default: prefix-tuning, or "
    "prompt-tuning where --form or else the prompt is embeddings",
    "form": "what is learned: 'embeddings' [P, H] or 'key_values' of every layer; default: what "
    "--method learns, or else what the prompt is",
    "learning_rate": "peak learning rate of AdamW, a number; default: a tenth of the method's own "
    "in train: 3e-3 for prefix-tuning and context-tuning, 5e-4 for residual, 3e-4 for p-tuning, "
    "1e-4 for prefix-projection, 0.011 times the embedding table's root mean square for "
    "prompt-tuning",
    "batch_size": "questions per optimizer step",
}
WITHOUT_EFFECT = (
    "num_virtual_tokens", "init", "init_text", "task_column", "learn", "label_column",
)  # fmt: skip


@options.from_configs(DataConfig, RewardConfig, TrainConfig, told=TOLD, hidden=WITHOUT_EFFECT)
def command(
    columns: DataConfig,
    config: RewardConfig,
    training: TrainConfig,
    prompt: Annotated[str, typer.Option(help="directory or Hub id of the prompt to start from")],
    data: Annotated[str, typer.Option(help="questions: rows as of training, answers not needed")],
    reward: Annotated[
        str,
        typer.Option(help="module:function or file.py:function that says how good answers are"),
    ],
    output: Annotated[str, typer.Option(help="directory that the prompt is written to")],
    model: options.Model = None,
    validation: Annotated[
        str, typer.Option(help="rows as for --data, or the share of --data to hold out")
    ] = "0.1",
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
    """Train a prompt by a function that says how good the model's own answers are: no labels.

    The function is called by name, function(prompts=..., completions=..., column=...), with lists
    of one entry for each answer, and returns a number for each. It is your code, and runs as such.

    Example: foreword reward --prompt my-prompt --data prompts.jsonl --reward checks.py:valid
    --output better
    """
    if training.learning_rate == AUTO:
        raise InputError("--learning-rate auto goes by losses of labels: give a number")
    training.check_one_prompt("reward")
    training.check_step(config.group)
    unused_options.check_reward(columns)
    check_validation(validation, training, seeds)
    folders = folders_of(output, training, seeds)
    held_out = validation if share_of(validation) is None else None
    early.check(data=[data, held_out], prompts=[prompt], model=model)
    reads = {"--data": data, "--validation": held_out, "--prompt": prompt}
    check_apart(output, reads | {"--model": model})
    from foreword.training import launch
    from foreword.training.rewards import load_reward

    options.speak(launch.is_main())
    stop = Stop()
    with claimed(output, folders, resume=resume, overwrite=overwrite, is_main=launch.is_main()):
        questions = read(data, validation, columns, training.seed)
        function = load_reward(reward)
        for part in questions:
            check(function, part)
        from foreword.training import distributed
        from foreword.training.rewarded import reward_seeds

        ranks = distributed.join()
        backbone, start = options.load(model, prompt)
        assert start is not None
        given = Given(output, resume, overwrite, seeds)
        runs = reward_seeds(
            backbone,
            start,
            function,
            questions[0],
            config,
            training,
            seeds,
            validation=questions[1],
            folder=output,
            resume=resume,
            clear=given.clear,
        )
        follow(runs, given, stop, ranks)
    end(stop, ranks)


def read(
    data: str, validation: str, columns: DataConfig, seed: int
) -> "tuple[list[Question], list[Question]]":
    """Read the questions to train on and the held-out ones, from a file or as a share."""
    from foreword.data.example import Example
    from foreword.data.readers import check_held_out
    from foreword.data.validation_split import split_examples
    from foreword.training.questions import read_questions

    share = share_of(validation)
    if share is None:
        check_held_out(validation)
    questions = read_questions(data, columns, options.note)
    if share is None:
        return questions, read_questions(validation, columns, options.note)
    if not share:
        return questions, []
    asked = [Example(one.asked, "", str(number)) for number, one in enumerate(questions)]
    kept, aside = (
        [questions[int(one.source)] for one in part] for part in split_examples(asked, share, seed)
    )
    return kept, aside


def check(function: "RewardFunction", questions: "list[Question]") -> None:
    """Refuse a reward function that wants a column which some row has not."""
    if questions:
        shared = set.intersection(*(set(one.columns) for one in questions))
        function.check(sorted(shared))
