"""The training loop: one event per optimizer step, with validation, divergence and saving.

In: a backbone, examples or encoded rows, a configuration. Out: an iterator of `TrainEvent`s, whose
last one holds the trained prompt. The step itself is `step.train_step`; what a run begins with is
made in `setup`. Prints nothing; writes one file, the training state, where it is told to.
"""

import math
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foreword import notebook
from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.data.row import Row
from foreword.errors import DivergedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training import distributed, early_stopping, guards
from foreword.training.folders import STATE_FILE
from foreword.training.held_events import HeldEvents
from foreword.training.methods.method import task_prompts
from foreword.training.objective import LIKELIHOOD, Objective
from foreword.training.out_of_memory import step_that_fits
from foreword.training.rows import AnyExample
from foreword.training.run import RowSource, Run
from foreword.training.setup import one_run_in, prepare
from foreword.training.state import TrainState
from foreword.training.step import loss_at_good_point
from foreword.training.validation import Validation


@dataclass(frozen=True, eq=False)
class TrainEvent:
    """One optimizer step.

    Attributes:
        step: from 1 to `num_steps`; it falls where a run that diverged goes back.
        loss: mean of a label over the step's rows, in nats: cross entropy, or the divergence from a
            teacher; of another objective, what that one lessens.
        learning_rate: of this step.
        gradient_norm: before clipping.
        num_tokens: real tokens of the step's rows.
        seconds: that the step took, validation not counted.
        validation: set where the prompt was validated.
        prompt: set where it was validated, and on the last event: the best so far, else the newest.
        notices: what the run saw and did since the last event, a sentence each.
        task_prompts: beside `prompt`, each task's own, where a run trains several.
        reward: mean of the step's answers, where they are rewarded.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    seconds: float
    validation: Validation | None = None
    prompt: SoftPrompt | None = None
    notices: tuple[str, ...] = ()
    task_prompts: Mapping[str, SoftPrompt] = field(default_factory=dict)
    reward: float | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the step came to, by name."""
        found: dict[str, Any] = {"step": f"{self.step} of {self.num_steps}", "loss": self.loss}
        if self.reward is not None:
            found["reward"] = self.reward
        if self.validation is not None:
            found |= {f"validation {name}": one for name, one in self.validation.facts.items()}
        found["tokens per second"] = round(self.num_tokens / max(self.seconds, 1e-9))
        return found | {f"note {number}": one for number, one in enumerate(self.notices, 1)}

    def _repr_html_(self) -> str:
        return notebook.table("TrainEvent", self.facts)


def train(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[AnyExample] = (),
    encoding_config: EncodingConfig | None = None,
    initial: SoftPrompt | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    source: RowSource | None = None,
    objective: Objective = LIKELIHOOD,
    clear: Callable[[], object] | None = None,
) -> Iterator[TrainEvent]:
    """Train a soft prompt, one event per optimizer step; the last event's `prompt` is the result.

    In a notebook the events come under a bar.

    With validation rows the result is the prompt with the lowest validation loss, else the last
    one. Under a launcher of several processes each calls this alike, and all get the same events.

    Args:
        backbone: with a tokenizer, unless all examples are encoded rows and `initial` is given.
        examples: at least one: rows of a data file, examples, or encoded rows of ids.
        config: the run; default `TrainConfig()`.
        validation: examples that are never trained on.
        encoding_config: how examples become ids; saved in the prompt. Pairs are written as the
            rows of `initial` were, unless it says how.
        initial: start from this prompt's values instead of `config.init`.
        checkpoint: directory that the training state is written to, as often as
            `config.save_every` says, at the end, and when the iterator is closed. One that holds a
            run is gone on with or refused, never begun anew.
        resume: go on with the state in `checkpoint`, bit for bit; without one, begin. A finished
            run yields its last event again.
        source: makes the rows of the last steps, as `distillation.on_policy` does.
        objective: what a step lessens, as `preference.Preference`; default: the loss of labels.
        clear: removes the run that `checkpoint` holds, which is not refused then; called once all
            else is checked, before a run that begins writes its first state.

    Raises:
        DataError: an example that cannot be encoded; names file and line.
        InputError: nothing to train on, a state of another run, or without `resume` that of any.
        ArtifactError: a damaged state.
        MismatchError: `initial` is a prompt of another base.
        TrainingError: a gradient that is zero or, going back notwithstanding, not finite.
        StorageError: the state cannot be written, and the earlier one is kept; or another run has
            the same `checkpoint`.
    """
    with ExitStack() as lock:
        folder = Path(checkpoint) if checkpoint is not None else None
        if folder is not None and distributed.join().is_main:
            lock.enter_context(one_run_in(folder))
        run, state, notices = prepare(
            backbone,
            examples,
            config or TrainConfig(),
            validation,
            encoding_config or EncodingConfig(),
            initial,
            folder / STATE_FILE if folder is not None else None,
            resume,
            source,
            objective,
            clear,
        )
        events = HeldEvents(lock.pop_all(), _steps(run, state, notices))
        return notebook.watched(events, _bar)


def _bar(event: TrainEvent) -> notebook.Bar:
    said = f"loss {event.loss:.3f}"
    if event.validation is not None:
        said += f" · validation {event.validation.loss:.3f}, {event.validation.exact:.0%} exact"
    return notebook.Bar(event.step, event.num_steps, said)


def _steps(run: Run, state: TrainState, notices: list[str]) -> Generator[TrainEvent, None, None]:
    """Yield an event for each step that is left, and write the state where it is due."""
    if state.progress.is_finished:
        yield _event(run, state, math.nan, (), tuple(notices), prompt=state.result())
    while not state.progress.is_finished:
        is_taken = _is_unvalidated(run, state)  # as where a reward function failed
        point = None if is_taken else state.point_if_due()
        rate = run.rate_of(state.progress.step) * state.progress.rate_scale
        state.set_rate(rate)
        started = time.perf_counter()
        try:
            rows, norm = list[Row](), math.nan
            if not is_taken:
                rows = _rows(run, state)
                loss, norm = step_that_fits(run, state, rows, notices)  # 1. the step
                state.record(loss, rate, time.perf_counter() - started)
                if run.objective.has_floor:
                    _check_rise(run, state, rows)
                state.keep(point)  # before what may end the process
            result = _validate_if_due(run, state)  # 2. what it came to
        except DivergedError as error:
            notices.append(_go_back(state, error))
            continue
        notices += _remarks(run, state, result)
        is_due = run.is_due(state.progress.step) or state.progress.is_finished
        prompt = state.result() if is_due else None
        event = _event(run, state, norm, rows, tuple(notices), result, prompt)
        notices.clear()
        is_saved = state.progress.is_finished or run.is_save_due(state.progress.step)
        if is_saved:  # 3. nothing is lost
            state.save_for(run)
        try:
            yield event
        except GeneratorExit:
            if not is_saved:
                state.save_for(run)
            raise


def _is_unvalidated(run: Run, state: TrainState) -> bool:
    """Whether the latest step was taken, and what validates it was not."""
    step, validations = state.progress.step, state.history.validations
    is_known = any(one.step == step for one in validations)
    return step > 0 and bool(run.held_out) and run.is_due(step) and not is_known


def _rows(run: Run, state: TrainState) -> list[Row]:
    """Return the rows of the next step; where they cannot be made, write the state first."""
    with _nothing_lost(run, state):
        return run.rows_behind(state.prompt, state.progress.step)


@contextmanager
def _nothing_lost(run: Run, state: TrainState) -> Iterator[None]:
    """Write the state where what is done between two steps fails, of whatever kind, or is cut off:
    the user's own function, the memory, an interrupt.
    """
    try:
        yield
    except BaseException:
        state.save_for(run)
        raise


def _check_rise(run: Run, state: TrainState, rows: Sequence[Row]) -> None:
    """Refuse an explosion. A loss above the level of the last good point is that of hard rows,
    unless that point's prompt has a lower one on the same rows.

    Raises:
        DivergedError: several losses in a row were higher than the good point's.
    """
    progress, loss = state.progress, state.history.losses[-1]
    good = progress.good_level
    if not guards.is_sane(loss, good):
        good = loss_at_good_point(run, state, rows)
    progress.num_high = 0 if guards.is_sane(loss, good) else progress.num_high + 1
    guards.check_rise(progress.num_high, good, loss)


def _go_back(state: TrainState, seen: DivergedError) -> str:
    """Return to the last good point at half the rate and say so, or give up where that is no use.

    Raises:
        DivergedError: the good point itself diverges, or the run has gone back too often.
    """
    progress, step = state.progress, len(state.history.losses) + 1
    if progress.step == progress.good_step == 0:
        raise seen
    if progress.num_returns == guards.MAX_RETURNS:
        raise DivergedError(f"{seen}; the run went back {progress.num_returns} times in vain")
    state.go_back()
    return (
        f"near step {step} {str(seen).partition(';')[0]}: back to step {progress.step}, with "
        f"{progress.rate_scale:g} of the learning rate"
    )


def _validate_if_due(run: Run, state: TrainState) -> Validation | None:
    """Validate the prompt, and remember it if it is the best.

    Raises:
        DivergedError: the validation loss is not finite.
    """
    step = state.progress.step
    if not run.held_out or not run.is_due(step):
        return None
    size = state.progress.micro_batch_size
    prompts = task_prompts(state.method) or state.prompt
    with _nothing_lost(run, state):
        result = run.objective.validate(run.backbone, prompts, run.held_out, size, run.ranks)
    if not math.isfinite(result.loss):
        raise DivergedError(f"the validation loss is {result.loss:.4g}; lower --learning-rate")
    state.validated(result.facts)
    return result


def _remarks(run: Run, state: TrainState, result: Validation | None) -> list[str]:
    """Say what the guards see, and end the run where its patience is over."""
    losses = state.history.losses
    are_alike = run.is_made(0) == run.is_made(state.progress.step - 1)
    if run.objective.has_floor:
        found = [guards.standstill(losses, run.num_warmup) if are_alike else None]
    else:
        found = [guards.sameness(state.progress.step, state.progress.num_flat)]
    validations = [(one.step, one.loss) for one in state.history.validations]
    is_over = False
    if result is not None:
        said, is_over = early_stopping.worsening(validations, state.best_point, run.config.patience)
        found.append(said)
    state.progress.is_finished = is_over or state.progress.step >= run.num_steps
    return [sentence for sentence in found if sentence]


def _event(
    run: Run,
    state: TrainState,
    norm: float,
    rows: Sequence[Row],
    notices: tuple[str, ...],
    validation: Validation | None = None,
    prompt: SoftPrompt | None = None,
) -> TrainEvent:
    step, loss, rate, seconds = state.latest()
    tasks = state.task_results() if prompt is not None else {}
    num_tokens = sum(row.num_tokens for row in rows)
    rewards = [row.reward.value for row in rows if row.reward is not None]
    reward = sum(rewards) / len(rewards) if rewards else None
    return TrainEvent(
        step, run.num_steps, loss, rate, norm, num_tokens, seconds, validation, prompt, notices,
        tasks, reward,
    )  # fmt: skip
