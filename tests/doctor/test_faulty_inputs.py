"""The doctor says what is wrong with a base, a tokenizer or a prompt, and blames nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from foreword import Backbone, SoftPrompt, doctor
from foreword.cli import app
from foreword.doctor import Finding
from foreword.doctor.selftest import REPORT

NUM_NEW = 4
WITHOUT_UNKNOWN: Any = models.WordLevel({"xx": 0, "yy": 1})
DROPS_UNKNOWN: Any = models.BPE({"xx": 0}, [])


def base(**changes: Any) -> Any:
    return tiny_models.build("llama", dtype=torch.float32, **changes)


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def looked_at(backbone: Backbone, prompt: SoftPrompt | None = None) -> dict[str, Finding]:
    findings = doctor.self_test(backbone, prompt, num_new=NUM_NEW)
    assert all(finding.cure != REPORT for finding in findings), findings
    return named(findings)


def of_model(kind: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(kind))


@pytest.mark.parametrize(
    ("tokenizer", "status", "says"),
    [
        (of_model(WITHOUT_UNKNOWN), "wrong", "cannot read 'A soft prompt stands"),
        (tiny_tokenizer(), "wrong", "expected an id from 0 to 59; it is of another tokenizer"),
        (of_model(DROPS_UNKNOWN), "warning", "finds 0 tokens in a sentence of English"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_finding(
    tokenizer: Any, status: str, says: str
) -> None:
    found = looked_at(Backbone(base(vocab_size=60), tokenizer))
    own = found.pop("tokenizer")
    assert own.status == status and says in own.detail and "read fixed ids" in own.detail
    assert len(found) == 7 and {one.status for one in found.values()} == {"ok"}, found


def test_a_tokenizer_that_fits_is_said() -> None:
    tokenizer = tiny_tokenizer()
    found = looked_at(Backbone(base(vocab_size=len(tokenizer)), tokenizer))["tokenizer"]
    assert found.status == "ok" and "which the model all has" in found.detail


def with_nan(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    return model


def with_zeros(model: Any) -> Any:
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    return model


def with_large(model: Any) -> Any:
    with torch.no_grad():
        model.lm_head.weight.fill_(6e4)
    return model.half()


FAULTY: dict[str, tuple[Callable[[Any], Any], str]] = {
    "not a number": (with_nan, "weights are not finite: 1 of 1,536 of the numbers of model.layers."
                               "1.mlp.up_proj.weight are not"),
    "zeros": (with_zeros, "every id the same logit: "),
    "overflow": (with_large, "of the bare model's logits are not finite, in float16"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTY)
def test_a_base_that_is_not_fit_is_the_only_finding(fault: str) -> None:
    spoil, says = FAULTY[fault]
    found = looked_at(Backbone(spoil(base())))
    assert list(found) == ["numbers"] and found["numbers"].status == "wrong", found
    assert says in found["numbers"].detail and found["numbers"].detail.endswith("was not tested")
    assert found["numbers"].cure and "--learning-rate" not in found["numbers"].cure


def test_a_base_with_an_encoder_is_looked_at_alike() -> None:
    model = seq2seq_models.build("t5")
    with torch.no_grad():
        model.decoder.block[0].layer[0].SelfAttention.q.weight[0, 0] = torch.inf
    found = looked_at(Backbone(model))
    assert list(found) == ["numbers"] and "decoder.block.0" in found["numbers"].detail
    assert looked_at(Backbone(seq2seq_models.build("t5")))["numbers"].status == "ok"


def test_a_weight_that_no_logit_needs_is_said() -> None:
    model = base()
    model.unused = torch.nn.Linear(2, 2)
    with torch.no_grad():
        model.unused.weight[0, 0] = torch.inf
    found = looked_at(Backbone(model))
    assert found["numbers"].status == "wrong" and "unused.weight" in found["numbers"].detail


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_a_prompt_whose_values_are_too_large_is_named(form: str) -> None:
    backbone = Backbone(base())
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    prompt = SoftPrompt.from_embeddings(values)
    if form == "key_values":
        pairs = backbone.compile(prompt).key_values
        prompt = SoftPrompt.from_key_values([(k * 3e37, v * 3e37) for k, v in pairs])
    else:
        backbone.model.model.layers[0].input_layernorm.forward = lambda hidden: hidden**9
        prompt = SoftPrompt.from_embeddings(values * 1e30)
    found = looked_at(backbone, prompt)
    assert list(found) == ["numbers"] and found["numbers"].status == "wrong"
    said = found["numbers"].detail
    assert "behind the prompt" in said and "the prompt holds numbers up to" in said
    assert "train the prompt again" in str(found["numbers"].cure)


def test_a_prompt_far_beyond_the_embeddings_is_a_warning() -> None:
    prompt = SoftPrompt.from_embeddings(torch.ones(3, 32) * 1e9)
    found = named(doctor.self_test(Backbone(base()), prompt, num_new=NUM_NEW))["numbers"]
    assert found.status == "warning" and "holds numbers up to 1e+09, the embeddings" in found.detail


def test_stock_peft_is_not_blamed_for_the_base(tmp_path: Path) -> None:
    SoftPrompt.from_embeddings(torch.ones(3, 32)).save(tmp_path)
    [found] = doctor.peft_findings(Backbone(with_nan(base())), tmp_path)
    assert found.status == "warning" and found.detail.startswith("not measured: ")


@pytest.mark.parametrize(
    ("family", "number", "status"),
    [
        ("llama", 300, "warning"), ("llama", 256, "warning"), ("llama", 255, "ok"),
        ("gpt2", 300, "wrong"), ("gpt2", 3, "ok"),
    ],
)  # fmt: skip
def test_a_prompt_is_held_against_the_context(family: str, number: int, status: str) -> None:
    backbone = Backbone(tiny_models.build(family))
    prompt = SoftPrompt.from_embeddings(torch.zeros(number, backbone.capabilities.hidden_size))
    found = named(doctor.capabilities_findings(backbone, prompt))["context"]
    assert found.status == status, found
    assert f"{number} virtual tokens leave {max(0, 256 - number)}" in found.detail
    assert ("fewer virtual tokens than 256" in str(found.cure)) == (status != "ok")


def test_a_prompt_of_an_encoder_is_held_against_the_encoder() -> None:
    backbone = Backbone(seq2seq_models.build("bart"))
    encoder = backbone.capabilities.encoder
    assert encoder is not None and encoder.context_length is not None
    number = encoder.context_length + 1
    prompt = SoftPrompt.from_embeddings(torch.zeros(number, backbone.capabilities.hidden_size))
    found = named(doctor.capabilities_findings(backbone, prompt))["context"]
    assert found.status != "ok" and found.detail.endswith("leave 0 of the encoder")


def test_a_tokenizer_that_raises_ends_in_findings(tmp_path: Path) -> None:
    base(vocab_size=60).save_pretrained(tmp_path)
    of_model(WITHOUT_UNKNOWN).save_pretrained(tmp_path)
    result = CliRunner().invoke(app, ["doctor", "--json", "--model", str(tmp_path)])
    report = json.loads(result.stdout)
    assert result.exit_code == report["exit_status"] == 1 and report["error"] is None
    wrong = [one for one in report["findings"] if one["status"] == "wrong"]
    assert [one["name"] for one in wrong] == ["tokenizer"], wrong
