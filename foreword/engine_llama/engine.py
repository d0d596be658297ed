"""Continuous batching over llama.cpp: requests join and leave between passes of one context.

In: requests as the embedded engine takes them. Out: their ids. Each runs in a sequence of its own,
which begins as its prompt's sequence, without a copy of its keys and values; one pass decodes a
token of every request and reads a chunk of new ones. Ids are chosen by foreword's own sampling, so
that every setting means the same on both engines. One thread calls `step`; `submit` and
`Handle.cancel` may come from any other. Images and sounds are refused by name.
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from foreword.engine import sampling
from foreword.engine.choices import choose_all
from foreword.engine.limits import EngineLimits
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.request_state import RequestState
from foreword.engine.sampling import Choice
from foreword.engine.scheduler import Scheduler
from foreword.engine_llama.sequences import HeldSequence, SequenceCache
from foreword.errors import InputError
from foreword.llama_cpp import library, sequence_state
from foreword.llama_cpp.model import ContextOptions, LlamaContext, LlamaModel
from foreword.model.capabilities import Capabilities
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

log = logging.getLogger("foreword.engine")
MAX_FAILURES = 8  # of passes one after the other, before the model itself is taken for broken
MAX_ROWS = library.MAX_SEQUENCES - 64  # the other sequences hold prompts and conversations


class LlamaScheduler(Scheduler):
    """Admits a request where the cells of the cache hold all its tokens."""

    def __init__(
        self, capabilities: Capabilities, limits: EngineLimits, sequences: SequenceCache
    ) -> None:
        super().__init__(capabilities, limits)
        self.sequences = sequences

    def has_room_for(self, handle: Handle, running: Sequence[RequestState]) -> bool:
        """Return whether one more request fits."""
        prompt = handle.request.prompt
        virtual = prompt.num_virtual_tokens if prompt is not None else 0
        content_hash = prompt.content_hash if prompt is not None else None
        return len(running) < self.limits.max_rows and self.sequences.has_room(
            content_hash, virtual, handle.num_tokens - virtual
        )


class LlamaRequest(RequestState):
    """One running request, and its sequence."""

    def __init__(self, handle: Handle, sequence: HeldSequence) -> None:
        super().__init__(handle, sequence.index)
        self.sequence = sequence


class LlamaEngine:
    """Many requests on one GGUF file.

    Args:
        model: the file.
        capabilities: of the model.
        limits: how much to take on; `max_slots` is the cells of the cache, made at once.
        options: how the context computes; its numbers of cells and sequences follow the limits.

    Raises:
        InputError: more rows than the library has sequences. ModelError: no memory for the cache.
    """

    def __init__(
        self,
        model: LlamaModel,
        capabilities: Capabilities,
        limits: EngineLimits | None = None,
        options: ContextOptions | None = None,
    ) -> None:
        self.model = model
        self.limits = limits or EngineLimits(max_slots=8192)
        if self.limits.max_rows > MAX_ROWS:
            raise InputError(
                f"{self.limits.max_rows} requests at once: llama.cpp answers at most {MAX_ROWS}; "
                "lower --max-batch"
            )
        given = options or ContextOptions()
        own = ContextOptions(
            self.limits.max_slots,
            library.MAX_SEQUENCES,
            given.cache_type,
            given.has_flash_attention,
            given.num_threads,
            self.limits.max_rows + self.limits.chunk_tokens,
        )
        self.context = LlamaContext(model, own)
        self.sequences = SequenceCache(self.context, self.limits.max_state_bytes)
        self.scheduler = LlamaScheduler(capabilities, self.limits, self.sequences)
        self.running: list[LlamaRequest] = []
        self.num_prompt_tokens = self.num_reused_tokens = self.num_new_tokens = 0
        self._num_failures = 0

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place in the batch."""
        return self.scheduler.num_waiting

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that running requests hold."""
        return sum(state.num_cached for state in list(self.running))

    @property
    def num_state_bytes(self) -> int:
        """Size of the states of prompts that are kept in memory."""
        return self.sequences.num_state_bytes

    @property
    def max_length(self) -> int:
        """Tokens of one request, virtual, given and new ones together."""
        return self.scheduler.max_length

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.running or self.num_waiting)

    def submit(self, request: Request) -> Handle:
        """Take a request on; from any thread. Raises as `submit_all`."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none; from any thread.

        Raises:
            InputError: ids that the model does not have, or more tokens than it takes.
            BusyError: too many requests wait.
        """
        return self.scheduler.add(requests)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            InputError: names what is wrong.
        """
        if request.media is not None:
            raise InputError("images and sounds are not served by llama.cpp; ask with text")
        self.scheduler.check(request)

    def step(self) -> bool:
        """Bring every request one step further; return whether there is more to do.

        Raises:
            Exception: the model fails whatever it is given; the engine cannot go on.
        """
        self._admit()
        self._sample(self._run(*self._next_pass()))
        self._retire()
        return self.has_work

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.step():
            pass

    def close(self) -> None:
        """Free the cache; nothing can run any more."""
        self.context.close()

    # Admit --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give places to waiting requests, in order, while there is room; prompts that have to be
        read first count as what one step reads.
        """
        self.scheduler.drop_cancelled()
        self._num_filled = 0
        while self._num_filled < self.limits.chunk_tokens:
            if (handle := self.scheduler.next_admitted(self.running)) is None:
                return
            try:
                self._start(handle)
            except Exception as error:
                handle.fail(error)

    def _start(self, handle: Handle) -> None:
        request, prompt = handle.request, handle.request.prompt
        virtual = prompt.num_virtual_tokens if prompt is not None else 0
        content_hash = prompt.content_hash if prompt is not None else None
        sequence, num_shared = self.sequences.begin(
            content_hash,
            virtual,
            request.ids,
            handle.num_tokens - virtual,
            lambda index: self._fill(prompt, index),
            others=list(self._shared_with(handle)),
        )
        state = LlamaRequest(handle, sequence)
        self.num_prompt_tokens += len(state.ids)
        self.running.append(state)
        if (other := self._duplicate_of(state)) is not None:
            other.duplicates.append(state)
            return
        usable = state.num_usable(num_shared)
        self.context.cut(sequence.index, virtual + usable)
        state.begin_at(usable)
        self.num_reused_tokens += usable

    def _fill(self, prompt: PromptSource | None, index: int) -> None:
        assert prompt is not None
        found = prompt.load()
        if isinstance(found, Prefix):
            found = SoftPrompt.from_states(found.cached, facts=found.facts)
        if found.num_virtual_tokens != prompt.num_virtual_tokens:
            raise InputError("the prompt's file has changed since it was looked up; load it again")
        sequence_state.fill(self.context, index, found)
        self._num_filled += prompt.num_virtual_tokens

    def _shared_with(self, handle: Handle) -> Iterator[tuple[HeldSequence, int]]:
        """Yield the sequences that hold a request's beginning: those of its own call only, where
        nothing is to be kept, since others could tell by the time to a first token what was asked.
        """
        prompt = handle.request.prompt
        content_hash = prompt.content_hash if prompt is not None else None
        ids = handle.request.ids
        for one in self.running:
            if one.is_over or one.content_hash != content_hash or not one.is_filled:
                continue
            if self.limits.max_state_bytes or one.handle.call is handle.call:
                length = min(len(ids), one.num_computed)
                pairs = zip(ids[:length], one.ids, strict=False)
                shared = next((i for i, (a, b) in enumerate(pairs) if a != b), length)
                yield one.sequence, shared

    def _duplicate_of(self, state: LlamaRequest) -> LlamaRequest | None:
        """Return a request that reads the very same, for this one to wait for."""
        for one in self.running:
            is_reading = one.status == "prefilling" and one.is_filled and not one.is_over
            is_ours = self.limits.max_state_bytes or one.handle.call is state.handle.call
            if one is not state and is_reading and is_ours and state.is_duplicate_of(one):
                return one
        return None

    # Passes --------------------------------------------------------------------------------------

    def _next_pass(self) -> tuple[list[LlamaRequest], list[int]]:
        """Return the requests of the next pass, and how many pending tokens of each it runs."""
        live = [one for one in self.running if one.is_filled and not one.is_over]
        decoding = [one for one in live if one.status == "decoding"]
        counts, budget = [1] * len(decoding), self.limits.chunk_tokens
        states = list(decoding)
        for one in live:
            if one.status == "prefilling" and budget:
                states.append(one)
                counts.append(min(one.num_pending, budget))
                budget -= counts[-1]
        return states, counts

    def _run(
        self, states: list[LlamaRequest], counts: list[int]
    ) -> list[tuple[LlamaRequest, np.ndarray]]:
        """Run pending tokens; return the requests of which none is left, each with its logits.

        Raises:
            Exception: the model fails whatever it is given.
        """
        if not states:
            return []
        try:
            ready = self._forward(states, counts)
        except Exception as error:
            for state in states:  # nothing of the pass is kept
                self.context.cut(state.index, state.num_cached)
            self._num_failures += 1
            if self._num_failures > MAX_FAILURES:
                raise
            if len(states) == 1:
                log.warning("a request failed in the model: %s", type(error).__name__)
                states[0].handle.fail(error)
                return []
            alone = zip(states, counts, strict=True)
            return [pair for state, count in alone for pair in self._run([state], [count])]
        self._num_failures = 0
        return ready

    def _forward(
        self, states: list[LlamaRequest], counts: list[int]
    ) -> list[tuple[LlamaRequest, np.ndarray]]:
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        wanted: list[bool] = []
        for state, count in zip(states, counts, strict=True):
            start = state.num_computed
            tokens += state.ids[start : start + count]
            positions += range(state.num_cached, state.num_cached + count)
            sequences += [state.index] * count
            reports = state.handle.request.num_prompt_logprobs is not None
            is_last = state.num_pending == count
            wanted += [reports and state.status == "prefilling"] * (count - 1)
            wanted.append(is_last or (reports and state.status == "prefilling"))
        logits, place, ready = self.context.run(tokens, positions, sequences, wanted), 0, []
        for state, count in zip(states, counts, strict=True):
            reports = (
                state.handle.request.num_prompt_logprobs is not None
                and state.status == "prefilling"
            )
            is_last = state.num_pending == count
            num_rows = count if reports else int(is_last)
            own, place = logits[place : place + num_rows], place + num_rows
            if reports:
                self._report(state, own)
            state.num_computed += count
            if is_last:
                ready += self._with_duplicates(state, own[-1])
        return ready

    def _report(self, state: LlamaRequest, logits: np.ndarray) -> None:
        """Note the log-probability of each given id that follows those of this pass."""
        request, before = state.handle.request, state.num_computed + 1
        first = max(before, request.logprobs_from)
        following = request.ids[first : before + len(logits)]
        if following:
            state.handle.prompt_logprobs += sampling.report(
                torch.from_numpy(logits[first - before :][: len(following)]),
                torch.tensor(following, device="cpu"),
                request.num_prompt_logprobs or 0,
            )

    def _with_duplicates(
        self, state: LlamaRequest, logits: np.ndarray
    ) -> list[tuple[LlamaRequest, np.ndarray]]:
        """Let a request decode, and its duplicates from the same state and logits."""
        found = [(state, logits)]
        state.status = "decoding"
        for other in state.duplicates:
            assert isinstance(other, LlamaRequest)
            if not other.is_over:
                self.sequences.share(state.sequence, other.sequence, state.num_cached)
                other.follow(state)
                other.status = "decoding"
                self.num_reused_tokens += other.num_computed
                found.append((other, logits))
        state.duplicates = []
        return found

    # Sample and retire --------------------------------------------------------------------------

    def _sample(self, ready: list[tuple[LlamaRequest, np.ndarray]]) -> None:
        """Choose the next id of every request of which nothing is pending."""
        if not ready:
            return
        states = [state for state, _ in ready]
        logits = torch.from_numpy(np.stack([row for _, row in ready]))
        for state, choice in zip(states, choose_all(states, logits), strict=True):
            if not state.is_over:
                self._take(state, choice)

    def _take(self, state: LlamaRequest, choice: Choice | None) -> None:
        state.handle.take(choice)
        if choice is not None:
            state.num_finite = state.num_computed
            state.ids.append(choice.id)
            state.sampler.record(choice.id)
            self.num_new_tokens += bool(state.handle.choices)

    def _retire(self) -> None:
        """Free the sequences of requests that are over; what a next turn could use is kept."""
        for state in [state for state in self.running if state.is_over]:
            state.handle.end("cancelled")
            self.running.remove(state)
            state.status = "finished"
            is_sound = state.is_filled and state.handle.finish_reason != "error"
            is_sound = is_sound and state.num_finite == state.num_computed
            self.sequences.end(
                state.sequence, state.ids[: state.num_computed] if is_sound else None
            )
            self._pass_on(state)

    def _pass_on(self, state: LlamaRequest) -> None:
        """Let the first of a request's duplicates read in its place: it ended before it had."""
        live = [one for one in state.duplicates if not one.is_over]
        if live:
            first, *first.duplicates = live
            self.context.cut(first.index, first.num_virtual)
            first.begin_at(0)
