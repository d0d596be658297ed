"""Attention matching: P keys and values whose attention output is nearest to that of a whole text.

In: a text's keys and values, rows that are asked behind it. Out: for each layer and head the P keys
that real queries attend to most, rotated to their new places, and values by ridge least squares,
so that the output of attention at the rows' tokens is as behind the whole text. Zweiger et al. 2026
(arXiv:2602.16284), without their attention biases, which no engine serves, and with the rows' own
keys in the softmax: how much a row attends to the text at all is matched, too. Trains nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat.transformers_api import ALL_ATTENTION_FUNCTIONS
from foreword.data.encoding import Row
from foreword.errors import InputError, UnsupportedError
from foreword.model.attention_view import own_attention, with_attention
from foreword.model.decoder import Decoder
from foreword.model.rotation import Rotation
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.prompt.states import States

NAME = "foreword_observed"  # of the attention that is looked at
NUM_ROWS = 24  # that ask; more change little
RIDGE = 0.01  # of the mean square weight of a virtual token, towards the values of the text


@dataclass(frozen=True, eq=False)
class Observed:
    """What one layer's attention is given for one row behind a text, and what it says.

    Attributes:
        query: `[heads, t, D]` of the row's tokens.
        key: `[N, T + t, D]`; value: the same.
        mask: `[t, T + t]`, True where a token is seen.
        output: `[heads, t, D]`.
        scaling: of the products.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor
    output: Tensor
    scaling: float


def matched(
    backbone: Backbone,
    decoder: Decoder,
    text: Prefix,
    rotations: Sequence[Rotation],
    num_virtual: int,
    rows: Sequence[Row],
) -> States:
    """Return P keys and values of each layer that stand for a text's T, at positions 0 to P - 1.

    Args:
        backbone: the frozen model.
        decoder: its passes.
        text: the whole text, compiled.
        rotations: of each layer, see `model.rotation`.
        num_virtual: P.
        rows: queries with answers, as they stand behind the text; some of them, evenly, are asked.

    Raises:
        InputError: no rows. UnsupportedError: a layer's attention is none that can be matched.
    """
    if not rows:
        raise InputError("attention matching needs queries to match the attention of; give some")
    picked = [rows[index * len(rows) // NUM_ROWS] for index in range(min(NUM_ROWS, len(rows)))]
    if len(rows) < NUM_ROWS:
        picked = list(rows)
    seen = [_observe(backbone, decoder, text, row) for row in picked]
    layers = [
        _match([one[index] for one in seen], rotation, text.num_virtual_tokens, num_virtual)
        for index, rotation in enumerate(rotations)
    ]
    return States(tuple(layers), num_virtual)


def _observe(backbone: Backbone, decoder: Decoder, text: Prefix, row: Row) -> list[Observed]:
    """Run one row behind the text, and return what each layer's attention was given."""
    view = decoder.over(with_attention(decoder.model, NAME))
    ids = torch.tensor([row.input_ids], device=backbone.device)
    with _recording() as found, torch.no_grad():
        view.hidden(same_prefix(text, 1), ids, None, {})
    count, slots = decoder.capabilities.num_layers, text.num_virtual_tokens + ids.shape[1]
    if len(found) < count or any(one.key.shape[1] != slots for one in found[:count]):
        raise UnsupportedError(
            f"{decoder.capabilities.model_type}: not every layer asks for its attention by name "
            "over the whole text; use --start first"
        )
    return found[:count]


def _match(seen: list[Observed], rotation: Rotation, num_tokens: int, num_virtual: int) -> Any:
    """Return one layer's keys and values `[N, P, D]`."""
    heads = range(len(seen[0].key))
    sides = [_match_head(seen, head, rotation, num_tokens, num_virtual) for head in heads]
    return tuple(torch.stack(side) for side in zip(*sides, strict=True))


def _match_head(
    seen: list[Observed], head: int, rotation: Rotation, num_tokens: int, num_virtual: int
) -> tuple[Tensor, Tensor]:
    """Return the keys and values `[P, D]` of one head, for all queries of its group."""
    text_key, text_value = seen[0].key[head, :num_tokens], seen[0].value[head, :num_tokens]
    shares = torch.zeros(num_tokens, dtype=torch.float64, device=text_key.device)
    for one in seen:
        shares += _weights(_group(one, head), one.key[head], one.mask, one.scaling)[
            ..., :num_tokens
        ].sum((0, 1))
    shares[0] = torch.inf  # attention rests on the first token
    places = shares.topk(num_virtual).indices.sort().values
    to = torch.arange(num_virtual, device=places.device)
    key = rotation.moved(text_key[None, places], to - places)[0]
    value = text_value[places].double()
    weights, wanted = [], []
    for one in seen:
        query, count = _group(one, head), one.query.shape[1]
        shift = torch.full((count,), num_virtual - num_tokens, device=query.device)
        own_key, own_value = one.key[head, num_tokens:], one.value[head, num_tokens:].double()
        # The row stands closer to its text's start; between its own tokens nothing changes.
        kept = torch.cat([key, rotation.moved(own_key[None], shift)[0]])
        is_seen = torch.cat([one.mask.new_ones(count, num_virtual), one.mask[:, num_tokens:]], 1)
        share = _weights(rotation.moved(query, shift), kept, is_seen, one.scaling)
        rest = _group_of(one.output, len(seen[0].key), head).double()
        wanted.append((rest - share[..., num_virtual:] @ own_value).flatten(0, 1))
        weights.append(share[..., :num_virtual].flatten(0, 1))
    matrix, target = torch.cat(weights), torch.cat(wanted)
    square = matrix.T @ matrix
    ridge = RIDGE * square.diagonal().mean() * torch.eye(num_virtual, device=square.device)
    change = torch.linalg.solve(square + ridge, matrix.T @ (target - matrix @ value))
    return key, (value + change).to(text_value.dtype)


def _group(one: Observed, head: int) -> Tensor:
    return _group_of(one.query, len(one.key), head)


def _group_of(tensor: Tensor, num_heads: int, head: int) -> Tensor:
    """Return what belongs to one head of keys, of a tensor for every head of queries."""
    found: Tensor = tensor.unflatten(0, (num_heads, -1))[head]
    return found


def _weights(query: Tensor, key: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Return how much each query attends to each key, `[group, t, keys]`, in float64."""
    products: Tensor = query.double() @ key.double().T * scaling
    return products.masked_fill(~mask, -torch.inf).softmax(-1)


# Looking at attention ----------------------------------------------------------------------------

_found: ContextVar[list[Observed] | None] = ContextVar("observed attention", default=None)


@contextmanager
def _recording() -> Iterator[list[Observed]]:
    found: list[Observed] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """Let a layer attend as it does, and remember what it was given."""
    found = _found.get()
    assert found is not None
    if kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise UnsupportedError("attention with a soft cap or sinks is not matched; use first")
    output = own_attention(module)(module, query, key, value, attention_mask, **kwargs)
    length, count = query.shape[2], key.shape[2]
    if attention_mask is None:
        mask = torch.ones(length, count, dtype=torch.bool, device=query.device).tril(count - length)
    else:
        given = attention_mask[0, 0, :, :count]
        mask = given if given.dtype == torch.bool else given == 0
    scaling = kwargs.get("scaling")
    found.append(
        Observed(
            query[0], key[0], value[0], mask, output[0][0].transpose(0, 1),
            query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        )
    )  # fmt: skip
    return output


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)
