"""Starts: P virtual tokens that stand for a text of T tokens, before any training.

In: a backbone, a text as a prompt, rows with the teacher's answers. Out: keys and values `[N, P,
D]` of every layer, as they stand at positions 0 to P - 1. Moved keys are rotated to their new
places exactly. Trains nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import DistillStart
from foreword.data.encoding import Row
from foreword.distillation import attention_matching
from foreword.errors import InputError, UnsupportedError
from foreword.model.decoder import Decoder
from foreword.model.rotation import Rotation, moved, rotations_of
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States, attention_part, recurrent_part
from foreword.training import initializers

DEFAULTS: tuple[DistillStart, ...] = ("attention", "first", "vocabulary")
NAMED: dict[DistillStart, str] = {
    "first": "the first tokens of the text",
    "even": "tokens of the text at even distances",
    "attention": "attention matching",
    "vocabulary": "sampled vocabulary",
}


def begin(
    backbone: Backbone,
    text: SoftPrompt,
    num_virtual: int,
    start: DistillStart | None,
    rows: Sequence[Row] = (),
    seed: int = 0,
) -> tuple[SoftPrompt, str]:
    """Return the prompt that a distillation starts from, and a sentence that says what it is.

    Takes what `start_of` takes. Where no start is named, it is the first of `DEFAULTS` that is not
    refused; the sentence says why not the one before.

    Raises:
        UnsupportedError: a named start that the model cannot have.
    """
    reason = ""
    for one in DEFAULTS if start is None else (start,):
        try:
            prompt = start_of(backbone, text, num_virtual, one, rows, seed)
        except (UnsupportedError, InputError) as error:
            if one == start or one == DEFAULTS[-1]:
                raise
            reason = f" ({str(error).partition(';')[0]})"
        else:
            return prompt, f"starts from {NAMED[one]}{reason}"
    raise AssertionError("one of the starts is taken, or refused")


def start_of(
    backbone: Backbone,
    text: SoftPrompt,
    num_virtual: int,
    start: DistillStart = "first",
    rows: Sequence[Row] = (),
    seed: int = 0,
) -> SoftPrompt:
    """Return the prompt that a distillation starts from.

    Args:
        backbone: the frozen model.
        text: a prompt of T virtual tokens, see `named_text.text_prompt` for that of a text.
        num_virtual: P, less than T.
        start: which start.
        rows: queries with answers, as they stand behind the text, for attention matching.
        seed: of the control that samples the vocabulary.

    Raises:
        UnsupportedError: keys cannot be moved on this model; names the start that does without.
    """
    with torch.no_grad():
        match start:
            case "first":
                states = first(backbone, text, num_virtual)
            case "even":
                states = even(backbone, text, num_virtual)
            case "attention":
                decoder, rotations = movable(backbone)
                whole = backbone.compile(text)
                states = attention_matching.matched(
                    backbone, decoder, whole, rotations, num_virtual, rows
                )
            case "vocabulary":
                states = vocabulary(backbone, num_virtual, seed)
    states = states.map(torch.Tensor.float)
    return SoftPrompt.from_states(states, facts={"base": backbone.identity()})


def first(backbone: Backbone, text: SoftPrompt, num_virtual: int) -> States:
    """Return the state of the first P tokens of a context. On models with recurrent layers these
    layers' states are those after all of it: they have no length.
    """
    if text.form == "embeddings" and backbone.capabilities.encoder is not None:
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: embeddings run with each row, beside an encoder, "
            "and have no keys before it; use --start vocabulary"
        )
    if text.form == "key_values" or backbone.capabilities.is_recurrent:
        return taken(backbone.compile(text).cached, torch.arange(num_virtual, device="cpu"))
    head = SoftPrompt.from_embeddings(text.tensors[0][:num_virtual], facts=text.facts)
    return backbone.compile(head).cached


def even(backbone: Backbone, text: SoftPrompt, num_virtual: int) -> States:
    """Return the state of P tokens of the whole text at even distances, the first among them.

    Each keeps what it has read of the text before it; its key is rotated to its new place.
    """
    _, rotations = movable(backbone)
    whole = backbone.compile(text).cached
    places = even_places(whole.num_virtual_tokens, num_virtual)
    return moved(taken(whole, places), rotations, torch.arange(num_virtual, device="cpu") - places)


def vocabulary(backbone: Backbone, num_virtual: int, seed: int = 0) -> States:
    """Return the state of sampled rows of the embedding table: a text of no meaning, as control."""
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size, device="cpu"))
    generator = torch.Generator().manual_seed(seed)
    values = initializers.vocabulary_embeddings(table, num_virtual, generator)
    return backbone.passes.prefill(backbone.placed(SoftPrompt.from_embeddings(values)))


def even_places(num_tokens: int, num_virtual: int) -> Tensor:
    """Return P different places in a text of T tokens at even distances, from 0 on, `[P]`."""
    return torch.arange(num_virtual, device="cpu") * num_tokens // num_virtual


def taken(states: States, places: Tensor) -> States:
    """Return the keys and values of some tokens, where they stand; recurrent states as they are."""
    layers = tuple(
        (
            *(side[:, places.to(side.device)] for side in attention_part(layer)),
            *recurrent_part(layer),
        )
        for layer in states
    )
    return States(layers, len(places))


def movable(backbone: Backbone) -> tuple[Decoder, list[Rotation]]:
    """Return a backbone's decoder, and what moves the keys of each of its layers.

    Raises:
        UnsupportedError: they cannot be moved; names the start that does without.
    """
    passes = backbone.passes
    if not isinstance(passes, Decoder):
        raise UnsupportedError("keys behind an encoder cannot be moved; use --start first")
    try:
        return passes, rotations_of(passes)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; use --start first") from None
