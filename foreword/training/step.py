"""The optimizer step: recite `train_step`.

In: a run, its state, the rows of all processes. Out: the step's loss and gradient norm; the leaves
have moved. The prefix is computed once per step and shared by all rows; its gradient adds up over
the micro-batches (gradient accumulation) and goes back through the prefix once.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.batches import Batch
from foreword.data.encoding import Row
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.prompt.states import DeferredPrompt, PrefixStates
from foreword.training import loss_scale
from foreword.training.distributed import Ranks
from foreword.training.guards import check_gradient
from foreword.training.loss import score_labels
from foreword.training.methods.method import (
    Method,
    prefill,
    prefixes_of,
    task_prompts,
    unseen,
)
from foreword.training.micro_batches import micro_batches
from foreword.training.objective import LIKELIHOOD, Objective
from foreword.training.run import Run
from foreword.training.state import TrainState


def train_step(run: Run, state: TrainState, rows: Sequence[Row]) -> tuple[float, float]:
    """Take one optimizer step over the rows of all processes; return the loss, as the run's
    objective means it, and the gradient's norm.
    """
    loss, norm = _gradient(run, state, rows)
    while loss_scale.is_lowered(run.backbone.dtype, state.progress, loss, norm):
        state.optimizer.zero_grad()
        loss, norm = _gradient(run, state, rows)
    is_flat = run.objective.is_flat(rows)
    if is_flat and state.is_flat_so_far:
        norm = _at_start(run, state, norm)
    check_gradient(loss, norm, run.backbone, state.progress.step, is_flat=is_flat)
    state.optimizer.step()
    state.optimizer.zero_grad()
    loss_scale.raise_if_due(state.progress)
    return loss, norm


def _at_start(run: Run, state: TrainState, norm: float) -> float:
    """Count a step in which nothing is better than anything, as in all before it, and return the
    gradient's norm. The prompt is then still where it began, unless its weights decay: what draws
    it back there has no gradient, and rounding alone must not move it.
    """
    state.progress.num_flat += 1
    if run.config.weight_decay or not math.isfinite(norm):
        return norm
    for tensor in state.method.tensors:
        if tensor.grad is not None:
            tensor.grad.zero_()
    return 0.0


def _gradient(run: Run, state: TrainState, rows: Sequence[Row]) -> tuple[float, float]:
    """Give what is trained the clipped gradient of a step; return the loss, and the norm before."""
    backbone, method, batches = run.backbone, state.method, _micro_batches(run, state, rows)
    dtype, exponent = backbone.dtype, state.progress.scale_exponent
    states = prefix_states(backbone, method, batches)  # 1. the prefix, once, with gradient
    leaves = [loss_scale.wide_leaves(one) for one in states]  # 2. the rows, adding up on a copy
    given = [loss_scale.as_given(*pair) for pair in zip(leaves, states, strict=True)]
    size = run.objective.size(rows)
    scale = loss_scale.of_labels(dtype, size, exponent)
    loss = accumulate(backbone, given, batches, size, method, scale, run.objective)
    back = loss_scale.of_prefix(dtype, leaves, exponent)  # 3. the prefix, back once
    _backward(states, leaves, back, in_step=backbone.passes.is_sharded)
    loss_scale.unscale(method.tensors, scale * back)
    loss = _add_up(run.ranks, method.tensors, loss)  # 4. what is trained
    return loss, _clip(method.tensors, run.config.max_grad_norm)


def prefix_states(
    backbone: Backbone, method: Method, batches: Sequence[Batch]
) -> list[PrefixStates]:
    """Return what rows start from: for each task in turn, or one for all; where one pass can hold
    all rows of the step and the virtual tokens, these themselves, deferred.
    """
    prompt, (batch, *others) = method.prompt(), batches
    is_whole = not others and not task_prompts(method) and unseen(method, batch) is None
    if is_whole and backbone.passes.can_defer(prompt, batch):
        return [DeferredPrompt(backbone.placed(prompt))]
    return prefill(backbone, method)


def _micro_batches(run: Run, state: TrainState, rows: Sequence[Row]) -> list[Batch]:
    return micro_batches(run.backbone, run.ranks, rows, state.progress.micro_batch_size)


def accumulate(
    backbone: Backbone,
    states: Sequence[PrefixStates],
    batches: Sequence[Batch],
    size: float | None = None,
    method: Method | None = None,
    scale: float = 1.0,
    objective: Objective = LIKELIHOOD,
) -> float:
    """Add the gradient of an objective over all micro-batches to `states`, divided by `size`
    (default: that of the batches' rows) and times `scale`; return the loss, in nats.

    `method` says which of the states a row starts from; default: all rows from the only ones.
    """
    size = size or sum(objective.size(batch.rows) for batch in batches)
    total = 0.0
    for batch in batches:
        if method is None:
            prefixes = same_prefix(Prefix(states[0], "training"), batch.input_ids.shape[0])
        else:
            prefixes = prefixes_of(method, states, batch)
        loss = objective.summed(score_labels(backbone, prefixes, batch), batch) / size
        (loss * scale).backward()
        total += loss.item()
    return total


def loss_at_good_point(run: Run, state: TrainState, rows: Sequence[Row]) -> float:
    """Return the loss of the rows of all processes behind the prompt of the last good point, as the
    run's objective means it; nothing moves.
    """
    backbone, method, objective = run.backbone, state.method, run.objective
    total = torch.zeros(1, dtype=torch.float64, device="cpu")
    with state.at_good_point(), torch.no_grad():
        states = prefill(backbone, method)
        for batch in _micro_batches(run, state, rows):
            scores = score_labels(backbone, prefixes_of(method, states, batch), batch)
            total += objective.summed(scores, batch).item()
    run.ranks.add_up([total])
    return total.item() / objective.size(rows)


def detached(states: PrefixStates) -> PrefixStates:
    """Return a detached copy on which gradient can add up."""
    return states.map(lambda state: state.detach().requires_grad_())


def _backward(
    states: Sequence[PrefixStates],
    leaves: Sequence[PrefixStates],
    scale: float = 1.0,
    *,
    in_step: bool = False,
) -> None:
    """Take the gradient of the leaves, times a power of two, back to what is trained.

    Where processes gather a sharded base's layers `in_step`, each goes back through all that it has
    prefilled, though no row of its share may be behind some of it, as of a task.
    """
    roots = [tensor for one in states for tensor in one.tensors]
    ends = [tensor for one in leaves for tensor in one.tensors]
    pairs = [
        (root, (torch.zeros_like(end) if end.grad is None else end.grad * scale).to(root.dtype))
        for root, end in zip(roots, ends, strict=True)
        if root.requires_grad and (in_step or end.grad is not None)
    ]
    if pairs:
        torch.autograd.backward([root for root, _ in pairs], [grad for _, grad in pairs])


def _add_up(ranks: Ranks, tensors: list[Tensor], loss: float) -> float:
    """Sum the prompt's gradient and the loss over all processes."""
    if ranks.size == 1:
        return loss
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
    total = torch.tensor([loss], dtype=tensors[0].dtype, device="cpu")
    ranks.add_up([total, *(tensor.grad for tensor in tensors if tensor.grad is not None)])
    return total.item()


def _clip(tensors: list[Tensor], max_norm: float) -> float:
    limit = max_norm if max_norm > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(tensors, limit))
