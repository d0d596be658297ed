"""Fully sharded data parallel (FSDP2): a frozen base whose layers lie spread over all processes.

In: a backbone that every process has loaded alike. Out: a view of it for training: each process
keeps its part of every layer and gathers one layer at a time. Embeddings, norms and head stay
whole: they are called on their own. Nothing of the base takes a gradient, so nothing of it is ever
reduced. The model's own layers are spread, too: afterwards it serves this run only.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.model.decoder import Decoder
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.prompt.states import States
from foreword.training.gradient_checkpointing import layers_of


def sharded(backbone: Backbone, device: torch.device) -> Backbone:
    """Spread the layers of a backbone over the processes that have joined; return the view.

    Raises:
        UnsupportedError: the decoder's layers are not found as one list.
    """
    from torch.distributed.fsdp import fully_shard

    backbone.pin_weights()
    decoder = backbone.decoder
    layers = layers_of(decoder)
    inside = {parameter for layer in layers for parameter in layer.parameters()}
    for parameter in backbone.model.parameters():
        if parameter not in inside:
            parameter.data = parameter.data.to(device)
    for layer in layers:
        fully_shard(layer)
    # The decoder is the root, which owns nothing itself but lets one layer be gathered ahead.
    fully_shard(decoder, ignored_params=set(decoder.parameters()) - inside)
    passes = backbone.passes
    if isinstance(passes, Decoder):
        return backbone.with_passes(ShardedDecoder(passes.model, passes.capabilities))
    assert isinstance(passes, EncoderDecoder)
    in_step = copy.copy(passes)
    in_step.is_sharded = True
    return backbone.with_passes(in_step)


class ShardedDecoder(Decoder):
    """A decoder whose layers lie spread over the processes of a run."""

    is_sharded = True

    def prefill(self, embeddings: Tensor) -> States:
        """Run over embeddings `[P, H]`; return each layer's state, tied to the last output."""
        return _tied(*self.prefill_with_hidden(embeddings))


def _tied(states: States, hidden: Tensor) -> States:
    """Let whatever reaches the states on the way back reach `hidden` as well, as zeros.

    A layer is gathered when a gradient reaches its output. The prefix's last layer has an output
    that nobody uses: its keys and values alone take a gradient.
    """
    if not hidden.requires_grad:
        return states
    last = _Tie.apply(*states.layers[-1], hidden)
    return States((*states.layers[:-1], tuple(last)), states.num_virtual_tokens)


class _Tie(torch.autograd.Function):
    """Pass states through; on the way back, give zeros to a tensor beside them."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        *states, hidden = tensors
        ctx.like = hidden.shape, hidden.dtype, hidden.device
        return tuple(state.view_as(state) for state in states)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        shape, dtype, device = ctx.like
        return (*grads, torch.zeros(shape, dtype=dtype, device=device))
