"""Out-of-memory recovery: fewer rows in a micro-batch, the same rows in a step.

In: a run, its state, the rows of a step. Out: the step's loss and gradient norm, taken with
micro-batches that fit, and a sentence for each time that they were halved. Any other error goes on
as it is.
"""

import gc
from collections.abc import Sequence

import torch

from foreword.data.encoding import Row
from foreword.errors import TrainingError
from foreword.training.run import Run
from foreword.training.state import TrainState
from foreword.training.step import train_step

# What the allocators of torch without an error class of their own say.
SAID = ("DefaultCPUAllocator", "not enough memory", "out of memory")


def step_that_fits(
    run: Run, state: TrainState, rows: Sequence[Row], notices: list[str]
) -> tuple[float, float]:
    """Take a step; where memory runs out, halve the rows of a pass and take it from its start."""
    while True:
        try:
            return train_step(run, state, rows)
        except RuntimeError as error:
            check(error, is_sharded=run.backbone.passes.is_sharded)
            notices.append(take_less(state, error))


def is_exhausted(error: RuntimeError) -> bool:
    """Return whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in SAID)


def check(error: RuntimeError, is_sharded: bool) -> None:
    """Refuse what fewer rows in a pass cannot answer.

    Raises:
        RuntimeError: the error itself, if it is not about memory.
        TrainingError: other processes, among which the base is spread, would not take as many
            passes as this one.
    """
    if not is_exhausted(error):
        raise error
    if is_sharded:
        raise TrainingError(
            "memory ran out, and all processes of a sharded base must take the same passes: give "
            "a smaller --micro-batch-size, or --gradient-checkpointing, and --resume"
        ) from error


def take_less(state: TrainState, error: RuntimeError) -> str:
    """Halve the rows of a pass and forget the step's gradient so far; say so.

    Raises:
        TrainingError: one row alone does not fit.
    """
    size = state.progress.micro_batch_size
    if size == 1:
        raise TrainingError(
            "memory ran out with one row in a pass; use --gradient-checkpointing, shorter rows "
            "(--max-length), fewer virtual tokens, or a base in bfloat16"
        ) from error
    state.progress.micro_batch_size = -(-size // 2)
    state.optimizer.zero_grad()
    # The error's traceback holds the tensors of the pass that failed.
    error.__traceback__ = None
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return (
        f"step {state.progress.step + 1}: memory ran out with {size} rows in a pass; it goes on "
        f"with {state.progress.micro_batch_size}, and as many rows in a step as before"
    )
