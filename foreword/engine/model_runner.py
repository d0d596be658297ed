"""The model runner: one forward pass over some requests of the batch, from and into the KV cache.

In: requests, and how many tokens of each may run at most. Out: those of which nothing is pending,
and the logits that choose their next id. Where the model fails, each runs alone, so that the
culprit alone fails.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat import transformers_api
from foreword.engine import sampling
from foreword.engine.grouped_attention import Groups, attending, grouped, groups_of
from foreword.engine.kv_cache import ForwardBatch, KVCache
from foreword.engine.limits import EngineLimits
from foreword.engine.request_state import RequestState
from foreword.engine.sampling import Choice
from foreword.model.changed import check_settings
from foreword.model.decoder import Decoder
from foreword.model.masks import place_in_slots
from foreword.model.media import split_media
from foreword.model.view_proof import limit_of, objection, text_ids
from foreword.prompt.prefix import Prefix
from foreword.prompt.states import States

log = logging.getLogger("foreword.engine")
MAX_FAILURES = 8  # of passes one after the other, before the model itself is taken for broken
PROOF_LENGTHS, PROOF_NEW = (2, 9), 3  # tokens of the rows of a proof, and those of its pass

Ready = tuple[list[RequestState], Tensor]
"""Requests of which nothing is pending, and their logits `[B, V]`."""


class ModelRunner:
    """Runs the model; counts the passes that fail one after the other."""

    def __init__(self, backbone: Backbone, kv_cache: KVCache) -> None:
        self.backbone, self.kv_cache = backbone, kv_cache
        self._num_failures = 0
        # Elsewhere, groups of rows would be many small kernels.
        self._has_groups = (
            backbone.device.type == "cpu" and len(backbone.capabilities.attention_patterns) > 0
        )

    def run(self, states: list[RequestState], limit: int) -> list[Ready]:
        """Run up to `limit` pending tokens of each request; return those of which none is left, of
        one pass or of several.

        Raises:
            Exception: the model fails whatever it is given.
        """
        return [ready for part in self._parts(states, limit) for ready in self._run(part, limit)]

    def _parts(self, states: list[RequestState], limit: int) -> list[list[RequestState]]:
        """Return the requests of one pass each: padding would change a recurrent state."""
        if not self.backbone.capabilities.is_recurrent:
            return [states] if states else []
        parts: dict[int, list[RequestState]] = {}
        for state in states:
            parts.setdefault(min(state.num_pending, limit), []).append(state)
        return list(parts.values())

    def _run(self, states: list[RequestState], limit: int) -> list[Ready]:
        try:
            ready = self._forward(states, limit)
        except Exception as error:
            self._num_failures += 1
            if self._num_failures > MAX_FAILURES:
                raise
            if len(states) == 1:
                log.warning("a request failed in the model: %s", type(error).__name__)
                states[0].handle.fail(error)
                return []
            return [ready for state in states for ready in self.run([state], limit)]
        self._num_failures = 0
        return [ready] if ready is not None else []

    def _forward(self, states: list[RequestState], limit: int) -> Ready | None:
        """Run the model once."""
        counts = [min(state.num_pending, limit) for state in states]
        current = ForwardBatch(
            [state.index for state in states],
            [state.num_cached for state in states],
            counts,
            [state.shift for state in states],
        )
        hidden = self.hidden(
            current,
            [
                state.ids[state.num_computed : state.num_computed + n]
                for state, n in _zip(states, counts)
            ],
        )
        reports = [
            self._report(state, hidden[index, :count])
            for index, (state, count) in enumerate(_zip(states, counts))
        ]
        done = [index for index, state in enumerate(states) if state.num_pending == counts[index]]
        if current.num_new == 1 and len(done) == len(states):
            logits = self.backbone.head(hidden[:, 0])
        elif done:
            logits = self.backbone.head(torch.stack([hidden[i, counts[i] - 1] for i in done]))
        # Nothing has been noted so far: a pass that fails can run again.
        try:
            self.kv_cache.end()
        except Exception as error:  # states that are half changed are of no use
            for state in states:
                state.handle.fail(error)
            return None
        for (state, count), report in zip(_zip(states, counts), reports, strict=True):
            state.handle.prompt_logprobs += report
            state.num_computed += count
        return ([states[index] for index in done], logits) if done else None

    def hidden(self, current: ForwardBatch, ids: list[list[int]]) -> Tensor:
        """Return the last hidden states `[B, T, H]` of one pass."""
        groups = groups_of(current.lengths)
        is_grouped = len(groups) > 1 and self._has_groups
        decoder = self._grouped if is_grouped else self.backbone.decoder
        return self._hidden(decoder, groups, self.kv_cache, current, ids)

    def _hidden(
        self,
        decoder: Any,
        groups: Groups,
        kv_cache: KVCache,
        current: ForwardBatch,
        ids: Sequence[Sequence[int]],
    ) -> Tensor:
        backbone, num_new = self.backbone, current.num_new
        padded = [[*one, *list(one[-1:]) * (num_new - len(one))] for one in ids]
        positions = current.positions(backbone.device)
        kv_cache.begin(current, positions)
        is_cpu = backbone.device.type == "cpu"
        with transformers_api.grouped_heads(is_cpu and num_new > 1), attending(groups):
            output = decoder(
                input_ids=torch.tensor(padded, device=backbone.device),
                use_cache=True,
                **self._placed(current, positions),
                **{backbone.capabilities.cache_argument: kv_cache.cache},
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @functools.cached_property
    def _grouped(self) -> Any:
        """The decoder with attention by groups, where a few tokens show that this changes nothing;
        else the decoder itself, and the log says why. Classes that look at the name of their
        attention themselves may read a mask otherwise.
        """
        view = grouped(self.backbone.decoder)
        if (reason := objection(lambda: self._difference(view))) is None:
            return view
        log.info("rows attend together: %s cannot run in groups (%s)", self.backbone.name, reason)
        return self.backbone.decoder

    def _difference(self, view: Any) -> str | None:
        """Say how two rows of unlike length differ in a view from the decoder; None: not at all."""
        ids = text_ids(self.backbone.capabilities)
        kv_cache = KVCache(self.backbone.capabilities.layers, EngineLimits(max_rows=2))
        kv_cache.reserve(2, max(PROOF_LENGTHS) + PROOF_NEW)
        with torch.no_grad():
            for row, length in enumerate(PROOF_LENGTHS):
                alone = ForwardBatch([row], [0], [length])
                whole = ((slice(0, 1), length),)
                self._hidden(self.backbone.decoder, whole, kv_cache, alone, [ids[:length]])
                kv_cache.end()
            for count in (PROOF_NEW, 1):
                current = ForwardBatch([0, 1], PROOF_LENGTHS, [count, count])
                groups = tuple((slice(i, i + 1), n) for i, n in enumerate(current.lengths))
                rows = [ids[-count:], ids[-2 * count : -count]]
                expected, found = (
                    self._hidden(decoder, groups, kv_cache, current, rows).float()
                    for decoder in (self.backbone.decoder, view)
                )
                share = ((found - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
                if not share <= limit_of(self.backbone.dtype):
                    return f"its hidden states differ by {share:.2g}"
        return None

    def _placed(self, current: ForwardBatch, positions: Tensor) -> dict[str, Any]:
        """Return position ids and masks, which recurrent layers alone do not take."""
        capabilities = self.backbone.capabilities
        if not capabilities.attention_patterns:
            return {}
        check_settings(self.backbone.model, capabilities)
        masks = place_in_slots(
            positions, current.width, capabilities, self.backbone.dtype, is_even=current.is_even
        )
        places = positions + capabilities.first_position
        if any(current.shifts):
            places = places + torch.tensor(current.shifts, device=places.device)[:, None]
        if capabilities.num_axes > 1:
            places = places[None].expand(capabilities.num_axes, -1, -1)
        return {"position_ids": places, "attention_mask": masks}

    def prefill_media(
        self, prefix: Prefix | None, input_ids: Tensor, tensors: Mapping[str, Tensor]
    ) -> tuple[States, int]:
        """Run the tokens `[1, T]` of one request and its media; see `Decoder.prefill_row`.

        Raises:
            InputError: the media does not fit its placeholders.
        """
        passes = self.backbone.passes
        assert isinstance(passes, Decoder)  # models with an encoder are not served
        media, _ = split_media(self.backbone.capabilities, tensors)
        return passes.prefill_row(prefix, input_ids, media)

    def _report(self, state: RequestState, hidden: Tensor) -> list[Choice]:
        """Return the log-probability of each id that followed those of this pass, if asked for."""
        request, before = state.handle.request, state.num_computed + 1
        first = max(before, request.logprobs_from)
        following, num_top = request.ids[first : before + len(hidden)], request.num_prompt_logprobs
        if num_top is None or not following:
            return []
        logits = self.backbone.head(hidden[first - before :][: len(following)])
        chosen = torch.tensor(following, device=logits.device)
        return sampling.report(logits, chosen, num_top)


def joined(parts: Sequence[Ready]) -> list[Ready]:
    """Return what several passes made ready, as one where there is memory for that."""
    if len(parts) < 2:
        return list(parts)
    try:
        logits = torch.cat([logits for _, logits in parts])
    except Exception:
        return list(parts)
    return [([state for states, _ in parts for state in states], logits)]


def _zip(states: Sequence[RequestState], counts: Sequence[int]) -> list[tuple[RequestState, int]]:
    return list(zip(states, counts, strict=True))
