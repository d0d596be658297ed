"""Test inputs: a fixed sentence, and a random prompt where none is given.

In: a backbone, a prompt or none. Out: a `Trial`, of a decoder or of a model with an encoder. Knows
nothing of findings.
"""

from contextlib import suppress

import torch

from foreword.backbone import Backbone
from foreword.data.example import named
from foreword.data.tokenizing import token_ids
from foreword.doctor.encoder_trial import make_encoder_trial
from foreword.doctor.trial import Trial
from foreword.errors import DataError
from foreword.model import checks
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.initializers import random_embeddings


def make_trial(backbone: Backbone, prompt: SoftPrompt | None, num_new: int) -> Trial:
    """Return a trial on a fixed sentence, as long as the model's context allows.

    Raises:
        MismatchError: the prompt was made for another base model.
    """
    prompt = random_prompt(backbone) if prompt is None else prompt.detached()
    backbone.compile(prompt)
    ids, capabilities = _ids(backbone), backbone.capabilities
    if capabilities.encoder is not None:
        return make_encoder_trial(backbone, prompt, ids, num_new)
    room = max(_limit(backbone) - prompt.num_virtual_tokens, NUM_LEAST)
    num_new = max(1, min(num_new, room // 2))
    row = torch.tensor(ids[: room - num_new], device=backbone.device)
    return Trial(backbone, prompt, row, num_new)


def sentence_ids(backbone: Backbone) -> list[int]:
    """Return the ids of the sentence by the base's tokenizer.

    Raises:
        DataError: the tokenizer cannot read it, or has tokens that the model has not.
    """
    what = "the test's sentence"
    with named(what):
        ids = token_ids(backbone.tokenizer, SENTENCE)
    checks.check_row(ids, what, backbone.capabilities.vocab_size, backbone.tokenizer)
    return ids


def _ids(backbone: Backbone) -> list[int]:
    """Return the sentence's ids, or fixed ones where no tokenizer reads it."""
    found: list[int] = []
    if backbone.tokenizer is not None:
        with suppress(DataError):  # a finding of its own
            found = sentence_ids(backbone)
    if len(found) >= NUM_READ:
        return found
    return [(index * 7919) % backbone.capabilities.vocab_size for index in range(1, NUM_IDS + 1)]


def _limit(backbone: Backbone) -> int:
    capabilities = backbone.capabilities
    return min(capabilities.context_length or 1 << 30, capabilities.rope_switch or 1 << 30)


def random_prompt(backbone: Backbone) -> SoftPrompt:
    """Return a random embedding prompt at the scale of the model's own embeddings."""
    step = max(1, backbone.capabilities.vocab_size // NUM_TABLE_ROWS)
    table = backbone.embed(torch.arange(0, backbone.capabilities.vocab_size, step, device="cpu"))
    generator = torch.Generator().manual_seed(0)
    num_virtual = min(NUM_VIRTUAL, max(1, _limit(backbone) - NUM_LEFT))
    return SoftPrompt.from_embeddings(random_embeddings(table, num_virtual, generator))


SENTENCE = "A soft prompt stands before the text, and every fast path says what the slow path says."


NUM_IDS = 20  # of the row where no tokenizer reads the sentence


NUM_READ = 2  # ids of a sentence, fewer of which nothing can be learned from


NUM_LEAST = 3  # positions of a trial: two of a row and one of its answer


NUM_LEFT = 6  # positions that a prompt leaves that stands in where there is none


NUM_VIRTUAL = 16  # of the prompt that stands in where there is none


NUM_TABLE_ROWS = 4096  # from which that prompt takes its scale
