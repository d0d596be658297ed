"""Prompt inspection: nearest vocabulary tokens, norms, similarity, attention received.

In: a prompt, and its backbone for all but similarity and the norms of states. Out: small numbers.
Embeddings are compared with the embedding table as the model computes it, keys and values layer by
layer. A key/value prompt has no token space, and is refused where one is needed. Draws nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.model.fingerprint import check_fingerprint
from foreword.prompt.base_facts import base_name
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States, attention_part, recurrent_part

CHUNK = 1 << 15  # rows of the table that are compared at once


@dataclass(frozen=True)
class Neighbour:
    """A vocabulary token near a virtual one: its text, and how near it is."""

    text: str
    nearness: float


@dataclass(frozen=True)
class Nearest:
    """The vocabulary tokens nearest to one virtual token, nearest first.

    Attributes:
        by_cosine: of the closest direction.
        by_dot: of the largest inner product, which favours long embeddings.
    """

    by_cosine: tuple[Neighbour, ...]
    by_dot: tuple[Neighbour, ...]


def nearest_tokens(backbone: Backbone, prompt: SoftPrompt, count: int = 3) -> list[Nearest]:
    """Return for each virtual token of an embedding prompt its `count` nearest vocabulary tokens.

    Raises:
        InputError: no tokenizer, or a key/value prompt, which has no token space.
    """
    if backbone.tokenizer is None:
        raise InputError("naming tokens needs a tokenizer; give the backbone one")
    own = _embeddings(backbone, prompt)
    dots, lengths = [], []
    for part in torch.arange(backbone.capabilities.vocab_size, device="cpu").split(CHUNK):
        rows = backbone.embed(part).to(own)
        dots.append(own @ rows.T)
        lengths.append(rows.norm(dim=1))
    dot = torch.cat(dots, 1)
    floor = torch.finfo(dot.dtype).tiny
    cosine = dot / (own.norm(dim=1)[:, None] * torch.cat(lengths)).clamp_min(floor)
    ranked = [_ranked(backbone, values, count) for values in (cosine, dot)]
    return [Nearest(*pair) for pair in zip(*ranked, strict=True)]


def _ranked(backbone: Backbone, values: Tensor, count: int) -> list[tuple[Neighbour, ...]]:
    """Return for each row of `[P, V]` its `count` largest, as tokens."""
    best = values.topk(min(count, values.shape[1]), dim=1)
    return [
        tuple(
            Neighbour(backbone.tokenizer.decode([token]), value)
            for token, value in zip(tokens, found, strict=True)
        )
        for tokens, found in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class TokenNorms:
    """Norms of virtual tokens beside those of the vocabulary.

    Attributes:
        of_prompt: of each virtual token.
        ranks: of each, the share of the table's rows that are shorter.
        table: the table's norms at 5, 50 and 95 percent.
    """

    of_prompt: tuple[float, ...]
    ranks: tuple[float, ...]
    table: tuple[float, float, float]


def token_norms(backbone: Backbone, prompt: SoftPrompt) -> TokenNorms:
    """Return the norms of an embedding prompt's tokens within the table's own distribution."""
    own = _embeddings(backbone, prompt).norm(dim=1)
    parts = torch.arange(backbone.capabilities.vocab_size, device="cpu").split(CHUNK)
    table = torch.cat([backbone.embed(part).to(own).norm(dim=1) for part in parts])
    table = table.sort().values
    ranks = torch.searchsorted(table, own).double() / len(table)
    at = (torch.tensor([0.05, 0.5, 0.95], device="cpu") * (len(table) - 1)).round().long()
    low, middle, high = table[at.to(table.device)].tolist()
    return TokenNorms(tuple(own.tolist()), tuple(ranks.tolist()), (low, middle, high))


@dataclass(frozen=True)
class LayerNorms:
    """Mean norms of one layer's state; None where it keeps none.

    Of a token's keys and values the norm is over all heads, of a recurrent state over the whole.
    """

    keys: float | None
    values: float | None
    recurrent: float | None


def layer_norms(states: States) -> list[LayerNorms]:
    """Return the norms of every layer's state."""
    found = []
    for layer in states:
        sides = [_by_token(t).norm(dim=1).mean().item() for t in attention_part(layer)]
        kept = [tensor.float().norm().item() for tensor in recurrent_part(layer)]
        keys, values = sides or (None, None)
        found.append(LayerNorms(keys, values, sum(kept) / len(kept) if kept else None))
    return found


def similarity(first: SoftPrompt | Prefix, second: SoftPrompt | Prefix) -> Tensor:
    """Return the cosine of every pair of virtual tokens, `[P first, P second]`.

    For key/value prompts it is the mean over the keys and the values of all layers.

    Raises:
        MismatchError: prompts of different forms or bases. UnsupportedError: recurrent states
            alone.
    """
    base = (second.facts.get("base") or {}).get("fingerprint")
    if base is not None:
        check_fingerprint(first.facts, base, base_name(second.facts))
    sides = [_sides(prompt) for prompt in (first, second)]
    shapes = [[tensor.shape[1] for tensor in side] for side in sides]
    if not all(shapes):
        raise UnsupportedError("recurrent states hold no single tokens to compare")
    if shapes[0] != shapes[1]:
        raise MismatchError(
            "the prompts are of different forms or bases: "
            f"{_form_of(first)} beside {_form_of(second)}; compile both with one backbone (--model)"
        )
    cosines = [
        torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
        for a, b in zip(*sides, strict=True)
    ]
    return torch.stack(cosines).mean(0)


def attention_received(
    backbone: Backbone, prompt: SoftPrompt | Prefix, input_ids: Sequence[int]
) -> Tensor:
    """Return the attention that each token of an input pays to each virtual token.

    Returns:
        `[L, T, P]`, the mean over heads; L are the layers that attend. The rest up to 1 goes to
        real tokens, or to a sink of the model's own.

    Raises:
        UnsupportedError: no layer attends, or the attention is computed without its weights.
    """
    capabilities = backbone.capabilities
    if backbone.reads_apart:
        raise UnsupportedError(f"{capabilities.model_type}: attention is shown of decoders alone")
    if not capabilities.attention_patterns:
        raise UnsupportedError(
            f"{capabilities.model_type} has no attention to show: its layers recur"
        )
    if capabilities.attention != "eager":
        raise UnsupportedError(
            f"{capabilities.attention} attention gives no weights; load the model with "
            "attn_implementation='eager'"
        )
    output = backbone.without_habits().generate(
        prompt,
        torch.tensor([list(input_ids)], device=backbone.device),
        max_new_tokens=1,
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    layers = [weights for weights in (output.attentions or [[]])[0] if weights is not None]
    if not layers:
        raise UnsupportedError(f"{capabilities.model_type} returns no attention weights")
    num_virtual = prompt.num_virtual_tokens
    return torch.stack([w[0, :, :, :num_virtual].float().mean(0).cpu() for w in layers])


def _embeddings(backbone: Backbone, prompt: SoftPrompt) -> Tensor:
    """Return the virtual tokens `[P, H]`, to compare with the embedding table."""
    if prompt.form != "embeddings":
        raise InputError("a key/value prompt has no token space: it is a state, not embeddings")
    backbone.compile(prompt)  # refuses a wrong base by name
    dtype = torch.promote_types(prompt.embeddings.dtype, torch.float32)
    return prompt.embeddings.detach().to(backbone.device, dtype)


def _by_token(tensor: Tensor) -> Tensor:
    """Return keys or values `[N, P, D]` as `[P, N * D]`."""
    return tensor.detach().float().transpose(0, 1).flatten(1)


def _sides(prompt: SoftPrompt | Prefix) -> list[Tensor]:
    if isinstance(prompt, SoftPrompt) and prompt.form == "embeddings":
        return [prompt.embeddings.detach().float().cpu()]
    states = prompt.states if isinstance(prompt, SoftPrompt) else prompt.cached
    return [_by_token(t).cpu() for layer in states for t in attention_part(layer)]


def _form_of(prompt: SoftPrompt | Prefix) -> str:
    form = prompt.form if isinstance(prompt, SoftPrompt) else "key_values"
    widths = sorted({tensor.shape[1] for tensor in _sides(prompt)})
    return f"{form} of width {', '.join(map(str, widths))}"
