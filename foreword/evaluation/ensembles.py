"""Prompt ensembles: several prompts answer together, and one batch holds each text once per prompt.

In: a backbone with a tokenizer, prompts, texts. Out: for each text one answer, in order. `vote`
takes the answer that most prompts give; `averaged` decodes one answer from the mean of all prompts'
probabilities, token by token. Lester et al. 2021 (arXiv:2104.08691), section 6. Knows no files,
and prints nothing.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Answer, Text
from foreword.data.several import several
from foreword.errors import InputError
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt


@dataclass(frozen=True)
class Vote:
    """What several prompts said to one text.

    Attributes:
        answer: the one that most gave; of equally many, the one of the first prompt among them.
        share: of the prompts that gave it.
        answers: of each prompt, in their order.
    """

    answer: Answer
    share: float
    answers: tuple[Answer, ...]


def vote(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix],
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Iterator[Vote]:
    """Answer every text by majority; greedy unless `options` of `generate` say otherwise.

    Args:
        backbone: with a tokenizer.
        prompts: those that vote; each gets a text as its own training encoded it.
        texts: texts or conversations.
        batch_size: rows at once, so that a batch holds `batch_size // len(prompts)` texts, one at
            least.
        max_new_tokens: longest answer in tokens; 128 where nothing else is said.
        **options: of `generate`.

    Raises:
        InputError: no prompts, or one text, and not several.
        MismatchError: a prompt of another base, or of another chat template.
    """
    for found in _batches(backbone, prompts, texts, batch_size, max_new_tokens, options):
        yield from map(majority, found)


def majority(answers: Sequence[Answer]) -> Vote:
    """Return the majority of answers to one text; white space around them does not count."""
    counts = Counter(answer.text.strip() for answer in answers)
    best = max(answers, key=lambda answer: counts[answer.text.strip()])  # the first of equals
    return Vote(best, counts[best.text.strip()] / len(answers), tuple(answers))


def averaged(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix],
    texts: Sequence[Text],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 128,
) -> Iterator[Answer]:
    """Answer every text greedily from the mean of the prompts' next-token probabilities.

    Args:
        backbone: with a tokenizer.
        prompts: those that are averaged; all must encode rows alike.
        texts: texts or conversations.
        batch_size: rows at once, one for each prompt and text.
        max_new_tokens: longest answer in tokens.

    Raises:
        InputError: no prompts, or prompts that encode rows differently.
        MismatchError: a prompt of another base, or of another chat template.
    """
    check_alike(prompts)
    mean = LogitsProcessorList([_Mean(len(prompts))])
    options = {"do_sample": False, "logits_processor": mean}
    for found in _batches(backbone, prompts, texts, batch_size, max_new_tokens, options):
        for own in found:
            yield own[0]


def check_alike(prompts: Sequence[SoftPrompt | Prefix]) -> None:
    """Refuse to average prompts that encode rows differently.

    Raises:
        InputError: they do.
    """
    configs = map(chat.encoding_of, prompts)  # how long a row may be changes no id of a question
    if len({replace(one, max_length=None, truncate=False) for one in configs}) > 1:
        raise InputError(
            "the prompts were trained on rows that are encoded differently, so their answers are "
            "not of the same tokens: use a vote, which compares texts"
        )


def _batches(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix],
    texts: Sequence[Text],
    batch_size: int,
    max_new_tokens: int | None,
    options: dict[str, Any],
) -> Iterator[list[tuple[Answer, ...]]]:
    """Yield, for each batch of texts, every prompt's answers to each."""
    texts = several("texts", texts, "texts or conversations")
    if not prompts:
        raise InputError("an ensemble needs at least one prompt")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    options = chat.limited(backbone, options, max_new_tokens, 128)
    for prompt in prompts:
        chat.check_template(backbone, prompt)
    size = max(1, batch_size // len(prompts))
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        places = [chat.place_of(start + number, texts) for number in range(1, len(part) + 1)]
        rows = _answers(backbone, prompts, part, places, options)
        ends = range(len(prompts), len(rows) + 1, len(prompts))
        yield [tuple(rows[end - len(prompts) : end]) for end in ends]


def _answers(
    backbone: Backbone,
    prompts: Sequence[SoftPrompt | Prefix],
    texts: Sequence[Text],
    places: Sequence[str],
    options: dict[str, Any],
) -> list[Answer]:
    """Return the first text's answer of every prompt, then the second's, from one batch."""
    configs = [chat.encoding_of(prompt) for prompt in prompts]
    asked = [
        (chat.typed(backbone, prompt, text) if isinstance(text, str) else text, config)
        for text in texts
        for prompt, config in zip(prompts, configs, strict=True)
    ]
    each = [place for place in places for _ in prompts]
    rows = [
        chat.encode_row(backbone, *one, place=place) for one, place in zip(asked, each, strict=True)
    ]
    stop_ids = [chat.end_tokens(backbone, *one) for one in asked]
    prefixes = [backbone.compile(prompt) for prompt in prompts] * len(texts)
    found = chat.answer_rows(backbone, prefixes, rows, stop_ids, **options)
    return list(found)


class _Mean(LogitsProcessor):
    """Replace the scores of a text's rows by the logarithm of their mean probabilities."""

    def __init__(self, num_prompts: int) -> None:
        self.num_prompts = num_prompts

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
        logs = torch.log_softmax(wide, dim=-1).unflatten(0, (-1, self.num_prompts))
        mean: Tensor = logs.logsumexp(dim=1) - math.log(self.num_prompts)
        return mean.repeat_interleave(self.num_prompts, dim=0)
