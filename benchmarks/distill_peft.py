"""PEFT's CARTRIDGE with the loss, start and rate of its own example, for a number of seconds.

In: a base, a context, queries with the teacher's answers. Out: the prompt, read from PEFT's files.
As its example `cartridge_self_study` has it: keys and values start as the cache of the context's
first tokens, the first token frozen; one row a step, AdamW at 1e-3; in each step the same model
without the adapter reads the whole context, and the loss is the cross entropy with its 20 likeliest
ids at the answer's tokens. The example's way to make questions is not part of it.
"""

import copy
import random
import tempfile
import time
from typing import Any

import peft
import torch
from peft import CartridgeConfig, get_peft_model

from foreword import Backbone, SoftPrompt, chat

RATE, TOP_K = 1e-3, 20


def cartridge(
    backbone: Backbone, text: SoftPrompt, lesson: Any, size: int, seed: int, seconds: float
) -> SoftPrompt:
    """Train for as many processor seconds; the row that is begun is finished."""
    torch.manual_seed(seed)
    config = CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=size, num_frozen_tokens=1)
    model = get_peft_model(copy.deepcopy(backbone.model), config)
    with torch.no_grad():
        cache = backbone.model(inputs_embeds=text.embeddings[None], use_cache=True).past_key_values
    peft.initialize_kv_prefix_from_past_key_values(
        model, past_key_values=cache, num_virtual_tokens=size
    )
    leaves = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(leaves, lr=RATE)
    rows = [row for row in lesson.rows if row.source.startswith("query")]
    random.Random(seed).shuffle(rows)
    started, step = time.process_time(), 0
    while time.process_time() - started < seconds:
        row = rows[step % len(rows)]
        step += 1
        _step(model, backbone, text, row, optimizer)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = SoftPrompt.load(folder)
    return SoftPrompt.from_states(found.states, facts={"encoding": chat.saved_encoding(None)})


def _step(model: Any, backbone: Backbone, text: SoftPrompt, row: Any, optimizer: Any) -> None:
    ids = torch.tensor([row.input_ids])
    places = slice(ids.shape[1] - row.num_labels - 1, ids.shape[1] - 1)
    whole = torch.cat([text.embeddings, backbone.embed(ids[0])])[None]
    with torch.no_grad(), model.disable_adapter():
        told = model(inputs_embeds=whole).logits[0, text.num_virtual_tokens :][places]
    best = told.topk(TOP_K, dim=-1)
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, places]
    kept = logits.log_softmax(-1).gather(-1, best.indices)
    loss = -(best.values.softmax(-1) * kept).sum(-1).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
