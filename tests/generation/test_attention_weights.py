"""Attention weights of `generate`: those of eager attention, refused where none are computed."""

import pytest
import tiny_models
import torch

from foreword import Backbone, SoftPrompt
from foreword.errors import UnsupportedError

IDS = tiny_models.ids(5)[None]


@pytest.mark.parametrize("has_prompt", [True, False])
def test_weights_are_refused_where_attention_computes_none(has_prompt: bool) -> None:
    model = tiny_models.build("llama")
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3)) if has_prompt else None
    asked = {"output_attentions": True, "return_dict_in_generate": True, "max_new_tokens": 2}
    with pytest.raises(UnsupportedError, match="sdpa attention computes no weights"):
        Backbone(model).generate(prompt, IDS, **asked)
    model.set_attn_implementation("eager")
    found = Backbone(model).generate(prompt, IDS, **asked).attentions
    num_virtual = 3 if has_prompt else 0
    assert found[0][0].shape[-2:] == (5, 5 + num_virtual)
    assert torch.allclose(found[0][0].sum(-1), torch.ones(()).double())
