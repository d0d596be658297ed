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


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case: str, family: str, form: str) -> None:
    world = world_of(family, form)
    subject = ForewordSubject(world.model, world.prompt)
    if (case, family) in REFUSED:
        with pytest.raises(UnsupportedError):
            CASES[case](subject, world)
    else:
        CASES[case](subject, world)
