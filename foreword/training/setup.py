"""The set-up of a run: all that is decided before the first step.

In: what `train` was given. Out: the run, its state, and what there is to say. Reads the training
state of a run that resumes, and writes that of one that begins.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import AUTO, EncodingConfig, TrainConfig
from foreword.data.row import Row, every
from foreword.data.several import several
from foreword.errors import InputError
from foreword.prompt.peft_format import FILES
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import locked, remove_leftovers, storage_errors
from foreword.training import distributed, fsdp, launch, lr_search, start, start_rows
from foreword.training.checkpoint import OBJECTIVE, SOURCE, StoredState, read_state
from foreword.training.compile_layers import with_compiled_layers
from foreword.training.distributed import Ranks
from foreword.training.facts import describe, run_identity, told_by
from foreword.training.folders import STATE_FILE
from foreword.training.gradient_checkpointing import with_gradient_checkpointing
from foreword.training.objective import LIKELIHOOD, Objective
from foreword.training.packing import packed_decoder
from foreword.training.reference import log_probabilities, with_reference
from foreword.training.rows import AnyExample, check_tasks, contradicted, encode_rows, overlap
from foreword.training.run import RowSource, Run
from foreword.training.state import TrainState
from foreword.training.state_file import refuse_run

LOCK_FILE = ".training_state.lock"


@contextlib.contextmanager
def one_run_in(folder: Path) -> Iterator[None]:
    """Hold a folder of a training state, which is made, for one run.

    Raises:
        StorageError: another run holds it, or it cannot be made.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    taken = f"{folder}: another run writes its training state here; wait for its end"
    with locked(folder / LOCK_FILE, taken):
        yield


def prepare(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig,
    validation: Sequence[AnyExample],
    encoding_config: EncodingConfig,
    initial: SoftPrompt | None,
    file: Path | None,
    resume: bool,
    source: RowSource | None = None,
    objective: Objective = LIKELIHOOD,
    clear: Callable[[], object] | None = None,
) -> tuple[Run, TrainState, list[str]]:
    """Return a run, the state that its next step starts from, and what there is to say of it.

    Takes what `train` takes, and raises what it raises.
    """
    _check(config, encoding_config, objective, source, has_start=initial is not None)
    if resume and file is None:
        raise InputError("resume needs checkpoint, the directory that holds the training state")
    if file is not None and not resume and clear is None:
        refuse_run(file)
    examples = several("examples", examples, "rows")  # read twice
    validation = several("validation", validation, "rows")
    is_open = config.is_start_open and initial is None
    share = 1.0 if config.learning_rate is not None else objective.rate_share
    if initial is not None:
        backbone.check(initial)
    config, said = start.settled(config, initial)
    stored = read_state(file) if resume and file is not None and file.exists() else None
    encoding_config = start_rows.written(backbone, encoding_config, initial, objective, stored)
    ranks = distributed.join()
    (rows, cut), (held_out, _) = (
        encode_rows(
            backbone,
            part,
            config,
            encoding_config,
            are_pairs=objective.has_pairs,
            has_answers=objective.has_answers,
        )
        for part in (examples, validation)
    )
    _check_rows(rows, held_out, config)
    if is_open:
        config, said = start.with_start(backbone, config, rows, held_out)
    config = start.with_rate(backbone, config, share)
    identity = run_identity(backbone, rows, held_out, config, encoding_config, initial, ranks.size)
    identity[SOURCE] = source.identity if source is not None else None
    identity[OBJECTIVE] = objective.identity
    backbone = for_training(backbone, config, ranks)
    run = Run(backbone, rows, held_out, config, ranks, identity, file, source, objective)
    if stored is not None:
        stored.check(identity)
    run, reference = _with_reference(run, stored, initial)
    run, chosen = _with_rate(run, stored, initial, said)
    if stored is not None:
        method = start.bound(stored.method(backbone.device), initial, rows, run.config)
        notices = [notice] if (notice := stored.changed_environment(identity)) else []
    else:
        method = start.begin(backbone, initial, rows, run.config)
        method.facts = _facts(run, encoding_config, initial, chosen)
        notices = [*cut, *said, *_doubts(run, initial, method.facts["encoding"])]
    state = start.start_state(run, method)
    state.reference = reference
    if stored is not None:
        state.take_over(stored, state.progress.micro_batch_size)
    ranks.check_alike(f"{identity} {state.progress} {state.prompt.content_hash}")
    _open_file(run, state, clear, is_new=stored is None)
    return run, state, notices


def _check(
    config: TrainConfig,
    encoding_config: EncodingConfig,
    objective: Objective,
    source: RowSource | None,
    *,
    has_start: bool,
) -> None:
    """Refuse arguments of another kind, and options that the objective or the processes exclude."""
    for name, given, kind in (
        ("config", config, TrainConfig), ("encoding_config", encoding_config, EncodingConfig),
    ):  # fmt: skip
        if not isinstance(given, kind):
            raise InputError(f"{name}: expected a {kind.__name__}, got {type(given).__name__}")
    if isinstance(objective, str) or not hasattr(objective, "summed"):
        raise InputError(
            f"objective: expected an objective such as Preference(), got {objective!r:.80}"
        )
    objective.check(config, has_start=has_start)
    config.check_step(source.group if source is not None else 1)
    if source is not None and launch.is_fsdp_asked_for():
        instead = ", or without --on-policy" if "on_policy" in source.identity else ""
        raise InputError(
            "answers that are drawn in training are of different lengths in each process, and a "
            f"sharded base needs all in step: run without sharding{instead}"
        )


def _check_rows(rows: Sequence[Row], held_out: Sequence[Row], config: TrainConfig) -> None:
    """Refuse to train on nothing, patience without validations, and tasks that do not fit."""
    if not rows:
        raise InputError("no examples to train on; give at least one")
    if config.patience and not held_out:
        raise InputError(
            "--patience counts validations without a better one, and there are no validation rows: "
            "give some, or leave it out"
        )
    if config.method == "multitask":
        check_tasks(rows, held_out)


def _facts(
    run: Run,
    encoding_config: EncodingConfig,
    initial: SoftPrompt | None,
    chosen: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the prompts of a run that begins know of it."""
    has_answers = run.objective.has_answers
    facts = describe(run.backbone, run.config, encoding_config, run.rows, has_answers=has_answers)
    facts["training"] |= {**chosen, **run.objective.identity}
    if initial is not None and not has_answers:
        facts["encoding"] |= told_by(initial)
    return facts


def _doubts(
    run: Run, initial: SoftPrompt | None, encoding_facts: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what may not be meant in the rows and the start of a run that begins."""
    objective, by_task = run.objective, run.config.method == "multitask"
    has_answers = objective.has_answers
    if (
        has_answers
        and not objective.has_pairs
        and (doubt := contradicted(run.rows, by_task=by_task))
    ):
        yield doubt
    if doubt := overlap(run.rows, run.held_out, by_task=by_task, has_answers=has_answers):
        yield doubt
    if initial is None:
        yield from start.unused_text(run.backbone, run.config)
    elif has_answers and (doubt := start_rows.otherwise(run.backbone, initial, encoding_facts)):
        yield doubt


def for_training(backbone: Backbone, config: TrainConfig, ranks: Ranks) -> Backbone:
    """Return the backbone that the passes of training run on, a view of the one given.

    The order matters: layers are compiled before they are checkpointed, so that what runs again on
    the way back is the compiled layer; they are sharded as they are by then; and only layers that
    are neither compiled nor sharded can be packed.
    """
    if config.compile_layers:
        backbone = with_compiled_layers(backbone)
    if config.gradient_checkpointing:
        backbone = with_gradient_checkpointing(backbone)
    if launch.is_fsdp_asked_for():
        backbone = fsdp.sharded(backbone, ranks.device)
    return backbone if config.compile_layers else packed_decoder.packed(backbone)


def _with_reference(
    run: Run, stored: StoredState | None, initial: SoftPrompt | None
) -> tuple[Run, Tensor]:
    """Return a run whose rows know what the reference model says of them, where its objective asks,
    and that, as a training state keeps it: computed once, behind the prompt of the first step.
    """
    if not run.objective.has_reference:
        return run, torch.empty(0, device="cpu")
    both = (*run.rows, *run.held_out)
    if stored is not None:
        reference = stored.reference()
    else:
        prompt = start.begin(run.backbone, initial, run.rows, run.config).prompt().detached()
        found = log_probabilities(run.backbone, prompt, every(both), ranks=run.ranks)
        reference = found.to(torch.promote_types(run.backbone.dtype, torch.float32))
    known = with_reference(both, reference)
    cut = len(run.rows)
    return replace(run, rows=known[:cut], held_out=known[cut:]), reference


def _with_rate(
    run: Run, stored: StoredState | None, initial: SoftPrompt | None, said: list[str]
) -> tuple[Run, dict[str, Any]]:
    """Return a run whose learning rate is known, and the facts of how it was found, if it was."""
    if run.config.learning_rate != AUTO:
        return run, {}
    if stored is not None:
        chosen = stored.rate_facts()
    else:
        chosen, sentence = lr_search.search(run, initial)
        said.append(sentence)
    return replace(run, config=replace(run.config, learning_rate=chosen["learning_rate"])), chosen


def _open_file(
    run: Run, state: TrainState, clear: Callable[[], object] | None, *, is_new: bool
) -> None:
    """Clear what a killed process has left beside the training state; of a new run, what an earlier
    one has left, too, and write its state.
    """
    if run.file is not None and run.ranks.is_main:
        if is_new and clear is not None:
            clear()
        for name in (STATE_FILE, *FILES):
            remove_leftovers(run.file.with_name(name))
    if is_new:
        state.save_for(run)
