"""Label mixing: answers as labels beside the teacher's probabilities, at a weight.

In: queries with answers, rows with targets, a weight. Out: of a row's own answer, rows whose
divergence is the cross entropy of their own labels, and what each row weighs: `w` those with the
row's own answer, `1 - w` that with the teacher's, so that a step's loss is the mean over all
labels, each at its weight; of the teacher's answer, rows whose targets have its tokens at that
weight. Trains nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.data.row import Row
from foreword.data.target import certain
from foreword.distillation.queries import Query
from foreword.errors import InputError
from foreword.training.rows import encode_texts


def label_rows(
    backbone: Backbone,
    queries: Sequence[Query],
    config: EncodingConfig,
    training: TrainConfig,
    weight: float,
) -> Mapping[int, Row]:
    """Return the rows of own answers, by the number of their query; none where they weigh nothing.

    Args:
        backbone: with a tokenizer.
        queries: some of them with an answer of their own.
        config: how rows are encoded behind the prompt that is trained.
        training: P and the form of that prompt.
        weight: of an own answer, below 1.

    Raises:
        InputError: answers are to weigh something, and no row has one.
        DataError: an answer that cannot be encoded.
    """
    if not weight:
        return {}
    known = [index for index, query in enumerate(queries) if query.own is not None]
    if not known:
        raise InputError(
            f"--labels {weight:g}: no row has an answer of its own: leave it out, or add answers"
        )
    examples = [
        replace(own, prompt=queries[index].asked, source=queries[index].source)
        for index in known
        if (own := queries[index].own) is not None
    ]
    rows, _ = encode_texts(backbone, examples, training, config)
    return {
        index: replace(row, weight=weight, target=certain(row.input_ids[-row.num_labels :]))
        for index, row in zip(known, rows, strict=True)
    }


def toward_answer(row: Row, weight: float) -> Row:
    """Return a row of the teacher's whose target at each label is `1 - weight` times the teacher's
    probabilities, and `weight` at the token that the teacher said.

    The loss is then, but for a constant, `1 - weight` times the divergence from the teacher and
    `weight` times the cross entropy of its answer (as soft and hard targets are joined in Hinton et
    al. 2015, arXiv:1503.02531, with the answer in the place of the data's label). A token that is
    not among the kept ids stays as it is.

    Args:
        row: with the teacher's answer and its target. One whose target is certain of its own answer
            is returned as it is.
        weight: in [0, 1); 0 returns the row itself.
    """
    if not weight or row.target is None or row.target.is_certain:
        return row
    ids, log_probabilities = row.target.ids, row.target.log_probabilities.double()
    is_said = ids == torch.tensor(row.input_ids[-row.num_labels :], device="cpu")[:, None]
    is_said &= is_said.cumsum(-1) == 1  # where fewer are kept, the first id fills the rest
    own = weight * is_said.any(-1, keepdim=True).double()
    shares = log_probabilities.exp() * (1 - own) + own * is_said
    target = replace(row.target, log_probabilities=shares.log().float())
    return replace(row, target=target)


def mixed(taught: Row, own: Row | None) -> list[Row]:
    """Return a query's rows to train on: the teacher's answer, and beside it the row's own."""
    return [taught] if own is None else [replace(taught, weight=1 - own.weight), own]
