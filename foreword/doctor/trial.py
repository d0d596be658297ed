"""Reference comparison: one prompt on one model, fast and slow, and how far the two lie apart.

In: a backbone, a prompt, rows of ids. Out: generations, and their distance from the slow
computation, which is written here with transformers alone: one unpadded row, no cache between
steps, everything computed again. Knows nothing of findings or of PEFT.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat.transformers_api import DynamicCache
from foreword.prompt.soft_prompt import SoftPrompt

# How far the logits of equal computations may lie apart, as a share of their spread over the ids:
# rounding, grown over the layers. Positions that are off by one give 0.05 to 0.09 (SmolLM2-135M).
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Distance:
    """How far a generation lies from the slow computation.

    Attributes:
        error: of the worst step: the standard deviation of the logits' differences over the ids, as
            a share of the logits' own. A shift of all logits counts as none, as in the softmax.
        num_same: tokens that are the slow computation's best, given the tokens before.
        num_tokens: tokens generated.
    """

    error: float
    num_same: int
    num_tokens: int

    def __add__(self, other: "Distance") -> "Distance":
        return Distance(
            max(self.error, other.error),
            self.num_same + other.num_same,
            self.num_tokens + other.num_tokens,
        )


@dataclass(frozen=True, eq=False)
class Trial:
    """One prompt on one model, and the row of ids `[T]` that is continued by `num_new` tokens."""

    backbone: Backbone
    prompt: SoftPrompt
    row: Tensor
    num_new: int

    @property
    def options(self) -> dict[str, Any]:
        """What `generate` is called with: plain greedy decoding that no end token stops."""
        return {
            "max_new_tokens": self.num_new,
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "eos_token_id": self.backbone.capabilities.vocab_size,
            "pad_token_id": 0,
            "return_dict_in_generate": True,
            "output_logits": True,
        }

    @property
    def rows(self) -> list[Tensor]:
        """The row and two shorter ones, for a padded batch."""
        length = len(self.row)
        return [self.row, self.row[: max(1, length // 2)], self.row[: max(1, length // 3)]]

    @property
    def can_chunk(self) -> bool:
        """Whether the prefill has several tokens, which can be cut into chunks."""
        return True

    def label_loss(self, prompt: SoftPrompt) -> Tensor:
        """Return the mean cross entropy of the row's tokens behind a prompt, with gradient."""
        logits = self.backbone.logits(prompt, self.row[None])[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, self.row[1:])

    def fast(self, rows: list[Tensor], **options: Any) -> Any:
        """Generate with foreword from rows `[T]`, left-padded where they differ in length."""
        ids, mask = left_padded(rows)
        plain = self.backbone.without_habits()
        return plain.generate(self.prompt, ids, mask, **self.options, **options)

    def bare_logits(self) -> Tensor:
        """Return the row's logits `[T, V]` of the model alone."""
        return self._bare(self.row)

    def _bare(self, ids: Tensor) -> Tensor:
        """Return the logits `[T, V]` of ids `[T]` of the model alone."""
        output = self.backbone.model(input_ids=ids[None], use_cache=False)
        return output.logits[0]  # type: ignore[no-any-return]

    def prompted_logits(self) -> Tensor:
        """Return the row's logits `[T, V]` behind the prompt, by the slow computation."""
        return slow_logits(self.backbone, self.prompt, self.row)

    def slow(self) -> Tensor:
        """Generate `[num_new]` ids by full recomputation."""
        ids = self.row
        for _ in range(self.num_new):
            best = slow_logits(self.backbone, self.prompt, ids)[-1].argmax()
            ids = torch.cat([ids, best[None]])
        return ids[len(self.row) :]

    def distance(self, rows: list[Tensor], output: Any) -> Distance:
        """Compare what was generated from rows `[T]` with the slow computation of each row."""
        found = (self._row_distance(row, *answer) for row, *answer in _answers(rows, output))
        return sum(found, Distance(0.0, 0, 0))

    @torch.no_grad()
    def is_bare(self, rows: list[Tensor], output: Any) -> bool:
        """Whether what was generated from rows `[T]` is what the model alone says: no trace of the
        prompt is left.
        """
        errors = []
        for row, tokens, steps in _answers(rows, output):
            bare = self._bare_steps(row, tokens).double()
            errors.append(((steps.double() - bare).std(-1) / bare.std(-1)).max().item())
        return max(errors) <= self.tolerance

    def _bare_steps(self, row: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits `[N, V]` that the model alone chooses tokens `[N]` from."""
        return self._bare(torch.cat([row, tokens[:-1]]))[-len(tokens) :]

    def _row_distance(self, row: Tensor, tokens: Tensor, steps: Tensor) -> Distance:
        """Compare tokens `[N]` and the logits `[N, V]` that they were chosen from."""
        given = torch.cat([row, tokens[:-1]])
        slow = slow_logits(self.backbone, self.prompt, given)[-len(tokens) :].double()
        steps = steps.double()
        error = ((steps - slow).std(-1) / slow.std(-1)).max().item()
        is_greedy = bool((steps.gather(1, tokens[:, None])[:, 0] == steps.max(-1).values).all())
        num_same = int((tokens == slow.argmax(-1)).sum())
        return Distance(error if is_greedy else math.inf, num_same, len(tokens))

    @property
    def tolerance(self) -> float:
        """The largest error that is rounding."""
        return TOLERANCE.get(self.backbone.dtype, max(TOLERANCE.values()))


def _answers(rows: list[Tensor], output: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield each row, its answer's tokens `[N]` and the logits `[N, V]` they were chosen from."""
    width = output.sequences.shape[1] - len(output.logits)
    return zip(rows, output.sequences[:, width:], torch.stack(output.logits, 1), strict=True)


@torch.no_grad()
def slow_logits(backbone: Backbone, prompt: SoftPrompt, ids: Tensor) -> Tensor:
    """Return the logits `[T, V]` of one unpadded row of ids `[T]`, all of it computed anew."""
    model, num_virtual = backbone.model, prompt.num_virtual_tokens
    positions = torch.arange(num_virtual + len(ids), device=ids.device)[None]
    if prompt.form == "embeddings":
        text = model.get_input_embeddings()(ids)
        whole = torch.cat([prompt.embeddings.to(text), text])[None]
        extra = _per_layer_inputs(backbone, num_virtual, ids)
        output = model(inputs_embeds=whole, position_ids=positions, use_cache=False, **extra)
        return output.logits[0, num_virtual:]  # type: ignore[no-any-return]
    cache = DynamicCache()
    for index, pair in enumerate(prompt.key_values):
        keys, values = (tensor[None].to(ids.device, backbone.dtype) for tensor in pair)
        cache.update(keys, values, index)
    output = model(
        input_ids=ids[None],
        position_ids=positions[:, num_virtual:],
        attention_mask=torch.ones_like(positions),
        **{backbone.capabilities.cache_argument: cache},
    )
    return output.logits[0]  # type: ignore[no-any-return]


def _per_layer_inputs(backbone: Backbone, num_virtual: int, ids: Tensor) -> dict[str, Tensor]:
    """Return what a model looks up by id beside its embeddings; virtual tokens share one id."""
    virtual_id = backbone.capabilities.virtual_id
    if virtual_id is None:
        return {}
    every_id = torch.cat([ids.new_full((num_virtual,), virtual_id), ids])[None]
    found = backbone.decoder.embed_tokens_per_layer(every_id)
    num_layers = backbone.decoder.config.num_hidden_layers
    return {"per_layer_inputs": found.unflatten(-1, (num_layers, -1))}


def left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ids and mask `[B, T]` of rows `[T]`."""
    length = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([row.new_zeros(length - len(row)), row]) for row in rows])
    mask = torch.stack([torch.arange(length, device="cpu") >= length - len(row) for row in rows])
    return ids, mask.long().to(ids.device)
