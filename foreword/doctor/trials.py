"""Test inputs: a fixed sentence, and a random prompt where none is given.

In: a backbone, a prompt or none. Out: a `Trial`, of a decoder or of a model with an encoder. Knows
nothing of findings.
"""

import torch

from foreword.backbone import Backbone
from foreword.doctor.encoder_trial import make_encoder_trial
from foreword.doctor.trial import Trial
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.initializers import random_embeddings


def make_trial(backbone: Backbone, prompt: SoftPrompt | None, num_new: int) -> Trial:
    """Return a trial on a fixed sentence, as long as the model's context allows.

    Raises:
        MismatchError: the prompt was made for another base model.
    """
    prompt = random_prompt(backbone) if prompt is None else prompt.detached()
    backbone.compile(prompt)
    ids = [(index * 7919) % backbone.capabilities.vocab_size for index in range(1, NUM_IDS + 1)]
    if backbone.tokenizer is not None:
        ids = list(backbone.tokenizer(SENTENCE).input_ids)
    capabilities = backbone.capabilities
    if capabilities.encoder is not None:
        return make_encoder_trial(backbone, prompt, ids, num_new)
    limit = min(capabilities.context_length or 1 << 30, capabilities.rope_switch or 1 << 30)
    room = max(limit - prompt.num_virtual_tokens, 6)
    num_new = max(1, min(num_new, room // 2))
    row = torch.tensor(ids[: room - num_new], device=backbone.device)
    return Trial(backbone, prompt, row, num_new)


def random_prompt(backbone: Backbone) -> SoftPrompt:
    """Return a random embedding prompt at the scale of the model's own embeddings."""
    step = max(1, backbone.capabilities.vocab_size // NUM_TABLE_ROWS)
    table = backbone.embed(torch.arange(0, backbone.capabilities.vocab_size, step))
    generator = torch.Generator().manual_seed(0)
    return SoftPrompt.from_embeddings(random_embeddings(table, NUM_VIRTUAL, generator))


SENTENCE = "A soft prompt stands before the text, and every fast path says what the slow path says."


NUM_IDS = 20  # of the row where there is no tokenizer


NUM_VIRTUAL = 16  # of the prompt that stands in where there is none


NUM_TABLE_ROWS = 4096  # from which that prompt takes its scale
