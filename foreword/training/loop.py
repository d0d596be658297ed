"""Training a soft prompt on a frozen model: the step first, then the run around it.

In: a backbone, examples or encoded rows, a configuration. Out: an iterator of `TrainEvent`s, whose
last one holds the trained prompt. The prefix is computed once per optimizer step and shared by all
of its rows; its gradient adds up over the micro-batches and goes through the prefix once. Prints
nothing; writes one file, the training state, where it is told to.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import AUTO, EncodingConfig, TrainConfig
from foreword.data.encoding import Batch, Row
from foreword.errors import DivergedError, InputError
from foreword.prompt.peft_format import FILES
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States, Unread
from foreword.storage import remove_leftovers
from foreword.training import distributed, fsdp, guards, lr_search, methods, out_of_memory, start
from foreword.training.batches import batches_of, default_size
from foreword.training.checkpoint import STATE_FILE, StoredState, read_state
from foreword.training.compile_layers import compiling
from foreword.training.distributed import Ranks
from foreword.training.gradient_checkpointing import recomputing
from foreword.training.guards import check_gradient
from foreword.training.loss import score_labels
from foreword.training.methods import Method
from foreword.training.packing import packed_backbone
from foreword.training.run import Run
from foreword.training.start import AnyExample
from foreword.training.state import TrainState
from foreword.training.validation import Validation, validate


def train_step(run: Run, state: TrainState, rows: Sequence[Row]) -> tuple[float, float]:
    """Take one optimizer step over the rows of all processes; return the mean loss of a label and
    the gradient's norm.
    """
    method, batches = state.method, _batches(run, state, rows)
    states = read_for(run.backbone, method, batches)  # 1. the prefix, once, with gradient to leaves
    leaves = leaves_of(states)  # 2. the rows, their gradient adding up on a detached copy
    num_labels = sum(row.num_labels for row in rows)
    loss = accumulate(run.backbone, leaves, batches, num_labels, method)
    _backward(states, leaves, in_step=run.backbone.tie is not None)  # 3. the prefix, back once
    loss = _add_up(run.ranks, method.tensors, loss)  # 4. what is trained
    norm = _clip(method.tensors, run.config.max_grad_norm)
    check_gradient(loss, norm, run.backbone, state.progress.step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return loss, norm


def read_for(backbone: Backbone, method: Method, batches: Sequence[Batch]) -> States:
    """Return the state that rows start from, or, where a line holds all rows of the step and the
    virtual tokens, these themselves, unread.
    """
    prompt, (batch, *others), lining = method.prompt(), batches, backbone.lining
    is_whole = not others and not method.tasks() and method.unseen(batch) is None
    if lining is None or not is_whole or not lining.can_read(prompt, batch):
        return methods.read(backbone, method)
    return Unread.of(prompt.embeddings.to(backbone.device, backbone.dtype))


def _batches(run: Run, state: TrainState, rows: Sequence[Row]) -> list[Batch]:
    return batches_of(run.backbone, run.ranks, rows, state.progress.micro_batch_size)


def accumulate(
    backbone: Backbone,
    states: States,
    batches: Sequence[Batch],
    num_labels: int | None = None,
    method: Method | None = None,
) -> float:
    """Add the gradient of the label losses over all batches to `states`, divided by `num_labels`
    (default: those of the batches); return the loss, in nats.

    `method` says which of the states a row starts from; default: all rows from the same.
    """
    num_labels = num_labels or sum(int(batch.label_mask.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        if method is None:
            prefixes = same_prefix(Prefix(states, "training"), batch.input_ids.shape[0])
        else:
            prefixes = methods.behind(method, states, batch)
        loss = score_labels(backbone, prefixes, batch).losses.sum() / num_labels
        loss.backward()
        total += loss.item()
    return total


def leaves_of(states: States) -> States:
    """Return a detached copy on which gradient can add up."""
    return states.map(lambda state: state.detach().requires_grad_())


def _backward(states: States, leaves: States, *, in_step: bool = False) -> None:
    """Take the gradient of the leaves back to what is trained.

    Where processes gather a sharded base's layers `in_step`, each goes back through all that it has
    read, though no row of its share may be behind some of it, as of a task.
    """
    pairs = [
        (state, leaf.grad if leaf.grad is not None else torch.zeros_like(leaf))
        for state, leaf in zip(states.tensors, leaves.tensors, strict=True)
        if state.requires_grad and (in_step or leaf.grad is not None)
    ]
    if pairs:
        torch.autograd.backward([state for state, _ in pairs], [grad for _, grad in pairs])


def _add_up(ranks: Ranks, tensors: list[Tensor], loss: float) -> float:
    """Sum the prompt's gradient and the loss over all processes."""
    if ranks.size == 1:
        return loss
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    total = torch.tensor([loss], dtype=tensors[0].dtype)
    ranks.add_up([total, *(tensor.grad for tensor in tensors if tensor.grad is not None)])
    return total.item()


def _clip(tensors: list[Tensor], max_norm: float) -> float:
    limit = max_norm if max_norm > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(tensors, limit))


@dataclass(frozen=True, eq=False)
class TrainEvent:
    """One optimizer step.

    Attributes:
        step: from 1 to `num_steps`; it falls where a run that diverged goes back.
        loss: mean cross entropy of a label over the step's rows, in nats.
        learning_rate: of this step.
        gradient_norm: before clipping.
        num_tokens: real tokens of the step's rows.
        seconds: that the step took, validation not counted.
        validation: set where the prompt was validated.
        prompt: set where it was validated, and on the last event: the best so far, else the newest.
        notices: what the run saw and did since the last event, a sentence each.
        task_prompts: beside `prompt`, each task's own, where a run trains several.
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
) -> Iterator[TrainEvent]:
    """Train a soft prompt, one event per optimizer step; the last event's `prompt` is the result.

    With validation rows the result is the prompt with the lowest validation loss, else the last
    one. Under a launcher of several processes each calls this alike, and all get the same events.

    Args:
        backbone: with a tokenizer, unless all examples are encoded rows and `initial` is given.
        examples: at least one: rows of a data file, examples, or encoded rows of ids.
        config: the run; default `TrainConfig()`.
        validation: examples that are never trained on.
        encoding_config: how examples become ids; saved in the prompt.
        initial: start from this prompt's values instead of `config.init`.
        checkpoint: directory that the training state is written to, as often as
            `config.save_every` says, at the end, and when the iterator is closed.
        resume: go on with the state in `checkpoint`, bit for bit; without one, begin. A finished
            run yields its last event again.

    Raises:
        DataError: an example that cannot be encoded; names file and line.
        InputError: nothing to train on, or a state of another run. ArtifactError: a damaged state.
        MismatchError: `initial` is a prompt of another base.
        TrainingError: a gradient that is zero or, going back notwithstanding, not finite.
        StorageError: the state cannot be written; the earlier one is kept.
    """
    config = config or TrainConfig()
    is_open = config.is_start_open and initial is None
    if initial is not None:
        backbone.check(initial)
    config, said = start.settled(config, initial)
    encoding_config = encoding_config or EncodingConfig()
    ranks = distributed.join()
    rows, notices = start.encode_rows(backbone, examples, config, encoding_config)
    held_out, _ = start.encode_rows(backbone, validation, config, encoding_config)
    if not rows:
        raise InputError("no examples to train on; give at least one")
    if config.method == "multitask":
        start.check_tasks(rows, held_out)
    if is_open:
        config, said = start.with_start(backbone, config, rows, held_out)
    config = start.with_rate(backbone, config)
    if resume and checkpoint is None:
        raise InputError("resume needs checkpoint, the directory that holds the training state")
    file = Path(checkpoint) / STATE_FILE if checkpoint is not None else None
    identity = start.identity(
        backbone, rows, held_out, config, encoding_config, initial, ranks.size
    )
    backbone = compiling(backbone) if config.compile_layers else backbone
    backbone = recomputing(backbone) if config.gradient_checkpointing else backbone
    backbone = fsdp.sharded(backbone, ranks.device) if fsdp.is_asked_for() else backbone
    backbone = backbone if config.compile_layers else packed_backbone.packed(backbone)
    run = Run(backbone, rows, held_out, config, ranks, identity, file)
    stored = read_state(file) if resume and file is not None and file.exists() else None
    if stored is not None:
        stored.check(identity)
    run, chosen = _with_rate(run, stored, initial, said)
    if stored is not None:
        method = start.bound(stored.method(backbone.device), initial, rows, config)
        notices = [notice] if (notice := stored.changed_environment(identity)) else []
    else:
        notices += said
        method = start.begin(backbone, initial, rows, config)
        method.facts = start.describe(backbone, config, encoding_config, rows)
        method.facts["training"] |= chosen
    state = _start(run, method)
    if stored is not None:
        state.take_over(stored, state.progress.micro_batch_size)
    ranks.check_alike(f"{identity} {state.progress} {state.prompt.content_hash}")
    if file is not None and ranks.is_main:
        for name in (STATE_FILE, *FILES):
            remove_leftovers(file.with_name(name))
    if stored is None:
        _save(run, state)
    return _steps(run, state, notices)


def _with_rate(
    run: Run, stored: StoredState | None, initial: SoftPrompt | None, said: list[str]
) -> tuple[Run, dict[str, Any]]:
    """Return a run whose learning rate is known, and the facts of how it was found, if it was."""
    if run.config.learning_rate != AUTO:
        return run, {}
    if stored is not None:
        chosen = stored.rate_facts()
    else:
        chosen, sentence = _probe(run, initial)
        said.append(sentence)
    return replace(run, config=replace(run.config, learning_rate=chosen["learning_rate"])), chosen


def _probe(run: Run, initial: SoftPrompt | None) -> tuple[dict[str, Any], str]:
    """Train a copy for a few steps at each of a few rates; return the best rate with all losses,
    and say so. Takes no file and leaves the run as it was.
    """
    num_steps, losses = lr_search.num_steps(run.num_steps), {}
    for rate in lr_search.rates(start.default_rate(run.backbone, run.config)):
        config = replace(run.config, learning_rate=rate, num_steps=num_steps)
        trial = replace(run, config=config, file=None, _epoch={})
        state = _start(trial, start.begin(run.backbone, initial, run.rows, config))
        try:
            for step in range(num_steps):
                state.set_rate(trial.rate_of(step))
                loss, _ = _step_that_fits(trial, state, trial.rows_of(step), [])
                state.record(loss, rate, 0.0)
            prompts = state.method.tasks() or state.prompt
            size = state.progress.micro_batch_size
            judged = _judged(run, state.method)[: lr_search.NUM_JUDGED]
            losses[rate] = validate(run.backbone, prompts, judged, size, run.ranks).loss
        except DivergedError:
            losses[rate] = math.inf
    return lr_search.chosen(losses, num_steps)


def _judged(run: Run, method: Method) -> list[Row]:
    """Return rows that can tell rates apart: held-out ones, else those that the prompt holds none
    of, where there are any.
    """
    own = method.own if isinstance(method, methods.Context) else {}
    return run.held_out or [row for row in run.rows if row.input_ids not in own] or run.rows


def _start(run: Run, method: Method) -> TrainState:
    config = run.config
    optimizer = torch.optim.AdamW(
        method.tensors, lr=run.rate_of(0), weight_decay=config.weight_decay
    )
    share = -(-config.batch_size // run.ranks.size)
    size = config.micro_batch_size or default_size(run.backbone, run.rows, share, method.prompt())
    return TrainState(method, optimizer, min(size, share))


def _steps(run: Run, state: TrainState, notices: list[str]) -> Iterator[TrainEvent]:
    """Yield an event for each step that is left, and write the state where it is due."""
    if state.progress.is_finished:
        yield _event(run, state, math.nan, 0, tuple(notices), prompt=state.result())
    while not state.progress.is_finished:
        point, rows = state.point_if_due(), run.rows_of(state.progress.step)
        rate = run.rate_of(state.progress.step) * state.progress.rate_scale
        state.set_rate(rate)
        started = time.perf_counter()
        try:
            loss, norm = _step_that_fits(run, state, rows, notices)  # 1. the step
            state.record(loss, rate, time.perf_counter() - started)
            guards.check_level(state.history.losses, state.progress.good_level)
            result = _validate_if_due(run, state)  # 2. what it came to
        except DivergedError as error:
            notices.append(_go_back(state, error))
            continue
        state.keep(point)
        notices += _remarks(run, state, result)
        is_due = run.is_due(state.progress.step) or state.progress.is_finished
        num_tokens = sum(len(row.input_ids) for row in rows)
        event = _event(
            run, state, norm, num_tokens, tuple(notices), result, state.result() if is_due else None
        )
        notices.clear()
        is_saved = state.progress.is_finished or run.is_save_due(state.progress.step)
        if is_saved:  # 3. nothing is lost
            _save(run, state)
        try:
            yield event
        except GeneratorExit:
            if not is_saved:
                _save(run, state)
            raise


def _step_that_fits(
    run: Run, state: TrainState, rows: list[Row], notices: list[str]
) -> tuple[float, float]:
    """Take a step; where memory runs out, halve the rows of a pass and take it from its start."""
    while True:
        try:
            return train_step(run, state, rows)
        except RuntimeError as error:
            out_of_memory.check(error, is_sharded=run.backbone.tie is not None)
            notices.append(out_of_memory.take_less(state, error))


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
    prompts = state.method.tasks() or state.prompt
    result = validate(run.backbone, prompts, run.held_out, size, run.ranks)
    if not math.isfinite(result.loss):
        raise DivergedError(f"the validation loss is {result.loss:.4g}; lower --learning-rate")
    state.validated(asdict(result))
    return result


def _remarks(run: Run, state: TrainState, result: Validation | None) -> list[str]:
    """Say what the guards see, and end the run where its patience is over."""
    found = [guards.standstill(state.history.losses, run.num_warmup)]
    validations = [(step, loss) for step, loss, _ in state.history.validations]
    is_over = False
    if result is not None:
        said, is_over = guards.worsening(validations, state.best_step, run.config.patience)
        found.append(said)
    state.progress.is_finished = is_over or state.progress.step >= run.num_steps
    return [sentence for sentence in found if sentence]


def _event(
    run: Run,
    state: TrainState,
    norm: float,
    num_tokens: int,
    notices: tuple[str, ...],
    validation: Validation | None = None,
    prompt: SoftPrompt | None = None,
) -> TrainEvent:
    step, loss, rate, seconds = state.latest()
    tasks = state.task_results() if prompt is not None else {}
    return TrainEvent(
        step, run.num_steps, loss, rate, norm, num_tokens, seconds, validation, prompt, notices,
        tasks,
    )  # fmt: skip


def _save(run: Run, state: TrainState) -> None:
    if run.file is not None and run.ranks.is_main:
        state.save(run.file, run.identity)
