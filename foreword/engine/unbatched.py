"""Unbatched requests: served alone by `Backbone.generate`, where rows cannot be batched exactly.

In: a backbone and a request. Out: the same choices as the batch would make, one at each `advance`.
Slower, and exact wherever `generate` is; the sampling is the engine's own.
"""

import threading
from collections.abc import Callable
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

from foreword.backbone import Backbone
from foreword.engine import sampling
from foreword.engine.request import Handle
from foreword.engine.sampling import Sampler
from foreword.model import autocast
from foreword.model.capabilities import Capabilities

# What lies in the slot of its position and is masked by position.
BATCHED = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def is_needed(capabilities: Capabilities, handle: Handle) -> bool:
    """Return whether a request must be served alone."""
    request = handle.request
    if request.media is not None and request.num_prompt_logprobs is not None:
        return True  # all but its last token run before its row is in the batch
    placeholders = [modality.token_id for modality in capabilities.modalities]
    if request.ids[-1] in placeholders:
        return True
    if capabilities.counts_slots or capabilities.has_stateless_layers:
        return True
    if any(reach.name not in BATCHED for reach in capabilities.attention_patterns):
        return True
    # In a batch the slot that such a model scales by is that of the longest row.
    return capabilities.slot_scale is not None and handle.num_tokens >= capabilities.slot_scale


class UnbatchedRequest:
    """One request's `generate`, which goes on by a token when it is told to.

    It has a thread of its own, which runs only while `advance` waits for it: `generate` gives no
    other way to come back between two tokens.

    Attributes:
        is_over: whether nothing is left to do.
    """

    def __init__(self, backbone: Backbone, handle: Handle) -> None:
        self.backbone, self.handle = backbone, handle
        self.is_over = False
        self._go, self._rest = threading.Semaphore(0), threading.Semaphore(0)
        self._cast = autocast.carried(backbone.device.type)  # of the thread that steps the engine
        self._thread = threading.Thread(target=self._run, name="alone", daemon=True)

    def advance(self) -> None:
        """Let the request choose one more id, or end."""
        try:
            if self._thread.ident is None:
                self._thread.start()
        except RuntimeError as error:  # as many threads as may be
            self.handle.fail(error)
            self.is_over = True
            return
        self._go.release()
        self._rest.acquire()
        if self.is_over:
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            with torch.no_grad(), self._cast:
                serve(self.backbone, self.handle, self._pause)
        except Exception as error:
            self.handle.fail(error)
        finally:
            self.is_over = True
            self._rest.release()

    def _pause(self) -> None:
        self._rest.release()
        self._go.acquire()


def serve(backbone: Backbone, handle: Handle, pause: Callable[[], None]) -> None:
    """Answer a request to its end, with a pause after each id but the last."""
    request = handle.request
    media = request.media.tensors if request.media is not None else {}
    prefix = backbone.compile(request.prompt.load()) if request.prompt is not None else None
    ids = torch.tensor([request.ids], device=backbone.device)
    first = request.logprobs_from
    if request.num_prompt_logprobs is not None and len(request.ids) > first:
        logits = backbone.logits(prefix, ids, **media)[0, first - 1 : -1]
        handle.prompt_logprobs = sampling.report(
            logits, ids[0, first:], request.num_prompt_logprobs
        )
    if request.max_new_tokens == 0:
        handle.end("length")
        return
    choose = _Choose(handle)
    backbone.without_habits().generate(
        prefix,
        ids,
        generation_config=GenerationConfig(
            max_new_tokens=request.max_new_tokens, do_sample=False, pad_token_id=0
        ),
        logits_processor=LogitsProcessorList([choose]),
        stopping_criteria=StoppingCriteriaList([_IsOver(handle, pause)]),
        **media,
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
    """Ends `generate` with its request; until then, pauses after each id."""

    def __init__(self, handle: Handle, pause: Callable[[], None]) -> None:
        self.handle, self.pause = handle, pause

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.handle.finish_reason is None:
            self.pause()
        is_over = self.handle.is_cancelled or self.handle.finish_reason is not None
        return torch.full((1,), is_over, device=input_ids.device)
