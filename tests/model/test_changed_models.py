"""Models that change under a backbone: what was computed before is not used, or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch

from foreword import Backbone, SoftPrompt
from foreword.engine.engine import Engine
from foreword.engine.request import PromptSource, Request
from foreword.errors import MismatchError, UnsupportedError
from foreword.training.packing import packed_decoder

IDS = tiny_models.ids(5)[None]


def made(family: str = "llama") -> tuple[Any, Backbone, SoftPrompt]:
    model = tiny_models.build(family, dtype=torch.float32)
    return model, Backbone(model), SoftPrompt.from_embeddings(tiny_models.embeddings(model, 4))


def merged(model: Any) -> None:
    for name, weights in model.named_parameters():
        if name.endswith("v_proj.weight"):
            weights.data.mul_(-3.0)  # as adapters are merged: no counter knows of it


def loaded(model: Any) -> None:
    model.load_state_dict({name: -value for name, value in model.state_dict().items()})


def replaced(model: Any) -> None:
    projection = model.model.layers[0].self_attn.v_proj
    projection.weight = torch.nn.Parameter(-projection.weight, requires_grad=False)


def added(model: Any) -> None:
    """Put something beside a projection, as an adapter is."""

    class Beside(torch.nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.own, self.more = own, torch.nn.Parameter(torch.ones(own.weight.shape[0]))

        def forward(self, hidden: Any) -> Any:
            return self.own(hidden) + self.more

    layer = model.model.layers[0].self_attn
    layer.v_proj = Beside(layer.v_proj).requires_grad_(False)


def of_buffers(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(0.5)


CHANGES = [merged, loaded, replaced, added, of_buffers, torch.nn.Module.double]


@pytest.mark.parametrize("change", CHANGES)
def test_a_prefix_is_computed_again_once_the_weights_are_others(
    change: Callable[[Any], object],
) -> None:
    model, backbone, prompt = made()
    before = backbone.logits(prompt, IDS), backbone.fingerprint()
    change(model)
    fresh = Backbone(model)
    assert torch.equal(backbone.logits(prompt, IDS), fresh.logits(prompt, IDS))
    assert backbone.fingerprint() == fresh.fingerprint()
    if change not in (torch.nn.Module.double, of_buffers):
        assert before[1] != backbone.fingerprint()
    assert not torch.equal(before[0], backbone.logits(prompt, IDS))
    states = SoftPrompt.from_states(fresh.compile(prompt).cached)
    assert backbone.compile(states).cached.tensors[0].dtype == model.dtype


@pytest.mark.parametrize("change", [merged, loaded, replaced, added])
def test_a_prefix_that_is_held_is_refused_once_the_weights_are_others(
    change: Callable[[Any], object],
) -> None:
    model, backbone, prompt = made()
    held = backbone.compile(prompt)
    change(model)
    with pytest.raises(MismatchError, match="differ in"):
        backbone.logits(held, IDS)


def test_a_prefix_under_autocast_is_of_that_call_alone() -> None:
    model, backbone, prompt = made()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        backbone.generate(prompt, IDS, max_new_tokens=3)
        assert torch.bfloat16 in {one.dtype for one in backbone.compile(prompt).cached.tensors}
    assert torch.equal(backbone.logits(prompt, IDS), Backbone(model).logits(prompt, IDS))
    states = SoftPrompt.from_states(backbone.compile(prompt).cached)
    assert backbone.compile(states).cached.tensors[0].dtype == torch.float32


def test_weights_that_stay_are_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, backbone, prompt = made()
    found = backbone.compile(prompt)
    monkeypatch.setattr(backbone, "prefill", None)
    assert backbone.compile(prompt).states is found.states


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_attention_that_was_switched_is_refused_until_there_is_a_new_backbone(family: str) -> None:
    model, backbone, prompt = made(family)
    packed = packed_decoder.packed(backbone)
    expected = backbone.generate(prompt, IDS, max_new_tokens=4)
    engine = Engine(backbone)
    model.set_attn_implementation("eager")
    again = Backbone(model)
    for call in (
        lambda: backbone.generate(prompt, IDS, max_new_tokens=4),
        lambda: backbone.generate(None, IDS, max_new_tokens=4),
        lambda: backbone.logits(prompt, IDS),
        lambda: packed.logits(prompt, IDS),
    ):
        with pytest.raises(UnsupportedError, match="'eager' now, and was 'sdpa' .* make a new one"):
            call()
    handle = engine.submit(Request(tuple(IDS[0].tolist()), PromptSource.of(prompt)))
    engine.run()
    assert isinstance(handle.error, UnsupportedError)
    assert torch.equal(again.generate(prompt, IDS, max_new_tokens=4), expected)
    model.set_attn_implementation("sdpa")
    assert torch.equal(backbone.generate(prompt, IDS, max_new_tokens=4), expected)
