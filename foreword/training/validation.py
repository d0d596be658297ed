"""Validation: a prompt's loss and greedy answers on rows that it was not trained on.

In: a backbone, a prompt, held-out rows. Out: for each row or for all their loss (cross entropy, or
the divergence from a teacher where rows have its targets) and what greedy decoding would say, in
one teacher-forced pass. Knows nothing of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.encoding import Row
from foreword.prompt.prefix import Prefix, PrefixBatch
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import ALONE, Ranks
from foreword.training.loss import LabelScores, score_labels
from foreword.training.micro_batches import micro_batches

AnyPrompt = SoftPrompt | Prefix | None


@dataclass(frozen=True)
class Validation:
    """What the prompt does on rows that it was not trained on.

    Attributes:
        loss: mean of a label, in nats: cross entropy, or the divergence from a teacher; of pairs,
            the mean of a pair.
        exact: share of rows whose greedy answer is the label, token for token; of pairs, the
            preferred answer.
        agreement: share of labels that greedy decoding would say, given the labels before.
        preferred: of pairs, the share whose preferred answer is likelier, beside the reference,
            than the other; None where rows have one answer.
        reward: of questions with a reward function, the mean of greedy answers, whose negative is
            the loss; exact is then the share of rewards of 1 or more.
    """

    loss: float
    exact: float
    agreement: float | None = None
    preferred: float | None = None
    reward: float | None = None

    @property
    def facts(self) -> dict[str, float]:
        """What was measured, as a prompt keeps it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class RowScores:
    """What a prompt does on each of `R` rows, in their order.

    Attributes:
        losses: summed over the row's labels, in nats, float64 `[R]`.
        num_labels: of the row, float64 `[R]`.
        num_best: of these, that greedy decoding would say, float64 `[R]`.
    """

    losses: Tensor
    num_labels: Tensor
    num_best: Tensor

    def part(self, which: slice) -> "RowScores":
        """Return the scores of some of the rows."""
        return RowScores(self.losses[which], self.num_labels[which], self.num_best[which])

    def whole(self) -> Validation:
        """Return what the rows come to together, every label counting alike."""
        labels = self.num_labels.sum().item()
        return Validation(
            loss=self.losses.sum().item() / labels,
            exact=(self.num_best == self.num_labels).double().mean().item(),
            agreement=self.num_best.sum().item() / labels,
        )


def validate(
    backbone: Backbone,
    prompt: AnyPrompt | Mapping[str, SoftPrompt],
    rows: Sequence[Row],
    batch_size: int = 16,
    ranks: Ranks = ALONE,
) -> Validation:
    """Score held-out rows together; see `score_rows`."""
    return score_rows(backbone, prompt, rows, batch_size, ranks).whole()


def score_rows(
    backbone: Backbone,
    prompt: AnyPrompt | Mapping[str, SoftPrompt],
    rows: Sequence[Row],
    batch_size: int = 16,
    ranks: Ranks = ALONE,
) -> RowScores:
    """Score each held-out row: teacher-forced, so one pass tells the loss and what greedy decoding
    answers.

    Args:
        prompt: behind which the rows stand; None: the bare model. Of several tasks' prompts, each
            row gets its own task's.
        rows: all with targets, or all without.
        ranks: the processes that share the rows; every one gets all scores.
    """
    prompts = prompt if isinstance(prompt, Mapping) else {"": prompt}
    found = torch.zeros(
        3, len(rows), dtype=torch.float64, device="cpu"
    )  # losses, labels, labels that are best
    for places, scores in scored_batches(backbone, prompts, rows, batch_size, ranks):
        assert scores.is_best is not None
        each = (scores.losses, torch.ones_like(scores.losses), scores.is_best)
        where = torch.tensor(places, device="cpu")[scores.rows.cpu()]
        found.index_add_(1, where, torch.stack([one.double().cpu() for one in each]))
    ranks.add_up([found])
    return RowScores(*found)


def scored_batches(
    backbone: Backbone,
    prompts: Mapping[str, AnyPrompt],
    rows: Sequence[Row],
    batch_size: int,
    ranks: Ranks,
) -> Iterator[tuple[list[int], LabelScores]]:
    """Yield what the model says of this process's share of rows, a batch at a time, without
    gradient: the rows' places, and the scores of their labels.

    Args:
        prompts: that of each task; "": that of all rows.
    """
    known = {name: _compiled(backbone, one) for name, one in prompts.items()}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    batches = micro_batches(backbone, ranks, [rows[index] for index in order], batch_size)
    for places, batch in zip(ranks.micro_batches(order, batch_size), batches, strict=True):
        names = ("",) * len(batch.tasks) if "" in known else batch.tasks
        with torch.no_grad():
            scores = score_labels(backbone, PrefixBatch(tuple(known[n] for n in names)), batch)
        if places:  # a process without rows computes in step with the others
            yield places, scores


def _compiled(backbone: Backbone, prompt: AnyPrompt) -> Prefix | None:
    return backbone.compile(prompt.detached()) if isinstance(prompt, SoftPrompt) else prompt
