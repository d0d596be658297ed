"""Seed runs: what `train`, `distill` and `reward` share around the runs of their seeds.

In: runs that begin one after another. Out: each attended to its end, the best of several kept, and
lines on the terminal. Knows no objective and no row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli import options, run_file
from foreword.cli.conclusion import conclude, kept, where_it_goes_on
from foreword.cli.progress import Stop, Trackers, run, save
from foreword.config import DataConfig, TrainConfig
from foreword.errors import InputError

if TYPE_CHECKING:
    from foreword.training.distributed import Ranks
    from foreword.training.loop import TrainEvent
    from foreword.training.seeds import SeedRun


@dataclass(frozen=True)
class Given:
    """What a command line asks of its runs, beside their options.

    Attributes:
        output: directory of the prompt.
        resume: they go on where they stopped.
        overwrite: they begin anew, whatever is there.
        seeds: how many there are.
        curves: file of a picture of the only one.
        track: names of trackers.
        columns: where the columns of their data are.
    """

    output: str
    resume: bool
    overwrite: bool
    seeds: int
    curves: str | None = None
    track: str | None = None
    columns: DataConfig = DataConfig()

    @property
    def clear(self) -> Callable[[], None] | None:
        """What removes an earlier run, where they begin anew."""
        from foreword.cli.clearing import clear

        return partial(clear, self.output) if self.overwrite else None


def follow(
    runs: "Iterable[SeedRun]", given: Given, stop: Stop, ranks: "Ranks", *, concludes: bool = True
) -> "dict[int, TrainEvent]":
    """Attend the run of every seed in turn, and keep the best of several; the options are written
    beside them once the first has begun, so that a run that is refused changes none.

    Args:
        runs: as they begin.
        given: what is asked of them.
        stop: whether they are to stop.
        ranks: the processes.
        concludes: say what came of each; else only of one that was stopped.

    Returns:
        the last event of each seed; nothing where a run was stopped.
    """
    results: dict[int, TrainEvent] = {}
    for one in runs:
        place = str(one.folder)
        if ranks.is_main and not results:
            run_file.write(Path(given.output))
        if given.seeds > 1:
            options.output.print(f"seed {one.seed}:")
        if given.resume:
            options.errors.print(where_it_goes_on(place, one.resumed_after))
        trackers = Trackers(given.track, place, asdict(one.config)) if given.track else None
        last = _attend(one.events, place, stop, ranks, trackers)
        is_stopped = last is None or last.prompt is None or bool(stop.signal)
        if ranks.is_main and (concludes or is_stopped):
            conclude(last, place, stop, given.curves, given.columns)
        if last is None or is_stopped:
            return {}
        results[one.seed] = last
    if given.seeds > 1 and ranks.is_main:
        _keep_best(results, given.output)
    return results


def _attend(
    events: "Iterator[TrainEvent]",
    output: str,
    stop: Stop,
    ranks: "Ranks",
    trackers: Trackers | None,
) -> "TrainEvent | None":
    """Follow one run to its end; of a failure, say what it leaves behind.

    Raises:
        TrainingError, StorageError: the run cannot go on.
    """
    from foreword.errors import StorageError, TrainingError

    try:
        last = run(events, output, stop, ranks, trackers)
    except (TrainingError, StorageError) as error:
        raise type(error)(f"{error}{kept(output)}") from error
    if trackers is not None:
        trackers.close()
    return last


def _keep_best(results: "Mapping[int, TrainEvent]", output: str) -> None:
    """Write the best prompt of several seeds, and say how far apart they are."""
    from shlex import quote

    from foreword.training.seeds import spread

    prompts = {seed: event.prompt for seed, event in results.items() if event.prompt is not None}
    found = spread(prompts)
    save(found.best, results[found.best_seed].task_prompts, output)
    options.output.print(f"{found}\nits prompt is saved to {quote(output)}")


def folders_of(output: str, config: TrainConfig, seeds: int) -> list[Path]:
    """Return the folder of each seed's run."""
    from foreword.training.folders import folder_of, seeds_of

    found = [folder_of(output, one.seed, seeds) for one in seeds_of(config, seeds)]
    return [folder for folder in found if folder is not None]


def check_validation(
    validation: str, config: TrainConfig, seeds: int, curves: str | None = None
) -> None:
    """Refuse a share that is none, and what goes by validation where there are no rows for it.

    Raises:
        InputError: names the option.
    """
    share = share_of(validation)
    if share is not None and not 0 <= share < 1:
        raise InputError(f"--validation must be a file or a share in [0, 1), got {validation}")
    if seeds > 1 and share == 0:
        raise InputError("--seeds keeps the best by validation: give --validation rows")
    if seeds > 1 and curves is not None:
        raise InputError("--curves draws one run: leave it out with --seeds, or use --track")
    if config.patience and share == 0:
        raise InputError("--patience counts validations: give --validation rows, or leave it out")


def share_of(validation: str) -> float | None:
    """Return the share of rows to hold out; None where a file is named."""
    try:
        return float(validation)
    except ValueError:
        return None
