"""Every case of the contract, for every family and both prompt forms, equals the oracle."""

import pytest
from contract import CASES, ForewordSubject, world_of
from tiny_models import FAMILIES, RECURRENT

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
