"""Classes that no test covers prove themselves: kinds that once were wrong, and the proof."""

import ast
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from packaging.version import Version

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.chat import left_padded
from foreword.compat import releases
from foreword.engine.engine import Engine
from foreword.engine.request import PromptSource, Request
from foreword.errors import UnsupportedError
from foreword.model.capabilities import inspect_model
from foreword.prompt.prefix import PrefixBatch
from foreword.verification import proof

V = 97
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "vocab_size": V, "max_position_embeddings": 64, "is_decoder": True, "bos_token_id": 0,
    "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BART = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "vocab_size": V, "max_position_embeddings": 64, "pad_token_id": 1, "is_decoder": True,
    "is_encoder_decoder": False,
}  # fmt: skip

# Positions that begin after the padding's, a head that runs the decoder's own decoder, distances
# and positions by slot, windows that are never read, embeddings that are changed in place.
KINDS: dict[str, Callable[[], Any]] = {
    "roberta": lambda: transformers.RobertaForCausalLM(transformers.RobertaConfig(**BERT)),
    "xmod": lambda: transformers.XmodForCausalLM(
        transformers.XmodConfig(**BERT, default_language="en_XX")
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48, vocab_size=V,
            max_position_embeddings=64, word_embed_proj_dim=32,
        )
    ),
    "bart's decoder": lambda: transformers.BartForCausalLM(transformers.BartConfig(**BART)),
    "mbart's decoder": lambda: transformers.MBartForCausalLM(transformers.MBartConfig(**BART)),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=V)
    ),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=V)
    ),
    "roformer": lambda: transformers.RoFormerForCausalLM(
        transformers.RoFormerConfig(**{**BERT, "embedding_size": 32})
    ),
    "falcon with alibi": lambda: transformers.FalconForCausalLM(
        transformers.FalconConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=V, alibi=True
        )
    ),
    "gpt neo": lambda: transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            hidden_size=32, num_layers=2, num_heads=4, vocab_size=V, window_size=6,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
        )
    ),
    "ctrl": lambda: transformers.CTRLLMHeadModel(
        transformers.CTRLConfig(n_embd=32, n_layer=2, n_head=4, dff=48, vocab_size=V)
    ),
}  # fmt: skip


def build(kind: str) -> Any:
    torch.manual_seed(0)
    model = KINDS[kind]().to(torch.float64).eval()
    for name, tensor in model.named_parameters():
        if tensor.ndim == 2:
            scale = 1.0 if "embed" in name or "wte" in name else 1.5 / tensor.shape[1] ** 0.5
            torch.nn.init.normal_(tensor, 0, scale)
    model.generation_config.forced_eos_token_id = None
    return model.requires_grad_(False)


def expected(model: Any, prompt: SoftPrompt | None, row: list[int]) -> torch.Tensor:
    """Return the logits `[T, V]` of one row, by the model's own forward pass alone."""
    text = model.get_input_embeddings()(torch.tensor(row))
    virtual = text[:0] if prompt is None else prompt.embeddings.detach()
    whole = torch.cat([virtual, text])[None].clone()
    return model(inputs_embeds=whole, use_cache=False).logits[0, len(virtual) :]


def greedy(model: Any, prompt: SoftPrompt | None, row: list[int], num_new: int) -> list[int]:
    said: list[int] = []
    for _ in range(num_new):
        said.append(int(expected(model, prompt, row + said)[-1].argmax()))
    return said


def prompts_for(model: Any) -> list[SoftPrompt | None]:
    return [
        SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5)),
        SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3, seed=7)),
        None,
    ]


ROWS = [[5, 9, 31, 7, 8, 60, 44, 12], [17, 3], [90, 22, 41, 11, 6]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_once_was_wrong_equals_its_own_forward_pass(kind: str) -> None:
    model = build(kind)
    backbone, prompts = Backbone(model), prompts_for(model)
    ids, mask = left_padded(ROWS, 4)
    with torch.no_grad():
        found = backbone.logits(prompts, ids, mask)
    for row, prompt, logits, seen in zip(ROWS, prompts, found, mask.bool(), strict=True):
        torch.testing.assert_close(logits[seen], expected(model, prompt, row), rtol=0, atol=1e-5)
    said = backbone.generate(prompts, ids, mask, max_new_tokens=6, do_sample=False, pad_token_id=4)
    wished = [greedy(model, prompt, row, 6) for prompt, row in zip(prompts, ROWS, strict=True)]
    ends = model.generation_config.eos_token_id
    for one, wish in zip(said[:, ids.shape[1] :].tolist(), wished, strict=True):
        length = wish.index(ends) + 1 if ends in wish else len(wish)
        assert one[:length] == wish[:length]


@pytest.mark.parametrize("kind", ["bloom", "opt", "roberta"])
def test_the_engine_serves_such_a_kind(kind: str) -> None:
    model = build(kind)
    backbone, prompts = Backbone(model), prompts_for(model)
    wished = [greedy(model, prompt, row, 4) for prompt, row in zip(prompts, ROWS, strict=True)]
    engine = Engine(backbone)
    sources = [None if prompt is None else PromptSource.of(prompt) for prompt in prompts]
    handles = [
        engine.submit(Request(tuple(row), source, max_new_tokens=4))
        for source, row in zip(sources, ROWS, strict=True)
    ]
    engine.run()
    assert [handle.ids for handle in handles] == wished


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("kind", ["bloom", "falcon with alibi", "opt"])
def test_such_a_kind_proposes_candidates(kind: str, is_loaded: bool) -> None:
    model = build(kind)
    backbone, prompts = Backbone(model), prompts_for(model)
    assistant = Backbone(build(kind)) if is_loaded else build(kind).requires_grad_()
    for prompt, row in zip(prompts, ROWS, strict=True):
        found = backbone.generate(
            prompt, torch.tensor([row]), max_new_tokens=4, do_sample=False, eos_token_id=None,
            assistant_model=assistant,
        )  # fmt: skip
        assert found[0, len(row) :].tolist() == greedy(model, prompt, row, 4)
    assert is_loaded or all(one.requires_grad for one in assistant.parameters())


@pytest.mark.parametrize("kind", ["bloom", "ctrl", "roberta"])
def test_gradients_reach_the_prompt_and_nothing_writes_into_it(kind: str) -> None:
    model = build(kind)
    start = tiny_models.embeddings(model, 5)
    own, other = start.clone().requires_grad_(), start.clone().requires_grad_()
    ids, mask = left_padded(ROWS[:2], 4)
    prompt = SoftPrompt.from_embeddings(own)
    found = Backbone(model).logits(prompt, ids, mask)
    sum(found[row][seen].pow(2).sum() for row, seen in enumerate(mask.bool())).backward()
    for row in ROWS[:2]:
        text = model.get_input_embeddings()(torch.tensor(row))
        whole = torch.cat([other, text])[None] * 1
        model(inputs_embeds=whole, use_cache=False).logits[0, 5:].pow(2).sum().backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(own.detach(), start)


def test_training_on_a_model_that_counts_slots_hides_nothing() -> None:
    backbone = Backbone(build("bloom"))
    rows = [Row(tuple(range(3 + i, 9 + i)), 2, source=f"row {i}") for i in range(40)]
    *_, last = train(backbone, rows, TrainConfig(num_steps=2, seed=0))
    assert last.prompt is not None and "context-tuning" not in str(last.prompt.facts["method"])
    with pytest.raises(UnsupportedError, match="context-tuning hides a row's own demonstration"):
        list(train(backbone, rows, TrainConfig(num_steps=2, method="context-tuning")))
    prefix = backbone.compile(SoftPrompt.from_embeddings(torch.randn(3, 32)))
    batch = PrefixBatch((prefix, prefix), torch.tensor([[True, False, False]]).repeat(2, 1))
    for mask in (torch.ones(2, 4).long(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])):
        with pytest.raises(UnsupportedError, match="hides none of them"):
            backbone.hidden(batch, torch.full((2, 4), 5), mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_class_that_is_wrong_is_refused_in_any_precision(dtype: torch.dtype) -> None:
    config = transformers.JambaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
        expert_layer_period=2, expert_layer_offset=1, num_experts=2, mamba_d_state=8,
        use_mamba_kernels=False,
    )  # fmt: skip
    model = transformers.JambaForCausalLM(config).to(dtype)
    with pytest.raises(UnsupportedError, match=r"jamba: .*recurrent state"):
        Backbone(model)


@pytest.mark.parametrize("error", [IndexError, KeyError, AssertionError, ZeroDivisionError])
def test_whatever_a_class_raises_is_a_refusal(error: type[Exception]) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> None:
        raise error("of its own")

    parents = (transformers.LlamaForCausalLM,)
    kind = type("Raising", parents, {"forward": forward, "__module__": "tiny_tokenizer"})
    model = kind(tiny_models.CONFIGS["llama"]())
    model.config.model_type = "raising"
    with pytest.raises(UnsupportedError, match=f"raises {error.__name__}"):
        Backbone(model)


def test_a_proof_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(proof, "_known", {})
    assert Backbone(build("bloom")).capabilities.counts_slots
    kept = list((tmp_path / "proofs").iterdir())
    assert len(kept) == 1

    def never(*args: Any) -> None:
        raise AssertionError("proved twice")

    monkeypatch.setattr(proof, "examine", never)
    assert Backbone(build("bloom")).capabilities.counts_slots, "in this process"
    monkeypatch.setattr(proof, "_known", {})
    assert Backbone(build("bloom")).capabilities.counts_slots, "in another process"
    kept[0].write_text("{")
    monkeypatch.setattr(proof, "_known", {})
    with pytest.raises(AssertionError, match="proved twice"):
        Backbone(build("bloom"))


def test_options_are_proved_apart() -> None:
    plain = transformers.FalconForCausalLM(
        transformers.FalconConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=V
        )
    )
    assert not Backbone(plain).capabilities.counts_slots
    assert Backbone(build("falcon with alibi")).capabilities.counts_slots


def test_on_a_newer_release_tested_families_prove_themselves_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(proof, "_known", {})
    newer = Version(f"{releases.NEWEST_TRANSFORMERS.major + 1}.0")
    monkeypatch.setattr(releases, "installed_transformers", lambda: newer)
    asked: list[str] = []
    real = proof.examine

    def examine(model: Any, *args: Any) -> Any:
        asked.append(type(model).__name__)
        return real(model, *args)

    monkeypatch.setattr(proof, "examine", examine)
    backbone = Backbone(tiny_models.shared("llama"))
    assert asked == ["LlamaForCausalLM"] and not backbone.capabilities.is_tested

    # As if that release had renamed what a forward pass takes: the prompt is lost without an error.
    def forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        return transformers.LlamaForCausalLM.forward(
            self, kwargs.get("input_ids"), inputs_embeds=kwargs.get("inputs_embeds")
        )

    parents = (transformers.LlamaForCausalLM,)
    kind = type("Renamed", parents, {"forward": forget, "__module__": "tiny_tokenizer"})
    with pytest.raises(UnsupportedError, match="Renamed is not exact behind a prompt"):
        Backbone(kind(tiny_models.CONFIGS["llama"]()))


def test_where_no_twin_can_be_built_the_model_itself_is_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*args: Any) -> None:
        raise ValueError("no small form")

    monkeypatch.setattr(proof, "make_twin", never)
    model = build("roberta")
    capabilities = inspect_model(model)
    with caplog.at_level(logging.DEBUG, "foreword"):
        verdict = proof.examine(model, capabilities, Backbone.unproved)
    assert (verdict.variant, verdict.place) == ("as configured", "model")
    assert "no small form" in caplog.text
    half = build("mpt").to(torch.bfloat16)
    verdict = proof.examine(half, inspect_model(half), Backbone.unproved)
    assert verdict.variant == "by slot", "rounding is told from a moved position"


def test_a_proof_is_of_all_code_that_it_runs() -> None:
    """Every module that a backbone imports is a part of what a remembered proof is of."""
    package = Path(proof.__file__).parents[1]
    seen = {path.relative_to(package).as_posix() for path in proof.code_files()}
    for path in seen:
        tree = ast.parse((package / path).read_text())
        modules = {
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foreword.")
        }
        rooms = {name.split(".")[1] for name in modules}
        assert rooms - {"errors", "config", "storage", "os_calls", "lazy", "hub_files"} <= {
            one.removesuffix(".py").split("/")[0] for one in seen
        }
