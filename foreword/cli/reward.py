"""Reward command: `foreword reward`, from a prompt and a reward function to a better prompt.

In: a prompt's directory, a data file of questions, a function of the user's. Out: a prompt's
directory. Draws no answer itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import early, options, run_file
from foreword.cli.conclusion import conclude, end, where_it_goes_on
from foreword.cli.progress import Stop
from foreword.cli.run_output import claimed
from foreword.cli.train import attend, check_for_seeds, folders_of, keep_best, share_of
from foreword.config import AUTO, DataConfig, RewardConfig, TrainConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent
    from foreword.training.rewards import RewardFunction
    from foreword.training.rollouts import Question


@options.from_configs(DataConfig, RewardConfig, TrainConfig)
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
    if seeds > 1:
        check_for_seeds(validation, None)
    if training.patience and share_of(validation) == 0:
        raise InputError("--patience counts validations: give --validation rows, or leave it out")
    folders = folders_of(output, training, seeds)
    held_out = validation if share_of(validation) is None else None
    early.check(data=[data, held_out], prompts=[prompt], model=model)
    from foreword.training import distributed
    from foreword.training.rewards import load_reward

    ranks, stop = distributed.join(), Stop()
    options.speak(ranks.is_main)
    with claimed(
        output,
        folders,
        resume=resume,
        overwrite=overwrite,
        is_main=ranks.is_main,
    ):
        questions = read(data, validation, columns, training.seed)
        function = load_reward(reward)
        for part in questions:
            check(function, part)
        backbone, start = options.load(model, prompt)
        assert start is not None
        if ranks.is_main:
            run_file.write(Path(output))
        given = RewardRuns(config, training, output, resume, seeds)
        run_all(backbone, start, function, questions, given, stop, ranks)
    end(stop, ranks)


@dataclass(frozen=True)
class RewardRuns:
    """What the command line asks of the runs of `foreword reward`, its questions apart."""

    config: RewardConfig
    training: TrainConfig
    output: str
    resume: bool
    seeds: int


def read(
    data: str, validation: str, columns: DataConfig, seed: int
) -> "tuple[list[Question], list[Question]]":
    """Read the questions to train on and the held-out ones, from a file or as a share."""
    from foreword.data.example import Example
    from foreword.data.readers import check_held_out
    from foreword.data.validation_split import split_examples

    share = share_of(validation)
    if share is None:
        check_held_out(validation)
    elif not 0 <= share < 1:
        raise InputError(f"--validation must be a file or a share in [0, 1), got {validation}")
    questions = _questions(data, columns)
    if share is None:
        return questions, _questions(validation, columns)
    if not share:
        return questions, []
    asked = [Example(one.asked, "", one.source) for one in questions]
    kept, _ = split_examples(asked, share, seed)
    sources = {one.source for one in kept}
    return (
        [one for one in questions if one.source in sources],
        [one for one in questions if one.source not in sources],
    )


def _questions(data: str, columns: DataConfig) -> "list[Question]":
    from foreword.data.columns import as_query
    from foreword.data.examples import beside, folder_of, read_each
    from foreword.training.rollouts import Question

    folder = folder_of(data)

    def read(row: Mapping[str, Any], source: str, said: Any) -> "Question":
        return Question(beside(as_query(row, source, columns), folder), source, row)

    return read_each(data, read, columns, options.note)


def check(function: "RewardFunction", questions: "list[Question]") -> None:
    """Refuse a reward function that wants a column which some row has not."""
    if questions:
        shared = set.intersection(*(set(one.columns) for one in questions))
        function.check(sorted(shared))


def run_all(
    backbone: "Backbone",
    start: "SoftPrompt",
    function: "RewardFunction",
    questions: "tuple[list[Question], list[Question]]",
    given: RewardRuns,
    stop: Stop,
    ranks: "Ranks",
) -> None:
    """Train from every seed, and keep the best of several."""
    from foreword.training.rewarded import reward_seeds

    results: dict[int, TrainEvent] = {}
    for one in reward_seeds(
        backbone,
        start,
        function,
        questions[0],
        given.config,
        given.training,
        given.seeds,
        validation=questions[1],
        folder=given.output,
        resume=given.resume,
    ):
        place = str(one.folder)
        if given.seeds > 1:
            options.output.print(f"seed {one.seed}:")
        if given.resume:
            options.errors.print(where_it_goes_on(place, one.resumed_after))
        last = attend(one.events, place, stop, ranks, None)
        if ranks.is_main:
            conclude(last, place, stop)
        if last is None or stop.signal:
            return
        results[one.seed] = last
    if given.seeds > 1 and ranks.is_main:
        keep_best(results, given.output)
