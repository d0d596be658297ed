"""Prompts survive their files: bit for bit here, and token for token between foreword and PEFT."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import peft
import pytest
import tiny_models
import torch
from contract import ROWS, padded
from oracle import given_cache
from torch import Tensor
from transformers import DynamicCache

from foreword import Backbone, SoftPrompt
from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.prompt import stored_prompt

pytestmark = [
    # PEFT asks transformers by old names whether it checkpoints and what it has cached, and warns
    # of every pass with position ids, right ones too.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning:peft"),
]

NUM_NEW = 8
NUM_VIRTUAL = 5
GREEDY: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}
IDS = tiny_models.ids(7)
FACTS = {
    "base": {"name": "some/base", "revision": "main"},
    "metrics": {"step": 3},
    "note": [1, "x"],
}
# PEFT keeps every prompt in float32, which a float64 model can tell.
ROUNDED = 1e-4


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep PEFT from looking for the base's configuration on the Hub when it saves."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def prompt_of(model: Any, form: str, dtype: torch.dtype = torch.float32) -> SoftPrompt:
    """Return a random prompt whose values are exact in `dtype`."""
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, NUM_VIRTUAL).to(dtype))
    if form == "embeddings":
        return prompt
    states = Backbone(model).compile(prompt).key_values
    return SoftPrompt.from_key_values([(k.to(dtype), v.to(dtype)) for k, v in states])


def peft_logits(model: Any, ids: Tensor) -> Tensor:
    """Return PEFT's logits `[T, V]` of one unpadded row, without those of virtual tokens."""
    mask = torch.ones(1, len(ids), dtype=torch.long)
    # With gradients, as when PEFT saves: torch's LSTM rounds differently without.
    return model(input_ids=ids[None], attention_mask=mask).logits[0, -len(ids) :].detach()


def peft_greedy(model: Any, ids: Tensor) -> list[int]:
    """Return the ids that PEFT's own forward pass says after a row, everything computed again.

    Its `generate` is not right with every release of transformers.
    """
    said = ids
    for _ in range(NUM_NEW):
        said = torch.cat([said, peft_logits(model, said)[-1].argmax()[None]])
    return said[len(ids) :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_a_saved_prompt_loads_bit_for_bit(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    saved = prompt_of(tiny_models.shared("llama"), form, dtype)
    saved.facts = dict(FACTS)
    saved.save(tmp_path)
    loaded = SoftPrompt.load(tmp_path)
    assert loaded.form == form and loaded.content_hash == saved.content_hash
    for mine, theirs in zip(loaded.tensors, saved.tensors, strict=True):
        assert mine.dtype == dtype and torch.equal(mine, theirs)
    assert FACTS.items() <= loaded.facts.items()


def test_a_loaded_prompt_is_saved_again_the_same(tmp_path: Path) -> None:
    first = SoftPrompt.from_embeddings(torch.randn(3, 8), facts=FACTS)
    first.save(tmp_path / "first")
    SoftPrompt.load(tmp_path / "first").save(tmp_path / "second")
    assert (
        stored_prompt.read(tmp_path / "second").config
        == stored_prompt.read(tmp_path / "first").config
    )
    assert (
        stored_prompt.read(tmp_path / "second").facts
        == stored_prompt.read(tmp_path / "first").facts
    )
    assert SoftPrompt.load(tmp_path / "second").content_hash == first.content_hash


def test_a_saved_prefix_loads_as_its_keys_and_values(tmp_path: Path) -> None:
    backbone = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4), facts=FACTS)
    prefix = backbone.compile(prompt)
    prefix.save(tmp_path)
    loaded = SoftPrompt.load(tmp_path)
    assert loaded.form == "key_values" and loaded.facts["note"] == FACTS["note"]
    # It is a state of the model that computed it, whatever the prompt's file says.
    assert loaded.facts["base"]["name"] == backbone.name
    assert loaded.facts["base"]["fingerprint"] == backbone.fingerprint()
    for mine, theirs in zip(loaded.key_values, prefix.key_values, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "PREFIX_TUNING", "CARTRIDGE"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])
def test_peft_reads_what_foreword_wrote(tmp_path: Path, family: str, kind: str) -> None:
    model = tiny_models.build(family)
    prompt = prompt_of(model, "key_values" if kind == "PREFIX_TUNING" else "embeddings")
    (Backbone(model).compile(prompt) if kind == "CARTRIDGE" else prompt).save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_models.build(family), tmp_path)
    assert theirs.active_peft_config.peft_type == kind
    assert peft_greedy(theirs, IDS) == oracle.greedy(model, prompt, IDS, NUM_NEW)
    expected = oracle.row_logits(model, prompt, IDS)
    torch.testing.assert_close(peft_logits(theirs, IDS), expected, rtol=0, atol=ROUNDED)


@pytest.mark.skipif(
    GENERATE_CACHE == "cache", reason="stock PEFT loses a prefix with this release of transformers"
)
def test_a_saved_prefix_makes_peft_right_in_a_padded_batch(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    prompt = prompt_of(model, "embeddings")
    Backbone(model).compile(prompt).save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_models.build("llama"), tmp_path)
    ids, mask = padded(ROWS, "left")
    output = theirs.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    for row, new in zip(ROWS, output[:, ids.shape[1] :].tolist(), strict=True):
        assert new == oracle.greedy(model, prompt, row, NUM_NEW)


COMMON = {"task_type": "CAUSAL_LM", "num_virtual_tokens": NUM_VIRTUAL}
PEFT_CONFIGS: dict[str, Callable[[], Any]] = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**COMMON),
    "p-tuning, MLP": lambda: peft.PromptEncoderConfig(**COMMON),
    "p-tuning, LSTM": lambda: peft.PromptEncoderConfig(
        **COMMON, encoder_reparameterization_type="LSTM"
    ),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**COMMON),
    "prefix tuning, projected": lambda: peft.PrefixTuningConfig(
        **COMMON, prefix_projection=True, encoder_hidden_size=16
    ),
    "cartridge": lambda: peft.CartridgeConfig(**COMMON, num_frozen_tokens=2),
    "CPT": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[3, 4, 5, 6, 7],
        cpt_mask=[1] * 5,
        cpt_tokens_type_mask=[1, 2, 3, 4, 4],
    ),
}


def _written_by_peft(model: Any, method: str, directory: Path) -> Any:
    """Save an untrained adapter of a PEFT method and return PEFT's own model with it."""
    torch.manual_seed(0)
    theirs = peft.get_peft_model(model, PEFT_CONFIGS[method]()).eval()
    if method == "CPT":  # it starts as the plain embeddings of its tokens
        torch.nn.init.normal_(theirs.prompt_encoder["default"].delta_embedding.weight)
    theirs.save_pretrained(directory)
    return theirs


@pytest.mark.parametrize("method", PEFT_CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_foreword_reads_what_peft_wrote(tmp_path: Path, family: str, method: str) -> None:
    theirs = _written_by_peft(tiny_models.build(family), method, tmp_path)
    backbone, prompt = Backbone(tiny_models.build(family)), SoftPrompt.load(tmp_path)
    assert prompt.num_virtual_tokens == NUM_VIRTUAL
    with torch.no_grad():
        logits = backbone.logits(prompt, IDS[None])[0]
    torch.testing.assert_close(logits, peft_logits(theirs, IDS), rtol=0, atol=1e-9)
    ours = backbone.generate(prompt, IDS[None], **GREEDY)
    assert ours[0, len(IDS) :].tolist() == peft_greedy(theirs, IDS)


# PEFT looks for the named base's vocabulary, and this base does not exist.
@pytest.mark.filterwarnings("ignore:Could not find a config file in some/base:UserWarning")
def test_a_foreign_prompt_says_which_base_and_method_it_names(tmp_path: Path) -> None:
    model = tiny_models.build("llama")
    model.name_or_path = "some/base"
    _written_by_peft(model, "p-tuning, MLP", tmp_path)
    facts = SoftPrompt.load(tmp_path).facts
    assert facts["base"]["name"] == "some/base" and facts["method"] == "P_TUNING"


def test_a_prompt_names_its_base_to_peft(tmp_path: Path) -> None:
    SoftPrompt.from_embeddings(torch.ones(2, 4), facts=FACTS).save(tmp_path)
    config = peft.PeftConfig.from_pretrained(tmp_path)
    assert config.base_model_name_or_path == "some/base" and config.revision == "main"


TEXT = tiny_models.ids(20, seed=8)  # longer than the sliding window of 8


def _text_as_embeddings(model: Any) -> SoftPrompt:
    return SoftPrompt.from_embeddings(Backbone(model).embed(TEXT).detach())


def _text_as_states(model: Any) -> SoftPrompt:
    cache = DynamicCache()  # without a configuration it keeps what a window would drop
    with torch.no_grad():
        model(input_ids=TEXT[None], **given_cache(model, cache))
    return SoftPrompt.from_key_values([(layer.keys[0], layer.values[0]) for layer in cache.layers])


@pytest.mark.parametrize("make", [_text_as_embeddings, _text_as_states])
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "qwen3", "gpt2"])
def test_a_prompt_of_a_text_equals_the_text(family: str, make: Callable[[Any], SoftPrompt]) -> None:
    model = tiny_models.shared(family)
    with torch.no_grad():
        logits = Backbone(model).logits(make(model), IDS[None])[0]
        expected = model(input_ids=torch.cat([TEXT, IDS])[None], use_cache=False).logits[0]
    torch.testing.assert_close(logits, expected[len(TEXT) :], rtol=0, atol=1e-9)


def test_a_prefix_says_what_its_own_prompt_says() -> None:
    """Also where a prompt of the same values was compiled before; they share the states."""
    backbone = Backbone(tiny_models.shared("llama"))
    values = tiny_models.embeddings(backbone.model, NUM_VIRTUAL)
    prompts = [SoftPrompt.from_embeddings(values, facts={"note": note}) for note in "ab"]
    first, second = map(backbone.compile, prompts)
    assert [first.facts["note"], second.facts["note"]] == ["a", "b"]
    assert first.states is second.states and backbone.compile(prompts[0]) is first
    layer = backbone.batch_of(prompts, 2).layer(0)
    assert layer[0].stride(0) == 0, "one state for both rows"
