"""Models that change under a backbone: what was computed before is not used, or refused."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.engine.engine import Engine
from foreword.engine.request import PromptSource, Request
from foreword.errors import MismatchError, UnsupportedError
from foreword.training.packing import packed_decoder

IDS = tiny_models.ids(5)[None]
STEPS = TrainConfig(num_steps=1, num_virtual_tokens=4)


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


class Adapted(torch.nn.Module):
    """A projection with something beside it that can be switched off, as adapters are."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own, self.scaling, self._disable_adapters = own, {"default": 1.0}, False

    def forward(self, hidden: Any) -> Any:
        share = 0 if self._disable_adapters else self.scaling["default"]
        return self.own(hidden) + share


def switched(model: Any, adapted: Adapted) -> None:
    adapted._disable_adapters = True


def scaled(model: Any, adapted: Adapted) -> None:
    adapted.scaling["default"] = 3.0


def hooked(model: Any, adapted: Adapted) -> None:
    adapted.register_forward_hook(lambda part, given, found: found * 2)


def given_another_pass(model: Any, adapted: Adapted) -> None:
    adapted.own.forward = lambda hidden: hidden


@pytest.mark.parametrize("change", [switched, scaled, hooked, given_another_pass])
def test_a_prefix_is_computed_again_once_the_model_does_otherwise(change: Any) -> None:
    model, _, prompt = made()
    layer = model.model.layers[0].self_attn
    layer.o_proj = adapted = Adapted(layer.o_proj).eval()
    backbone = Backbone(model)
    before = backbone.logits(prompt, IDS)
    change(model, adapted)
    found = backbone.logits(prompt, IDS)
    assert torch.equal(found, Backbone(model).logits(prompt, IDS))
    assert not torch.equal(found, before)


def in_training(model: Any) -> None:
    model.train()


def checkpointing(model: Any) -> None:
    with warnings.catch_warnings():  # newer releases call it otherwise
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable()
    model.train()


def of_one_layer(model: Any) -> None:
    next(part for part in model.modules() if isinstance(part, torch.nn.Dropout)).train()


def larger(model: Any) -> None:
    model.resize_token_embeddings(110, mean_resizing=False)


def smaller(model: Any) -> None:
    model.resize_token_embeddings(90)


def of_another_window(model: Any) -> None:
    model.config.sliding_window = 3


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llama", in_training, "training mode"),
        ("gpt2", in_training, "training mode"),
        ("llama", checkpointing, "training mode"),
        ("gpt2", of_one_layer, "a Dropout of the model is in training mode"),
        ("llama", larger, "another size now, 110, than .* 97: make a new one"),
        ("llama", smaller, "another size now, 90, than .* 97: make a new one"),
        ("mistral", of_another_window, "another size now, 3, than .* 8: make a new one"),
        ("t5", in_training, "training mode"),
        ("bart", in_training, "training mode"),
        ("bart", larger, "another size now, 110, than .* 97: make a new one"),
    ],
)
def test_a_model_that_is_another_than_was_inspected_is_refused(
    family: str, change: Callable[[Any], object], said: str
) -> None:
    is_apart = family in seq2seq_models.FAMILIES
    model = (seq2seq_models if is_apart else tiny_models).build(family)
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 4))
    change(model)
    # One token after a prompt has no mask, by whose size a dropped prompt would be seen.
    for ids in (IDS, IDS[:, :1], torch.tensor([[95]])):
        for call in (
            lambda ids=ids: backbone.generate(prompt, ids, max_new_tokens=2),
            lambda ids=ids: backbone.generate(None, ids, max_new_tokens=2),
            lambda ids=ids: backbone.logits(prompt, ids),
            lambda ids=ids: backbone.compile(prompt) and backbone.logits(None, ids),
        ):
            with pytest.raises(UnsupportedError, match=said):
                call()
    with pytest.raises(UnsupportedError, match=said):
        next(train(backbone, [Row((3, 4, 5), 1, "row")], STEPS, initial=prompt))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_nothing_of_training_mode_is_remembered(family: str) -> None:
    model, backbone, prompt = made(family)
    expected = backbone.logits(prompt, IDS)
    model.train()
    with pytest.raises(UnsupportedError):
        backbone.compile(prompt.replaced([prompt.embeddings + 1]))
    model.eval()
    assert torch.equal(backbone.logits(prompt, IDS), expected)


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 2}]
)
def test_a_model_that_was_compiled_in_place_reads_its_prompt(options: dict[str, Any]) -> None:
    model, backbone, prompt = made()
    expected = backbone.generate(prompt, IDS, max_new_tokens=4, **options)
    model.compile(backend="eager")
    assert torch.equal(backbone.generate(prompt, IDS, max_new_tokens=4, **options), expected)
    assert torch.equal(backbone.logits(prompt, IDS), Backbone(model).logits(prompt, IDS))
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "bamba", "t5"])
def test_a_prefix_that_is_held_is_of_the_dtype_that_the_model_has_now(
    family: str, dtype: torch.dtype
) -> None:
    build = seq2seq_models.build if family == "t5" else tiny_models.build
    model = build(family).to(torch.float32)
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 4))
    held = backbone.compile(prompt)
    model.to(dtype)
    expected = backbone.logits(prompt, IDS)
    assert backbone.logits(held, IDS).dtype == expected.dtype
    torch.testing.assert_close(backbone.logits(held, IDS), expected, rtol=0.05, atol=0.3)
    both = backbone.generate([held, prompt], IDS.repeat(2, 1), max_new_tokens=2)
    assert len(both) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_backbone_is_one_of_its_own(copied: Callable[[Any], Any]) -> None:
    model, backbone, prompt = made()
    expected = backbone.logits(prompt, IDS)
    other = copied(backbone)
    assert torch.equal(other.logits(prompt, IDS), expected)
    merged(other.model)
    assert torch.equal(other.logits(prompt, IDS), Backbone(other.model).logits(prompt, IDS))
    assert torch.equal(backbone.logits(prompt, IDS), expected)
