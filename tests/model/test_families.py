"""What families differ in is read off the model, and what cannot be exact is refused by name."""

import oracle
import pytest
import tiny_models
import tiny_tokenizer  # noqa: F401
import torch
import transformers

from foreword import Backbone, SoftPrompt
from foreword.errors import MismatchError, UnsupportedError
from foreword.model import capabilities
from foreword.model.capabilities import AttentionPattern, inspect_model

IDS = tiny_models.ids(6)[None]
GREEDY = {"max_new_tokens": 2, "do_sample": False}


def prompt_for(backbone: Backbone, num_virtual: int = 6) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, num_virtual))


def logits_error(backbone: Backbone, prompt: SoftPrompt, row: torch.Tensor) -> float:
    expected = oracle.row_logits(backbone.model, prompt, row)
    with torch.no_grad():
        return float((backbone.logits(prompt, row[None])[0] - expected).abs().max())


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ["full_attention"] * 3),
        ("mistral", ["sliding_attention"] * 3),
        ("llama4", ["chunked_attention", "full_attention", "chunked_attention"]),
        ("gemma4", ["sliding_attention", "full_attention", "sliding_attention"]),
    ],
)
def test_each_layers_reach_is_read_off_the_model(family: str, expected: list[str]) -> None:
    found = inspect_model(tiny_models.shared(family))
    assert [reach.name for reach in found.attention_patterns] == expected
    assert found.num_layers == 3, "layers without keys of their own are not counted"


def test_a_window_that_the_familys_code_never_reads_is_none() -> None:
    backbone = Backbone(tiny_models.build("llama", sliding_window=4))
    assert set(backbone.capabilities.attention_patterns) == {AttentionPattern("full_attention")}
    assert logits_error(backbone, prompt_for(backbone), IDS[0]) < 1e-9


def test_the_window_of_a_derived_class_is_kept() -> None:
    # As if it were defined in another file, which says nothing of windows.
    parents = (transformers.MistralForCausalLM,)
    derived = type("Derived", parents, {"__module__": "tiny_tokenizer"})
    model = derived(tiny_models.CONFIGS["mistral"]()).eval()
    assert set(inspect_model(model).attention_patterns) == {
        AttentionPattern("sliding_attention", 8)
    }


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_family_passes_the_self_test(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "TESTED_MODEL_TYPES", frozenset())
    assert not Backbone(tiny_models.shared(family)).capabilities.is_tested


def test_an_unknown_family_of_known_parts_is_exact() -> None:
    torch.manual_seed(0)
    config = transformers.Olmo2Config(**tiny_models.COMMON)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    backbone = Backbone(model)
    assert not backbone.capabilities.is_tested
    assert logits_error(backbone, prompt_for(backbone), IDS[0]) < 1e-9


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_a_virtual_token_takes_the_per_layer_embedding_of_padding(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    padding = torch.full((6,), backbone.model.config.pad_token_id)
    prompt = SoftPrompt.from_embeddings(backbone.embed(padding).detach())
    text = oracle.row_logits(backbone.model, None, torch.cat([padding, IDS[0]]))[6:]
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits(prompt, IDS)[0], text, rtol=0, atol=1e-9)


def test_a_prompt_is_bound_to_the_id_of_its_virtual_tokens() -> None:
    model = tiny_models.build("gemma4")
    facts = {"base": {"name": "tiny", "fingerprint": Backbone(model).fingerprint()}}
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3), facts=facts)
    Backbone(model).compile(prompt)
    model.config.pad_token_id = 3
    with pytest.raises(MismatchError, match="differ in virtual_id"):
        Backbone(model).compile(prompt)


def test_embeddings_instead_of_ids_are_refused_where_ids_are_looked_up() -> None:
    backbone = Backbone(tiny_models.shared("gemma4"))
    with pytest.raises(UnsupportedError, match="give input_ids"):
        backbone.generate(
            prompt_for(backbone), inputs_embeds=backbone.embed(IDS).detach(), **GREEDY
        )


def test_attention_scaled_by_slot_is_exact_or_refused() -> None:
    backbone = Backbone(tiny_models.build("llama4", floor_scale=8))
    prompt = prompt_for(backbone)
    assert logits_error(backbone, prompt, IDS[0]) < tiny_models.TOLERANCES["llama4"]
    rows = IDS.expand(2, -1)
    right = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        backbone.logits(prompt, rows, right)  # padding behind a row moves nothing
    with pytest.raises(UnsupportedError, match="one row at a time"):
        backbone.logits(prompt, rows, right.flip(1))
    with pytest.raises(UnsupportedError, match="one row at a time"):
        backbone.generate([prompt, None], rows, **GREEDY)


def test_drafts_of_prediction_modules_are_refused() -> None:
    backbone = Backbone(tiny_models.shared("deepseek_v3"))
    with pytest.raises(UnsupportedError, match="use_mtp"):
        backbone.generate(prompt_for(backbone), IDS, use_mtp=True, **GREEDY)


def test_states_of_another_shape_are_refused_by_layer() -> None:
    one, other = (Backbone(tiny_models.shared(family)) for family in ("gemma4", "gemma4_moe"))
    prefix = one.compile(prompt_for(one))
    with pytest.raises(MismatchError, match="layer 1: the prompt has keys of 2 heads of size 16"):
        other.generate(prefix, IDS, **GREEDY)
    longer = Backbone(tiny_models.build("gemma4", num_kv_shared_layers=1))
    with pytest.raises(MismatchError, match="the prompt has 3 layers"):
        longer.generate(prefix, IDS, **GREEDY)


@pytest.mark.parametrize("family", tiny_models.RECURRENT)
def test_rows_of_several_lengths_are_read_one_length_at_a_time_and_it_is_said_once(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = Backbone(tiny_models.build(family))
    rows, mask = IDS.expand(2, -1), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    for _ in range(2):
        backbone.generate(prompt_for(backbone), rows, mask, **GREEDY)
    said = [record.message for record in caplog.records if record.name == "foreword"]
    assert len(said) == 1 and "one length at a time" in said[0]


@pytest.mark.parametrize("family", ["qwen3_next", "mamba2", "lfm2"])
def test_the_state_of_a_single_token_pass_carries_gradient(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    states = backbone.compile(prompt_for(backbone)).states
    prompt = SoftPrompt.from_states(states).trainable(torch.float64)
    backbone.logits(prompt, IDS[:, :1]).square().sum().backward()
    assert all(bool(t.grad.isfinite().all()) for t in prompt.tensors if t.grad is not None)
    assert sum(float(t.grad.norm()) > 0 for t in prompt.tensors if t.grad is not None) > 2


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "granite", "falcon_h1", "granitemoehybrid"])
def test_a_prompt_is_in_the_space_that_scaled_embeddings_have(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    assert text_error(backbone, IDS[0]) < tiny_models.TOLERANCES.get(family, 1e-9)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "olmo3", "gpt_oss", "llama4"])
def test_a_prompt_longer_than_the_window_is_exact(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    tolerance = tiny_models.TOLERANCES.get(family, 1e-9)
    prompt, row = prompt_for(backbone, 19), tiny_models.ids(7)
    assert logits_error(backbone, prompt, row) < tolerance
    output = backbone.generate(prompt, row[None], max_new_tokens=6, do_sample=False)
    assert output[0, 7:].tolist() == oracle.greedy(backbone.model, prompt, row, 6)
    assert text_error(backbone, tiny_models.ids(19)) < tolerance, "started from a longer text"


def text_error(backbone: Backbone, ids: torch.Tensor) -> float:
    """Return how much logits behind a prompt of a text's embeddings differ from those behind it."""
    prompt, row = SoftPrompt.from_embeddings(backbone.embed(ids).detach()), tiny_models.ids(4)
    expected = oracle.row_logits(backbone.model, None, torch.cat([ids, row]))[len(ids) :]
    with torch.no_grad():
        return float((backbone.logits(prompt, row[None])[0] - expected).abs().max())


def test_attentions_of_rows_read_apart_are_refused() -> None:
    backbone = Backbone(tiny_models.shared("bamba"))
    mask = torch.tensor([[1] * 6, [0, 1, 1, 1, 1, 1]])
    with pytest.raises(UnsupportedError, match="one length at a time"):
        backbone.generate(
            None, IDS.expand(2, -1), mask, **GREEDY, output_hidden_states=True,
            return_dict_in_generate=True,
        )  # fmt: skip


@pytest.mark.parametrize("option", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": None}])
def test_candidates_are_refused_where_states_cannot_forget_them(option: dict[str, object]) -> None:
    backbone = Backbone(tiny_models.shared("lfm2"))
    option = {name: value or tiny_models.shared("lfm2") for name, value in option.items()}
    with pytest.raises(UnsupportedError, match="cannot forget rejected candidates"):
        backbone.generate(prompt_for(backbone), IDS, **GREEDY, **option)
