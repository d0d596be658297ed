"""Continuous batching: requests join and leave between steps, each behind its own prompt.

In: requests of ids, with settings and a stop rule each. Out: their ids, one at a time, as the
oracle would choose them whatever else is in the batch. The scheduler decides, the engine steps:
admit, decode, prefill, sample, retire. One thread calls `step`; `submit` and `Handle.cancel` may
come from any other. What cannot be batched row by row is served alone, a token of it in each step.
Knows no text, no names and no HTTP.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.engine.choices import choose_all
from foreword.engine.kv_cache import KVCache
from foreword.engine.limits import EngineLimits
from foreword.engine.model_runner import MAX_FAILURES, ModelRunner, Ready, joined
from foreword.engine.prefix_cache import CacheEntry, PrefixCache
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.request_state import RequestState
from foreword.engine.sampling import Choice
from foreword.engine.scheduler import Scheduler, capacity_of
from foreword.engine.unbatched import UnbatchedRequest
from foreword.errors import InputError, UnsupportedError

log = logging.getLogger("foreword.engine")


class Engine:
    """Many requests on one model.

    Args:
        backbone: the model; its weights stay as they are while the engine lives.
        limits: how much to take on.
    """

    def __init__(self, backbone: Backbone, limits: EngineLimits | None = None) -> None:
        if backbone.capabilities.encoder is not None:
            raise UnsupportedError(
                f"{backbone.capabilities.model_type}: models with an encoder are not served; call "
                "Backbone.generate"
            )
        self.backbone = backbone
        self.limits = limits or EngineLimits()
        self.kv_cache = KVCache(backbone.capabilities.layers, self.limits)
        self.prefix_cache = PrefixCache(
            self.limits.max_state_bytes, is_whole=backbone.capabilities.is_recurrent
        )
        self.scheduler = Scheduler(backbone.capabilities, self.limits)
        self.runner = ModelRunner(backbone, self.kv_cache)
        # In the order of their rows of the KV cache: those that decode come first.
        self.running: list[RequestState] = []
        self.num_prompt_tokens = self.num_reused_tokens = self.num_new_tokens = 0
        self._alone: UnbatchedRequest | None = None  # under way
        self._num_compiled = self._num_unfreed = 0
        self._has_said_alone = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch, or for their turn alone."""
        return self.scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.running)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that running requests hold."""
        return sum(state.num_cached for state in list(self.running))

    @property
    def num_state_bytes(self) -> int:
        """Size of the states of prompts and conversations that are kept."""
        return self.prefix_cache.num_bytes

    @property
    def num_decoding(self) -> int:
        """Requests that decode."""
        return sum(state.status == "decoding" for state in self.running)

    @property
    def max_length(self) -> int:
        """Tokens of one request, virtual, given and new ones together."""
        return self.scheduler.max_length

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self._alone or self.num_waiting)

    def submit(self, request: Request) -> Handle:
        """Take a request on; from any thread. Raises as `submit_all`."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none; from any thread. What is the same in them runs once.

        Raises:
            InputError: ids that the model does not have, or more tokens than it takes.
            BusyError: too many requests wait, or too large ones.
        """
        return self.scheduler.add(requests)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            InputError: names what is wrong.
        """
        self.scheduler.check(request)

    def step(self) -> bool:
        """Bring every request one step further; return whether there is more to do.

        Raises:
            Exception: the model fails whatever it is given; the engine cannot go on.
        """
        with torch.no_grad():
            self._admit()
            decoded = self._decode()
            prefilled = self._prefill()
            self._sample([*decoded, *prefilled])
            self._advance_alone()
            self._retire()
        return self.has_work

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.step():
            pass

    def close(self) -> None:
        """End the request that is served alone, whose thread would wait for its next token."""
        if self._alone is not None:
            self._alone.handle.cancel()
            self._advance_alone()

    # Admit --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give places to waiting requests, in order, while there is room.

        Prompts that are compiled first count as what one step prefills.
        """
        self.scheduler.drop_cancelled()
        self._num_compiled = 0
        while self._num_compiled < self.limits.chunk_tokens:
            if (handle := self.scheduler.next_admitted(self.running)) is None:
                return
            try:
                self._start(handle)
            except Exception as error:
                handle.fail(error)

    def _start(self, handle: Handle) -> None:
        """Give a request a new row, which prefills, or waits for one that prefills the same."""
        state = RequestState(handle, len(self.running))
        self.kv_cache.reserve(len(self.running) + 1, capacity_of(handle, self.running))
        if (other := self.scheduler.duplicate_of(state, self.running)) is not None:
            other.duplicates.append(state)
        else:
            self._fill(state)
        self.num_prompt_tokens += len(state.ids)
        self.running.append(state)

    def _fill(self, state: RequestState) -> None:
        """Fill a request's row with what saves it the most of its prefill, and let it prefill; a
        prompt is compiled where nothing holds it.
        """
        if state.handle.request.media is not None:
            self._fill_with_media(state)
            return
        start = self.scheduler.start_of(state, self.running, self.prefix_cache)
        entry = start.entry
        if start.other is None and entry is None:
            entry = self._compiled(state.handle.request.prompt)
        num_computed = state.num_usable(start.num_shared)
        length = state.num_virtual + num_computed
        if start.other is not None:
            self.kv_cache.move(start.other.index, state.index, length)
        elif entry is not None:
            self.kv_cache.put(state.index, entry.state, length)
        else:
            self.kv_cache.begin_row(state.index)
        state.begin_at(num_computed)
        self.num_reused_tokens += state.num_computed
        self.scheduler.prefilling.append(state)

    def _fill_with_media(self, state: RequestState) -> None:
        """Run all but the last of a request's tokens in one pass of their own, images and sounds
        among them, into its row; from then on it is a row like others.
        """
        request, device = state.handle.request, self.backbone.device
        assert request.media is not None
        prefix = self.backbone.compile(request.prompt.load()) if request.prompt else None
        num_computed = len(request.ids) - 1
        found, shift = self.runner.prefill_media(
            prefix,
            torch.tensor([request.ids[:num_computed]], device=device),
            request.media.tensors,
        )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors):
            raise InputError("the media or the prompt make the model's numbers infinite")
        self._num_compiled += found.num_virtual_tokens
        self.kv_cache.put(state.index, found.layers, found.num_virtual_tokens)
        state.begin_after_media(num_computed, shift)
        self.scheduler.prefilling.append(state)

    def _compiled(self, prompt: PromptSource | None) -> CacheEntry | None:
        """Compile a prompt, and keep its state."""
        if prompt is None:
            return None
        prefix = self.backbone.compile(prompt.load())
        if prefix.num_virtual_tokens != prompt.num_virtual_tokens:
            raise InputError("the prompt's file has changed since it was looked up; load it again")
        state = prefix.cached.layers
        if not all(bool(torch.isfinite(tensor).all()) for layer in state for tensor in layer):
            raise InputError("the prompt makes the model's numbers infinite; train it again")
        self._num_compiled += prefix.num_virtual_tokens
        none = np.empty(0, dtype=np.int64)
        known = CacheEntry(prompt.content_hash, prefix.num_virtual_tokens, none, state)
        self.prefix_cache.add(known)
        return known

    # Decode and prefill --------------------------------------------------------------------------

    def _decode(self) -> list[Ready]:
        """Run the last id of every request that decodes."""
        return self.runner.run(self.running[: self.num_decoding], 1)

    def _prefill(self) -> list[Ready]:
        """Run a chunk of the prompts whose turn it is; those that end decode from now on."""
        states, limit = self.scheduler.next_prefill()
        ready = self.runner.run(states, limit)
        self.scheduler.took_turn(states)
        for state in [state for done, _ in ready for state in done]:
            self._let_decode(state)
        return [self._with_duplicates(*part) for part in ready]

    def _with_duplicates(self, states: list[RequestState], logits: Tensor) -> Ready:
        """Let the duplicates of prefilled requests go on from the same state and logits."""
        firsts, pairs = list(states), []
        for place, state in enumerate(firsts):
            if state.handle.finish_reason == "error":  # its row may be half written
                continue
            pairs += [(place, other) for other in state.duplicates if not other.is_over]
            state.duplicates = []
        if not pairs:
            return states, logits
        try:
            logits = logits[[*range(len(firsts)), *(place for place, _ in pairs)]]
        except Exception as error:
            for _, other in pairs:
                other.handle.fail(error)
            return firsts, logits
        for place, other in pairs:
            self._follow(other, firsts[place])
        return [*firsts, *(other for _, other in pairs)], logits

    def _follow(self, other: RequestState, state: RequestState) -> None:
        """Let a duplicate decode from what another request has computed."""
        try:
            self.kv_cache.move(state.index, other.index, state.num_cached)
        except Exception as error:
            other.handle.fail(error)
            return
        other.follow(state)
        self._let_decode(other)
        self.num_reused_tokens += other.num_computed

    def _let_decode(self, state: RequestState) -> None:
        """Move a request that has prefilled behind the ones that decode; one that cannot fails."""
        other = self.running[self.num_decoding]
        try:
            held = self.kv_cache.get(other.index, other.num_cached) if other is not state else ()
        except Exception as error:
            state.handle.fail(error)
            return
        try:
            if other is not state:
                self.kv_cache.move(state.index, other.index, state.num_cached)
                self.kv_cache.put(state.index, held, other.num_cached)
        except Exception as error:  # rows that are half exchanged are of no use
            state.handle.fail(error)
            other.handle.fail(error)
            return
        state.index, other.index = other.index, state.index
        self.running[state.index], self.running[other.index] = state, other
        state.status = "decoding"

    # Alone --------------------------------------------------------------------------------------

    def _advance_alone(self) -> None:
        """Bring the request that is served alone one id further; the next one follows its end."""
        if self._alone is None and (handle := self.scheduler.next_alone()) is not None:
            self._say_alone()
            self._alone = UnbatchedRequest(self.backbone, handle)
            self.num_prompt_tokens += len(handle.request.ids)
        if self._alone is not None:
            num_before = len(self._alone.handle.choices)
            self._alone.advance()
            self.num_new_tokens += len(self._alone.handle.choices) - num_before
            self._alone = None if self._alone.is_over else self._alone

    def _say_alone(self) -> None:
        if not self._has_said_alone:
            self._has_said_alone = True
            family = self.backbone.capabilities.model_type
            log.warning("%s: requests that cannot be batched exactly are served alone", family)

    # Sample and retire --------------------------------------------------------------------------

    def _sample(self, ready: list[Ready]) -> None:
        """Choose the next id of every request of which nothing is pending."""
        for states, logits in joined(ready):
            for state, choice in zip(states, choose_all(states, logits), strict=True):
                if not state.is_over:
                    self._take(state, choice)

    def _take(self, state: RequestState, choice: Choice | None) -> None:
        state.handle.take(choice)
        if choice is not None:
            state.num_finite = state.num_computed
            state.ids.append(choice.id)
            state.sampler.record(choice.id)
            self.num_new_tokens += bool(state.handle.choices)

    def _retire(self) -> None:
        """Free the rows of requests that are over, and all memory when none is left. A row that
        cannot be freed now is freed at a later step.

        Raises:
            Exception: rows cannot be freed step after step.
        """
        for state in [state for state in self.running if state.is_over]:
            state.handle.end("cancelled")
            try:
                self._remember(state)
                self._free(state)
            except Exception as error:
                log.warning("a row was not freed: %s", type(error).__name__)
                self._num_unfreed += 1
                if self._num_unfreed > MAX_FAILURES:
                    raise
                continue
            self._num_unfreed = 0
            self._pass_on(state.duplicates)
        if not self.running and not self.scheduler.is_batch_awaited:
            self.kv_cache.release()

    def _remember(self, state: RequestState) -> None:
        """Keep the state of a conversation for its next turn, or clear what may not be finite."""
        if not state.is_filled:
            return
        has_media = state.handle.request.media is not None
        if state.num_finite != state.num_computed or state.handle.finish_reason == "error":
            self.kv_cache.clear(state.index)
            return
        ids = np.asarray(state.ids[: state.num_computed], dtype=np.int64)
        size = self.kv_cache.token_bytes * state.num_cached + self.kv_cache.state_bytes
        if has_media or not self.prefix_cache.wants(state.content_hash, ids, size):
            return
        try:
            held = self.kv_cache.get(state.index, state.num_cached)
        except Exception as error:
            log.warning("a conversation's state was not kept: %s", type(error).__name__)
            return
        self.prefix_cache.add(CacheEntry(state.content_hash, state.num_virtual, ids, held))

    def _pass_on(self, duplicates: list[RequestState]) -> None:
        """Let the first of a request's duplicates prefill in its place: it ended before it had."""
        live = [state for state in duplicates if not state.is_over]
        if live:
            first, *first.duplicates = live
            try:
                self._fill(first)
            except Exception as error:
                first.handle.fail(error)

    def _free(self, state: RequestState) -> None:
        """Close the gap: the last decoding row moves into it, then the last of all behind that."""
        self.scheduler.leave(state)
        if state.status == "decoding":
            self._change_places(state, self.running[self.num_decoding - 1])
        state.status = "finished"
        self._change_places(state, self.running[-1])
        self.running.pop()

    def _change_places(self, state: RequestState, other: RequestState) -> None:
        """Let another request have the row of one that is over, and its place."""
        if other is state:
            return
        self.kv_cache.move(other.index, state.index, other.num_cached)
        state.index, other.index = other.index, state.index
        self.running[state.index], self.running[other.index] = state, other
