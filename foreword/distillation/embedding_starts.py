"""Starts of an embedding prompt: P vectors `[P, H]` that stand for a context, before any training.

In: a backbone, a context as a prompt, rows with the teacher's answers. Out: the vectors of the
context's own tokens, where it has some, or of sampled ones; which of them by what they diverge from
the teacher. Trains nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import DistillStart
from foreword.data.encoding import Row
from foreword.distillation.input_checks import check_start
from foreword.distillation.starts import NAMED, even_places
from foreword.errors import InputError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training import initializers
from foreword.training.validation import validate

OF_TOKENS: tuple[DistillStart, ...] = ("first", "even")
NUM_ROWS = 24  # that starts are compared on


def begin(
    backbone: Backbone,
    context: SoftPrompt,
    num_virtual: int,
    start: DistillStart | None,
    rows: Sequence[Row],
    seed: int = 0,
) -> tuple[SoftPrompt, str]:
    """Return the prompt that a distillation starts from, and a sentence that says what it is.

    Args:
        backbone: the frozen model.
        context: of T virtual tokens.
        num_virtual: P.
        start: which start; None: whichever diverges least from the teacher on some of the rows.
        rows: with the teacher's answers, as they stand behind the prompt.
        seed: of what is sampled.

    Raises:
        InputError: a start from tokens of a context that has none, as keys and values.
    """
    if start is not None:
        return start_of(backbone, context, num_virtual, start, seed), f"starts from {NAMED[start]}"
    has_tokens = context.form == "embeddings" and num_virtual <= context.num_virtual_tokens
    open_ones: tuple[DistillStart, ...] = (*(OF_TOKENS if has_tokens else ()), "vocabulary")
    known = {one: start_of(backbone, context, num_virtual, one, seed) for one in open_ones}
    if len(known) == 1:
        return known["vocabulary"], f"starts from {NAMED['vocabulary']}"
    count = min(NUM_ROWS, len(rows))
    picked = [rows[index * len(rows) // count] for index in range(count)]
    found = {one: validate(backbone, prompt, picked).loss for one, prompt in known.items()}
    best = min(found, key=lambda one: found[one])
    said = ", ".join(f"{one} {loss:.3g}" for one, loss in found.items())
    return known[best], f"starts from {NAMED[best]} (KL on {len(picked)} rows: {said})"


def start_of(
    backbone: Backbone, context: SoftPrompt, num_virtual: int, start: DistillStart, seed: int = 0
) -> SoftPrompt:
    """Return the prompt that a distillation starts from; takes and raises what `begin` does."""
    check_start(start, "embeddings")
    if start == "vocabulary":
        table = backbone.embed(torch.arange(backbone.capabilities.vocab_size, device="cpu"))
        generator = torch.Generator().manual_seed(seed)
        values = initializers.vocabulary_embeddings(table, num_virtual, generator)
    else:
        values = _taken(context, num_virtual, start)
    return SoftPrompt.from_embeddings(values, facts={"base": backbone.identity()})


def _taken(context: SoftPrompt, num_virtual: int, start: DistillStart) -> Tensor:
    length = context.num_virtual_tokens
    if context.form != "embeddings" or length < num_virtual:
        raise InputError(
            f"--start {start} takes {num_virtual} embeddings of the context, and it has "
            f"{'none' if context.form != 'embeddings' else length}: use --start vocabulary"
        )
    places = (
        torch.arange(num_virtual, device="cpu")
        if start == "first"
        else even_places(length, num_virtual)
    )
    return context.embeddings.detach()[places.to(context.embeddings.device)].float().cpu()
