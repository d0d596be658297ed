"""Seeds: the same run from several seeds, how far apart the results are, and the best of them.

In: what `train` takes, and how many seeds. Out: the runs, one after another; then mean and
deviation of what validation said, and the best prompt, which knows them.
"""

import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.errors import InputError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.checkpoint import StoredState, read_state
from foreword.training.folders import STATE_FILE, folder_of
from foreword.training.folders import seeds_of as seeds_of
from foreword.training.loop import TrainEvent, train
from foreword.training.objective import LIKELIHOOD, Objective
from foreword.training.rows import AnyExample
from foreword.training.run import RowSource


@dataclass(frozen=True, eq=False)
class SeedRun:
    """The run of one seed.

    Attributes:
        seed: its own.
        config: the options, with this seed.
        folder: where its training state is written; None: nowhere.
        resumed_after: the step that it goes on after; None where it begins.
        events: as `train` yields them.
    """

    seed: int
    config: TrainConfig
    folder: Path | None
    resumed_after: int | None
    events: Iterator[TrainEvent]


def train_seeds(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig,
    count: int,
    *,
    validation: Sequence[AnyExample] = (),
    encoding_config: EncodingConfig | None = None,
    initial: SoftPrompt | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    source: Callable[[int], RowSource | None] = lambda seed: None,
    objective: Objective = LIKELIHOOD,
    clear: Callable[[], object] | None = None,
) -> Iterator[SeedRun]:
    """Yield the run of each seed in turn; the next one begins when it is asked for.

    Takes what `train` takes, `count` as the number of seeds, `folder` for `checkpoint` and the
    `source` of each seed, and raises what `train` raises. `spread` compares the prompts that the
    runs end with. `clear` removes what is there of all seeds, and is called before the first.
    """
    for one in seeds_of(config, count):
        place = folder_of(folder, one.seed, count)
        after = saved_step(place) if resume else None
        events = train(
            backbone,
            examples,
            one,
            validation=validation,
            encoding_config=encoding_config,
            initial=initial,
            checkpoint=place,
            resume=resume,
            source=source(one.seed),
            objective=objective,
            clear=clear if one.seed == config.seed else None,
        )
        yield SeedRun(one.seed, one, place, after, events)


def stored_of(
    folder: str | os.PathLike[str] | None, config: TrainConfig, count: int
) -> StoredState | None:
    """Return the state of the first of several seeds' runs that has begun; None where none has.

    Raises:
        ArtifactError: a damaged state.
    """
    for one in seeds_of(config, count):
        place = folder_of(folder, one.seed, count)
        if place is not None and (place / STATE_FILE).exists():
            return read_state(place / STATE_FILE)
    return None


def saved_step(folder: Path | None) -> int | None:
    """Return the step of the training state in a folder; None where there is none.

    Raises:
        ArtifactError: a damaged state.
    """
    path = folder / STATE_FILE if folder is not None else None
    return read_state(path).progress().step if path is not None and path.exists() else None


@dataclass(frozen=True, eq=False)
class Spread:
    """What several seeds came to, each at its best step.

    Attributes:
        best_seed: that of the lowest validation loss.
        best: its prompt, with this spread among its metrics.
        measures: what validation said, by its name in `Validation`, of each seed.
    """

    best_seed: int
    best: SoftPrompt
    measures: Mapping[str, Mapping[int, float]]

    def __str__(self) -> str:
        name = "reward" if "reward" in self.measures else "loss"
        share = "preferred" if "preferred" in self.measures else "exact"
        each = self.measures[name]
        value, right = _summary(each), _summary(self.measures[share])
        return (
            f"{len(each)} seeds: validation {name} {value['mean']:.3f} +- "
            f"{value['deviation']:.3f}, {'of 1 or more' if name == 'reward' else share} "
            f"{right['mean']:.1%} +- {right['deviation']:.1%}; "
            f"the best is seed {self.best_seed}, {name} {each[self.best_seed]:.3f}"
        )


def spread(results: Mapping[int, SoftPrompt]) -> Spread:
    """Compare the prompts that runs of several seeds ended with.

    Raises:
        InputError: a prompt that was never validated.
    """
    found: dict[int, Mapping[str, float]] = {}
    for seed, prompt in results.items():
        validation = (prompt.facts.get("metrics") or {}).get("validation")
        if validation is None:
            raise InputError("--seeds keeps the best by validation: give --validation rows")
        found[seed] = validation
    best_seed = min(found, key=lambda seed: (found[seed]["loss"], seed))
    names = [name for name in found[best_seed] if all(name in one for one in found.values())]
    measures = {name: {seed: one[name] for seed, one in found.items()} for name in names}
    best = results[best_seed].detached()
    summaries = {name: _summary(values) for name, values in measures.items()}
    best.facts["metrics"] = best.facts["metrics"] | {"seeds": {"best": best_seed} | summaries}
    return Spread(best_seed, best, measures)


def _summary(values: Mapping[int, float]) -> dict[str, Any]:
    """Return mean and sample deviation, and the value of each seed."""
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    each = {str(seed): value for seed, value in values.items()}
    return {"mean": statistics.fmean(numbers), "deviation": deviation, "each": each}
