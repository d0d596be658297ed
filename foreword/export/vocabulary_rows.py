"""Vocabulary rows: the virtual tokens of embedding prompts as tokens of the vocabulary.

In: named prompts and the backbone that they were trained on. Out: which token each virtual token
becomes, with what row of the embedding table; or a refusal that names what would not be exact. An
engine that loads the result knows nothing of prompts: it meets P more tokens before the text. Knows
no file format.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword import chat
from foreword.backbone import Backbone
from foreword.errors import InputError, UnsupportedError
from foreword.export.targets import check_forms
from foreword.named_text import holds_text
from foreword.prompt.soft_prompt import SoftPrompt

# Tokens that a base keeps for later: nothing in its text ever becomes one of them.
RESERVED = re.compile(
    r"<\|?reserved[_a-z]*?_?\d+\|?>|<\|?unused_?\d+\|?>|\[unused\d+\]|\[PAD\d+\]|<SPECIAL_\d+>"
)
TOLERANCE = 1e-6  # of a row that the model's own table gives back, relative to the prompt's scale


@dataclass(frozen=True, eq=False)
class NamedRows:
    """One prompt as tokens.

    Attributes:
        name: by which the chat template picks it.
        prompt: the embedding prompt.
        tokens: how its P tokens are spelled.
        ids: their ids.
    """

    name: str
    prompt: SoftPrompt
    tokens: tuple[str, ...]
    ids: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of a vocabulary.

    Attributes:
        prompts: in the order given; the first is what the chat template takes where none is named.
        num_tokens: of the vocabulary afterwards, spare rows of the table included.
        is_reserved: whether tokens that the base keeps for later are used, and none is added.
    """

    prompts: tuple[NamedRows, ...]
    num_tokens: int
    is_reserved: bool

    @property
    def ids(self) -> list[int]:
        """All ids of virtual tokens."""
        return [id for one in self.prompts for id in one.ids]


def check(backbone: Backbone, prompts: Mapping[str, SoftPrompt]) -> None:
    """Refuse prompts that cannot be rows of the vocabulary exactly, and bases that can have none.

    Raises:
        InputError: a name that is none, or keys and values. MismatchError: another base, or another
            chat template. UnsupportedError: names the part of the base.
    """
    check_forms({name: prompt.form for name, prompt in prompts.items()})
    for name, prompt in prompts.items():
        backbone.check(prompt)
        chat.check_template(backbone, prompt)
        if holds_text(prompt):
            raise InputError(
                f"{name} is a text under a name, whose rows begin without it: write the text "
                "itself into the chat template of the other engine, which is as exact"
            )
    capabilities = backbone.capabilities
    reasons = {
        "an encoder": capabilities.encoder is not None,
        "embeddings of its own for each layer": capabilities.virtual_id is not None,
        "images or sounds": bool(capabilities.modalities),
        "quantized weights": backbone.quantization is not None,
    }
    if found := [reason for reason, is_so in reasons.items() if is_so]:
        raise UnsupportedError(
            f"{backbone.name}: a base with {found[0]} gets no rows of the vocabulary; use "
            "foreword's own server, or vLLM with its plugin"
        )
    if backbone.tokenizer is None:
        raise InputError(f"{backbone.name} has no tokenizer, to which tokens could be added")


def plan(vocabulary: Sequence[str], num_rows: int, prompts: Mapping[str, SoftPrompt]) -> Plan:
    """Choose tokens: those that the base keeps for later where there are enough of them, else new
    ones behind all that it has.

    Args:
        vocabulary: the spelling of every token, by id.
        num_rows: of the embedding table, which may have spare ones.
        prompts: by name.
    """
    needed = sum(prompt.num_virtual_tokens for prompt in prompts.values())
    reserved = [id for id, token in enumerate(vocabulary) if RESERVED.fullmatch(token)]
    is_reserved = len(reserved) >= needed
    first = len(vocabulary)
    ids = reserved[-needed:] if is_reserved else list(range(first, first + needed))
    named, start = [], 0
    for name, prompt in prompts.items():
        own = tuple(ids[start : start + prompt.num_virtual_tokens])
        start += len(own)
        mark = f"{name}:{prompt.content_hash[:8]}"
        spelled = [vocabulary[id] if is_reserved else f"<|{mark}:{n}|>" for n, id in enumerate(own)]
        if not is_reserved and (taken := set(spelled) & set(vocabulary)):
            raise InputError(f"the base has a token {min(taken)} already: choose another name")
        named.append(NamedRows(name, prompt, tuple(spelled), own))
    return Plan(tuple(named), max(num_rows, first + (0 if is_reserved else needed)), is_reserved)


def table_rows(backbone: Backbone, prompt: SoftPrompt) -> Tensor:
    """Return the rows `[P, H]`, in float64, that a base's table must hold so that its tokens stand
    for a prompt's: divided by what the base multiplies the embeddings of ids by.

    Raises:
        UnsupportedError: the base does more to them than that.
    """
    table = backbone.model.get_input_embeddings()
    ids = torch.arange(min(64, backbone.capabilities.vocab_size), device=backbone.device)
    plain = table.weight[ids].double()
    if plain.shape[-1] != backbone.capabilities.hidden_size:
        raise UnsupportedError(
            f"{backbone.name}: its embeddings are projected; no row stands alone"
        )
    seen = backbone.embed(ids).double()
    factor = float((seen * plain).sum() / plain.pow(2).sum())
    error = (seen - factor * plain).abs().max() / seen.abs().max()
    limit = max(TOLERANCE, 4 * torch.finfo(backbone.dtype).eps)
    if not error <= limit:
        raise UnsupportedError(
            f"{backbone.name}: its embeddings of tokens are more than rows of a table "
            f"(by {error:.1g})"
        )
    return prompt.embeddings.detach().double().to(plain.device) / factor


def losing_row(table: Tensor) -> Tensor:
    """Return a row of the head `[H]` that greedy decoding never chooses: the mean of all rows,
    whose logit is the mean of all logits, and no more than the largest.
    """
    total = torch.zeros(table.shape[-1], dtype=torch.float64, device=table.device)
    for part in table.split(1 << 14):
        total += part.double().sum(0)
    return total / len(table)
