"""One request at a time through `Backbone.generate`: for what cannot be batched row by row.

In: a backbone and a request. Out: the same choices as the batch would make, one after the other.
Slower, and exact wherever `generate` is; the sampling is the engine's own.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from foreword import sampling
from foreword.backbone import Backbone
from foreword.capabilities import Capabilities
from foreword.request import Handle
from foreword.sampling import Sampler

# What lies in the slot of its position and is masked by position.
BATCHED = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def is_needed(capabilities: Capabilities, num_tokens: int) -> bool:
    """Return whether a request of so many tokens, virtual ones included, must be served alone."""
    # Recurrent states are of no slot; rotary positions of several axes are not those of slots.
    if capabilities.is_recurrent or capabilities.num_axes > 1:
        return True
    if any(reach.name not in BATCHED for reach in capabilities.reaches):
        return True
    # In a batch the slot that such a model scales by is that of the longest row.
    return capabilities.slot_scale is not None and num_tokens >= capabilities.slot_scale


def serve(backbone: Backbone, handle: Handle) -> None:
    """Answer a request to its end."""
    request = handle.request
    prefix = backbone.compile(request.prompt.load()) if request.prompt is not None else None
    ids = torch.tensor([request.ids], device=backbone.device)
    if request.num_prompt_logprobs is not None and len(request.ids) > 1:
        logits = backbone.logits(prefix, ids)[0, :-1]
        handle.prompt_logprobs = sampling.report(logits, ids[0, 1:], request.num_prompt_logprobs)
    if request.max_new_tokens == 0:
        handle.end("length")
        return
    choose = _Choose(handle)
    backbone.generate(
        prefix,
        ids,
        generation_config=GenerationConfig(
            max_new_tokens=request.max_new_tokens, do_sample=False, pad_token_id=0
        ),
        logits_processor=LogitsProcessorList([choose]),
        stopping_criteria=StoppingCriteriaList([_IsOver(handle)]),
    )
    handle.end("cancelled")


class _Choose(LogitsProcessor):
    """Let the request's own sampler choose, and leave `generate` no other id."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.sampler = Sampler(handle.request.sampling, handle.request.ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        handle, chosen = self.handle, torch.full_like(scores, -torch.inf)
        if handle.request.constraint is not None:
            self.sampler.allowed = handle.request.constraint.allowed()
        choice = sampling.choose(scores, [self.sampler])[0]
        handle.take(choice)
        if choice is not None:
            self.sampler.record(choice.id)
        chosen[0, choice.id if choice is not None else 0] = 0
        return chosen


class _IsOver(StoppingCriteria):
    def __init__(self, handle: Handle) -> None:
        self.handle = handle

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        is_over = self.handle.is_cancelled or self.handle.finish_reason is not None
        return torch.full((1,), is_over, device=input_ids.device)
