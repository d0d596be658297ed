"""Every case of the contract, for every family and both prompt forms, equals the oracle."""

from typing import Any

import oracle
import pytest
import tiny_models
import torch
from contract import CASES, ForewordSubject, world_of
from tiny_models import FAMILIES, RECURRENT

from foreword import Backbone, SoftPrompt
from foreword.chat import left_padded
from foreword.errors import UnsupportedError

# transformers' quantized cache takes no sliding or chunked layers.
SLIDING = ("mistral", "gemma2", "gemma3", "olmo3", "gpt_oss", "llama4", "gemma3n", "gemma4")
REFUSED = {("quantized_cache", family) for family in (*SLIDING, "gemma4_moe")}
# What it holds for recurrent layers is not kept, and they cannot forget rejected candidates.
NO_RECURRENCE = ("quantized_cache", "assisted_decoding", "prompt_lookup")
REFUSED |= {(case, family) for case in NO_RECURRENCE for family in RECURRENT}


# Compiling takes seconds, and a cache starts the same whatever the form; the table tries all.
COMPILED = ("llama", "gemma3", "deepseek_v3", "gemma4", "bamba", "mamba2", "falcon_h1", "lfm2")
FORMS = ("embeddings", "key_values")
RUNS = [
    (case, family, form)
    for case in CASES
    for family in FAMILIES
    for form in FORMS
    if case != "compiled_forward" or (family in COMPILED and form == "embeddings")
]


@pytest.mark.parametrize(("case", "family", "form"), RUNS)
def test_equals_the_oracle(case: str, family: str, form: str) -> None:
    world = world_of(family, form)
    subject = ForewordSubject(world.model, world.prompt)
    if (case, family) in REFUSED:
        with pytest.raises(UnsupportedError):
            CASES[case](subject, world)
    else:
        CASES[case](subject, world)


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("penalty", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 1}])
def test_padding_between_turns_is_no_history(penalty: dict[str, Any], is_cached: bool) -> None:
    model = tiny_models.shared("llama")
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5))
    ids, mask = left_padded([tiny_models.ids(length).tolist() for length in (4, 7)], 0)
    first = backbone.generate(
        prompt, ids, mask, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
    )
    turns = [tiny_models.ids(length, seed=9).tolist() for length in (5, 2)]
    wished = oracle.greedy(
        model, prompt, torch.cat([first.sequences[1], torch.tensor(turns[1])]), 1
    )
    new, new_mask = left_padded(turns, wished[0])  # what the model is about to say also pads
    whole = torch.cat([first.sequences, new], 1)
    seen = torch.cat([mask, torch.ones(2, 3, dtype=torch.int64), new_mask], 1)
    cache = {"past_key_values": first.past_key_values} if is_cached else {}
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, **penalty}
    output = backbone.generate(prompt, whole, seen, **cache, **options)
    for row, real, said in zip(whole, seen.bool(), output, strict=True):
        expected = oracle.generate(model, prompt, row[real], **options)[0, int(real.sum()) :]
        assert said[whole.shape[1] :].tolist() == expected.tolist()
