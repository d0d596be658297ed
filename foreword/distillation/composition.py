"""Composition: two prompts as one, the second behind the first.

In: a backbone, two of its prompts. Out: one prompt: embeddings one after the other, which the model
reads as one text; or keys and values side by side, those of the second moved behind the first by
rotation, exactly. What moved keys hold was read without the first prompt: that the model answers
well behind both is trained for (`distill --distractors`), or not known. Trains nothing.
"""

import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.chat import check_template, saved_encoding
from foreword.distillation.student import student_encoding
from foreword.errors import InputError, UnsupportedError
from foreword.model.decoder import Decoder
from foreword.model.rotation import Rotation, joined, rotations_of
from foreword.named_text import holds_text
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States

log = logging.getLogger("foreword")

METHOD = "composed"
OF_ROWS = (
    "row_template", "chat_template", "opening", "start_token", "held_text", "special_tokens",
    "is_text", "plain", "date",
)  # fmt: skip


def compose(backbone: Backbone, first: SoftPrompt, second: SoftPrompt) -> SoftPrompt:
    """Return two prompts as one of `P1 + P2` virtual tokens, the second behind the first.

    Two embedding prompts `[P1, H]` and `[P2, H]` are concatenated. Else both are keys and values
    `[N, P, D]`, an embedding prompt those that it compiles to alone; the keys of the second are
    rotated by P1 positions (RoPE, Su et al. 2021, arXiv:2104.09864), the values stay. Rows are
    written as behind the second prompt, which they follow. Logs a warning where the two were not
    trained to stand together.

    Args:
        backbone: the base of both.
        first: any prompt.
        second: any prompt.

    Raises:
        MismatchError: a prompt of another base, or a second one of another chat template.
        InputError: no room for rows behind both.
        UnsupportedError: keys cannot be moved on this model.
    """
    both = first, second
    for prompt in both:
        backbone.check(prompt)
    check_template(backbone, second)
    sizes = [prompt.num_virtual_tokens for prompt in both]
    context = backbone.capabilities.context_length
    if context is not None and sum(sizes) + 2 > context:
        raise InputError(
            f"{sizes[0]} and {sizes[1]} virtual tokens leave no room for rows: the model's context "
            f"has {context}"
        )
    facts = _facts(backbone, first, second)
    if first.form == second.form == "embeddings":
        found = SoftPrompt.from_embeddings(
            torch.cat([_wide(prompt.embeddings) for prompt in both]), facts=facts
        )
    else:
        found = SoftPrompt.from_states(_side_by_side(backbone, first, second), facts=facts)
    _warn(first, second)
    return found


def _side_by_side(backbone: Backbone, first: SoftPrompt, second: SoftPrompt) -> States:
    rotations = rotations_for(backbone)
    one, other = (_own_states(backbone, prompt) for prompt in (first, second))
    with torch.no_grad():
        return joined(one, other, rotations)


def rotations_for(backbone: Backbone) -> list[Rotation]:
    """Return how the layers of a backbone rotate their keys.

    Raises:
        UnsupportedError: keys cannot be moved on this model.
    """
    passes = backbone.passes
    if not isinstance(passes, Decoder):
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: keys behind an encoder cannot be moved, so that "
            "only embedding prompts can be composed"
        )
    return rotations_of(passes)


def _own_states(backbone: Backbone, prompt: SoftPrompt) -> States:
    """Return a prompt's keys and values as precise as they are kept."""
    if prompt.form == "key_values":
        return prompt.states.map(lambda tensor: _wide(tensor.to(backbone.device)))
    return backbone.compile(prompt).cached.map(_wide)


def _wide(tensor: Tensor) -> Tensor:
    found = tensor.detach()
    return found if found.dtype == torch.float64 else found.float()


def _facts(backbone: Backbone, first: SoftPrompt, second: SoftPrompt) -> dict[str, Any]:
    """Return what the composed prompt says of itself; rows are those of the second."""
    both = first, second
    encodings = [
        saved_encoding(prompt) | asdict(student_encoding(backbone, prompt, [])) for prompt in both
    ]
    differing = [name for name in OF_ROWS if encodings[0].get(name) != encodings[1].get(name)]
    if differing:
        log.warning(
            "rows are written as behind the second prompt; behind the first they were written "
            "otherwise (%s)",
            ", ".join(differing),
        )
    return {
        "base": backbone.identity(),
        "tokenizer": second.facts.get("tokenizer") or backbone.tokenizer_facts(),
        "method": METHOD,
        "encoding": encodings[1],
        "composed": [
            {"content_hash": prompt.content_hash, "num_virtual_tokens": prompt.num_virtual_tokens}
            for prompt in both
        ],
    }


def _warn(first: SoftPrompt, second: SoftPrompt) -> None:
    """Say that prompts were trained alone; texts that the model reads one after another were not
    trained, and lose nothing.
    """
    both = first, second
    if all(prompt.form == "embeddings" and holds_text(prompt) for prompt in both):
        return
    if not all((prompt.facts.get("distilled") or {}).get("distractors") for prompt in both):
        log.warning(
            "these prompts were not trained to stand together: prompts trained alone came to 26.0 "
            "when composed, and to 77.8 when trained beside others (arXiv:2606.04557): measure it"
        )
