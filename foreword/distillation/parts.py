"""Teachers of a text: one prompt that holds it, or several where it is longer than the context.

In: a backbone, a text, the room that queries and answers need. Out: the text's parts, each as a
prompt; for queries that name no part, the part that they are about. A teacher that reads one part
knows nothing of the others, so that what spans several is not taught.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig, EncodingConfig
from foreword.data.encoding import Row
from foreword.data.media_parts import Message
from foreword.distillation.chunks import cut
from foreword.distillation.kept_work import part_of
from foreword.distillation.queries import Query
from foreword.distillation.teacher import Taught, key_of, teach
from foreword.errors import InputError
from foreword.named_text import text_prompt
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.validation import score_rows

SMALLEST = 16  # tokens of a part


def parts_of(backbone: Backbone, text: str | Sequence[Message], room: int) -> list[str] | None:
    """Return the parts of a text that is too long to have `room` tokens behind it in the model's
    context; None where it fits whole.

    Raises:
        InputError: nothing of a text fits beside so much.
    """
    context = backbone.capabilities.context_length
    if context is None or not isinstance(text, str):
        return None
    count = counting(backbone)
    if count(text) + room <= context:
        return None
    frame = count("")
    if context - room < frame + SMALLEST:
        raise InputError(
            f"queries and answers need {room} tokens of the model's context of {context} and leave "
            "no room for the text: give shorter queries or lower --answer-tokens"
        )
    return cut(text, context - room - frame, lambda part: count(part) - frame)


def counting(backbone: Backbone) -> Callable[[str], int]:
    """Return what counts the tokens of a text before a query, all that the template adds included:
    a little more than its prompt has.
    """
    config = chat.encoding_of(None)
    is_chat = chat.has_template(backbone, config)

    def count(text: str) -> int:
        turn = {"role": "user", "content": "a"}
        row = chat.instructed(backbone, [turn], text, config) if is_chat else f"{text}\n\na"
        return len(chat.encode(backbone, row, config)[0])

    return count


def prompts_of(
    backbone: Backbone,
    text: str | Sequence[Message],
    parts: Sequence[str] | None,
    encoding: EncodingConfig | None = None,
) -> list[SoftPrompt]:
    """Return a text, or each of its parts, as a prompt."""
    if parts is None:
        return [text_prompt(backbone, text, encoding)]
    return [text_prompt(backbone, part, encoding) for part in parts]


def typed(backbone: Backbone, prompt: SoftPrompt | None, queries: Sequence[Query]) -> list[Query]:
    """Return queries as the model is asked them, bare or behind a prompt: a text is one turn, where
    it reads turns.
    """
    return [
        replace(one, asked=({"role": "user", "content": one.asked},))
        if isinstance(one.asked, str) and chat.reads_turns(backbone, prompt)
        else one
        for one in queries
    ]


def nearest(
    backbone: Backbone, teachers: Sequence[SoftPrompt], queries: Sequence[Query]
) -> list[int]:
    """Return the part that each query is about: its own where it names one, else that behind which
    the model expects the query most.

    This is ranking by query likelihood (Ponte and Croft 1998, doi:10.1145/290941.291008), with the
    model itself as the language model of a part.
    """
    if len(teachers) == 1:
        return [0] * len(queries)
    found = [query.part or 0 for query in queries]
    configs = [chat.encoding_of(teacher) for teacher in teachers]
    ids = [[chat.encode(backbone, query.asked, one)[0] for query in queries] for one in configs]
    # Nothing tells how likely a first token is: a query of one token is about the first part.
    open_ones = [
        number
        for number, query in enumerate(queries)
        if query.part is None and all(len(own[number]) > 1 for own in ids)
    ]
    if not open_ones:
        return found
    losses = []
    for teacher, own in zip(teachers, ids, strict=True):
        rows = [Row.from_ids(own[number][:1], own[number][1:]) for number in open_ones]
        losses.append(score_rows(backbone, teacher, rows).losses)
    for index, part in zip(open_ones, torch.stack(losses).argmin(0).tolist(), strict=True):
        found[index] = part
    return found


def keys_of(
    backbone: Backbone,
    teachers: Sequence[SoftPrompt],
    queries: Sequence[Query],
    places: Sequence[int],
    config: DistillConfig,
    folder: Path,
) -> dict[Path, str]:
    """Return the folders in which `teach_parts` keeps answers, each with the key of what fits.

    Raises:
        DataError: a query that the text cannot stand before, or that leaves no room for its answer.
    """
    found = {}
    for part, teacher in enumerate(teachers):
        asked = [one.asked for one, place in zip(queries, places, strict=True) if place == part]
        if asked:
            place = part_of(folder, part, len(teachers))
            found[place] = key_of(backbone, teacher, asked, config)
    return found


def teach_parts(
    backbone: Backbone,
    teachers: Sequence[SoftPrompt],
    queries: Sequence[Query],
    places: Sequence[int],
    config: DistillConfig,
    folder: str | os.PathLike[str] | None,
    on_answer: Callable[[], object],
    *,
    is_anew: bool = False,
) -> list[Taught]:
    """Return what the teacher at each query's place says to it, in the order of the queries; see
    `teacher.teach`.
    """
    found: dict[int, Taught] = {}
    for part, teacher in enumerate(teachers):
        own = [index for index, place in enumerate(places) if place == part]
        if not own:
            continue
        asked = [queries[index].asked for index in own]
        place = None if folder is None else part_of(Path(folder), part, len(teachers))
        answers = teach(backbone, teacher, asked, config, place, is_anew=is_anew)
        for index, one in zip(own, answers, strict=True):
            found[index] = one
            on_answer()
    return [found[index] for index in range(len(queries))]


def about_parts(teachers: Sequence[SoftPrompt]) -> str:
    """Say that a text has several teachers, and what they cannot know."""
    longest = max(one.num_virtual_tokens for one in teachers)
    return (
        f"the text is longer than the model's context: {len(teachers)} parts of at most {longest} "
        "tokens, each question answered behind its own; what spans several parts is not taught"
    )
