"""The doctor finds what is right, what is broken, and what stock PEFT does, on tiny models."""

import json
import logging
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import Backbone, SoftPrompt, doctor
from foreword.cli import app, options
from foreword.doctor import Finding, trials, versions
from foreword.doctor.peft_releases import Pair, measured_pairs, nearest_pair, release
from foreword.doctor.stock_peft import CASES
from foreword.errors import ArtifactError, InputError, MismatchError
from foreword.model import forward
from foreword.model.masks import Span, place

NUM_NEW = 6
BARE = "wrong: the bare model"  # a verdict on stock PEFT: the prompt was lost
VERDICT = rf"right|wrong|{BARE}|raises \w+"


def backbone_of(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Backbone:
    return Backbone(tiny_models.build(family, dtype=dtype, **changes))


def prompt_of(backbone: Backbone, form: str) -> SoftPrompt:
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))
    if form == "embeddings":
        return prompt
    return SoftPrompt.from_key_values(backbone.compile(prompt).key_values)


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def saved(prompt: SoftPrompt, directory: Path) -> Path:
    prompt.save(directory)
    return directory


def test_environment_names_what_is_installed() -> None:
    found = named(doctor.environment())
    assert list(found) == ["python", "torch", "transformers", "peft"]
    assert found["torch"].detail == torch.__version__
    assert doctor.exit_status(list(found.values())) == 0


def test_a_missing_package_is_wrong_and_has_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_installed", lambda package: None)
    found = named(doctor.environment())
    assert (found["torch"].status, found["peft"].status) == ("wrong", "ok")
    assert found["torch"].cure == "pip install 'torch>=2.9,<2.16'"


def test_a_release_outside_the_range_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_installed", lambda package: "4.57.1")
    found = named(doctor.environment())["transformers"]
    assert found.status == "wrong" and "4.57.1 is outside the tested range" in found.detail


def test_a_newer_release_of_transformers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_installed", lambda package: "6.0.1")
    found = named(doctor.environment())["transformers"]
    assert found.status == "warning" and "proves itself when it is loaded" in found.detail


def test_the_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    torch_range = f"torch>={versions.OLDEST_TORCH},<{versions.NEWEST_TORCH}"
    assert torch_range in project["project"]["dependencies"]
    assert project["project"]["requires-python"] == f">={versions.OLDEST_PYTHON}"


@pytest.mark.parametrize(
    ("peft", "transformers", "status", "says"),
    [
        ("0.11.1", "4.42.4", "wrong", "Cache only has 0 layers, attempted to access layer"),
        ("0.11.1", "4.41.2", "warning", "not measured"),
        ("0.12.0", "4.43.0", "wrong", "leaves the prompt out, without an error (peft #1969)"),
        ("0.13.0", "4.44.2", "warning", "not measured"),
        ("0.13.2", "4.45.1", "wrong", "leaves the prompt out, without an error (peft #2123)"),
        ("0.14.0", "4.48.3", "warning", "not measured"),
        ("0.21.2", "5.23.0", "warning", "5.23.0: prompt tuning is wrong without an exception"),
        ("0.21.9", "5.24.7", "warning", "5.24.7: prefix tuning answers as the bare model"),
        ("0.22.0", "5.25.0", "warning", "not measured; the nearest measured is PEFT 0.21.2 with"),
        ("0.21.2", "5.22.1", "warning", "nearest measured is PEFT 0.21.2 with transformers 5.20.0"),
        ("0.18.0", "5.24.0", "warning", "nearest measured is PEFT 0.19.1 with transformers 5.24.0"),
        (None, "5.23.0", "ok", "not installed"),
    ],
)
def test_peft_is_judged_by_both_versions(
    peft: str | None, transformers: str, status: str, says: str
) -> None:
    finding = doctor.judge_peft(peft, transformers)
    assert finding.status == status and says in finding.detail


@pytest.mark.parametrize("pair", measured_pairs(), ids=str)
def test_every_measured_pair_has_its_verdicts(pair: Pair) -> None:
    if pair.error is None:
        cases = {*CASES, "without cache"}
        assert {form: set(found) for form, found in pair.verdicts.items()} == {
            "embeddings": cases,
            "key_values": cases,
        }
        verdicts = [verdict for found in pair.verdicts.values() for verdict in found.values()]
        assert all(re.fullmatch(VERDICT, verdict) for verdict in verdicts)
    found = doctor.judge_peft(pair.peft, pair.transformers)
    assert found.status == "warning" and "not measured" not in found.detail


def test_the_measured_pairs_are_a_grid_with_the_newest_first() -> None:
    pairs = [pair.releases for pair in measured_pairs()]
    assert pairs == sorted(pairs, reverse=True)
    transformers, peft = (set(releases) for releases in zip(*pairs, strict=True))
    assert set(pairs) == {(first, second) for first in transformers for second in peft}


def test_a_pair_that_loses_the_prompt_says_so_first() -> None:
    lost = [p for p in measured_pairs() if p.verdicts and BARE in p.verdicts["key_values"].values()]
    assert lost and all(pair.failures()[0].startswith("prefix tuning answers as") for pair in lost)


def test_the_seed_failure_says_what_the_newest_pair_gets_wrong() -> None:
    newest = measured_pairs()[0]
    assert f"{newest}: {newest.failures()[0]}" in " ".join(doctor.SEED_FAILURE.split())


def test_a_pair_that_cannot_be_imported_says_why() -> None:
    assert Pair("0.19.1", "5.16.0", error="ImportError: no cache").failures() == [
        "the two cannot be imported together: ImportError: no cache"
    ]


def test_the_seed_failure_names_its_three_cures() -> None:
    text = doctor.SEED_FAILURE
    assert text.startswith("KeyError: 'Cache only has 0 layers, attempted to access layer with")
    for cure in ("1. use_cache=False", "2. use_cache=True, past_key_values=None", "3. Upgrading"):
        assert cure in text
    assert max(map(len, text.splitlines())) <= 100 and "http" not in text


@pytest.mark.parametrize(
    ("family", "name", "says"),
    [
        ("llama", "layers", "3: 3 with full attention"),
        ("mistral", "layers", "3: 3 that see 8 tokens"),
        ("gemma3", "layers", "3: 2 that see 8 tokens, 1 with full attention"),
        ("gemma3", "embedding scale", "5.657: the embedding module scales"),
        ("llama", "embedding scale", "1: "),
        ("gpt2", "context", "256 positions, virtual tokens included; longer inputs are refused"),
        ("gemma2", "attention", "eager, in float32"),
    ],
)
def test_capabilities_are_told_in_words(family: str, name: str, says: str) -> None:
    found = named(doctor.capabilities_findings(backbone_of(family)))[name]
    assert found.status == "ok" and found.detail.startswith(says)


def test_a_rotation_that_changes_with_the_length_is_a_warning() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    found = named(doctor.capabilities_findings(backbone_of("llama", rope_parameters=rope)))
    assert found["positions"].status == "warning" and "past 256 tokens" in found["positions"].detail


def test_attention_that_is_scaled_by_place_is_a_warning() -> None:
    backbone = backbone_of("llama4", attn_temperature_tuning=True)
    found = named(doctor.capabilities_findings(backbone))["positions"]
    assert (found.status, found.cure) == ("warning", "give longer rows one at a time")


def test_a_family_outside_the_tests_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.model.capabilities.TESTED_MODEL_TYPES", frozenset())
    found = named(doctor.capabilities_findings(backbone_of("llama")))["model"]
    assert found.status == "warning" and "proved itself" in found.detail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("llama", None),
        ("gemma3", "embeddings"),
        ("mistral", "key_values"),
        ("gemma4", None),
    ],
)
def test_the_self_test_finds_a_sound_model_sound(
    family: str, form: str | None, dtype: torch.dtype
) -> None:
    backbone = backbone_of(family, dtype)
    prompt = prompt_of(backbone, form) if form else None
    findings = doctor.self_test(backbone, prompt, num_new=NUM_NEW)
    assert [f.name for f in findings] == [
        "numbers", "cached generation", "chunked prefill", "left-padded batch", "gradient",
        "prefix", "speed",
    ]  # fmt: skip
    assert [f.status for f in findings] == ["ok"] * 7, findings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_self_test_sees_positions_that_are_off_by_one(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    backbone = backbone_of("llama", dtype)

    def shifted(span: Span, *rest: Any) -> Any:
        positions, masks = place(span, *rest)
        return positions + (span.num_cached > 0), masks

    monkeypatch.setattr(forward, "place", shifted)
    findings = doctor.self_test(backbone, None, num_new=NUM_NEW)
    assert [f.status for f in findings[:4]] == ["ok"] + ["wrong"] * 3
    assert "logits differ by" in findings[1].detail and findings[1].cure
    assert doctor.exit_status(findings) == 1


def test_the_self_test_sees_padding_that_is_attended_to(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = backbone_of("llama")

    def careless(span: Span, attention_mask: Any, *rest: Any) -> Any:
        return place(span, attention_mask if attention_mask is None else 1 | attention_mask, *rest)

    monkeypatch.setattr(forward, "place", careless)
    found = named(doctor.self_test(backbone, None, num_new=NUM_NEW))
    assert found["cached generation"].status == "ok"
    assert found["left-padded batch"].status == "wrong"


def test_the_self_test_sees_a_dead_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, read = backbone_of("llama"), Backbone.prefill
    monkeypatch.setattr(
        Backbone, "prefill", lambda self, p: read(self, p).map(lambda state: state.detach())
    )
    found = named(doctor.self_test(backbone, None, num_new=NUM_NEW))["gradient"]
    assert found.status == "wrong"


def test_what_a_check_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    backbone = backbone_of("llama")
    monkeypatch.setattr(Backbone, "generate", broken)
    found = named(doctor.self_test(backbone, None, num_new=NUM_NEW))
    assert found["cached generation"].detail == "raises RuntimeError: no memory"
    assert found["prefix"].status == "ok"


def test_the_self_test_reads_its_sentence_with_the_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer))
    row = trials.make_trial(Backbone(model, tokenizer), None, NUM_NEW).row
    assert tokenizer.decode(row) == trials.SENTENCE


def test_the_self_test_fits_a_short_context() -> None:
    for length in (24, 12, 6, 4):
        findings = doctor.self_test(backbone_of("gpt2", n_positions=length), None)
        assert [f.status for f in findings] == ["ok"] * 7, findings


def test_the_self_test_refuses_a_prompt_of_another_base() -> None:
    prompt = prompt_of(backbone_of("llama", hidden_size=16), "embeddings")
    with pytest.raises(MismatchError):
        doctor.self_test(backbone_of("llama"), prompt)


def test_the_speed_is_told_both_ways() -> None:
    detail = named(doctor.self_test(backbone_of("llama"), None, num_new=NUM_NEW))["speed"].detail
    assert "tokens per second cached" in detail and "without a cache" in detail
    assert detail.endswith("times as fast")


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_stock_peft_is_measured_case_by_case(form: str, tmp_path: Path) -> None:
    """On the installed pair, as the data has it."""
    installed = [metadata.version(name) for name in ("peft", "transformers")]
    pair = nearest_pair(*installed)
    if pair.releases != (release(installed[1]), release(installed[0])):
        pytest.skip(f"PEFT {installed[0]} with transformers {installed[1]} is not in the data")
    backbone = backbone_of("llama")
    directory = saved(prompt_of(backbone, form), tmp_path)
    found = named(doctor.peft_findings(backbone, directory))
    for case in CASES:
        finding, verdict = found[f"stock PEFT, {case}"], pair.verdicts[form][case]
        says = "silently wrong" if verdict.startswith("wrong") else verdict
        assert finding.status == ("ok" if says == "right" else "warning"), finding
        # Whether assisted decoding raises depends on how many candidates are accepted.
        assert finding.detail.startswith(says) or case == "assisted decoding", finding
        is_lost = verdict == "wrong: the bare model"
        assert ("the bare model's" in finding.detail) is is_lost or case == "assisted decoding"
    assert doctor.exit_status(list(found.values())) == 0


def test_measuring_peft_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    backbone = backbone_of("gpt2")
    directory = saved(prompt_of(backbone, "key_values"), tmp_path)

    def state() -> list[Any]:
        return [sorted(vars(module)) for module in backbone.model.modules()]

    before, config = state(), backbone.model.config.to_dict()
    pointers = [tensor.data_ptr() for tensor in backbone.model.parameters()]
    doctor.peft_findings(backbone, directory, num_new=2)
    assert state() == before and backbone.model.config.to_dict() == config
    assert [tensor.data_ptr() for tensor in backbone.model.parameters()] == pointers


def test_without_peft_its_install_line_is_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backbone = backbone_of("llama")
    directory = saved(prompt_of(backbone, "embeddings"), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    (found,) = doctor.peft_findings(backbone, directory)
    assert found.status == "warning" and found.cure == "pip install 'foreword[peft]'"


def test_a_directory_without_a_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        doctor.peft_findings(backbone_of("llama"), tmp_path)


def test_the_json_holds_the_findings_and_the_exit_status() -> None:
    findings = [Finding("a", "ok", "fine"), Finding("b", "wrong", "broken", "mend it")]
    report = json.loads(doctor.as_json(findings))
    assert report["exit_status"] == doctor.exit_status(findings) == 1
    assert report["findings"][1] == {
        "name": "b", "status": "wrong", "detail": "broken", "cure": "mend it",
    }  # fmt: skip
    assert doctor.exit_status([Finding("a", "warning", "odd")]) == 0


@pytest.mark.parametrize(("detail", "given", "explains"), [
    ("in order", [], False),
    ("in order", ["--cache-error"], True),
    (f"generating raises {doctor.SEED_ERROR}", [], True),
])  # fmt: skip
def test_the_error_of_the_cache_is_explained_to_those_who_met_it(
    detail: str, given: list[str], explains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "environment", lambda: [doctor.Finding("peft", "ok", detail)])
    said = CliRunner().invoke(app, ["doctor", *given]).stdout
    assert (doctor.SEED_FAILURE in said) is explains
    assert doctor.SEED_ERROR in said
    if not explains:  # a pointer, and no error of this run
        pointer = f"if you came for the error\n  {doctor.SEED_ERROR}\nrun: foreword doctor"
        assert said.endswith(f"{pointer} --cache-error\n")


def test_the_json_says_what_ended_it_early() -> None:
    report = json.loads(doctor.as_json([Finding("a", "ok", "fine")], ArtifactError("no prompt")))
    assert (report["exit_status"], report["error"]) == (2, "no prompt")
    assert json.loads(doctor.as_json([], RuntimeError()))["error"] == "RuntimeError"
    assert json.loads(doctor.as_json([]))["error"] is None


@pytest.mark.parametrize("is_early", [True, False])
def test_an_error_keeps_the_findings_before_it(is_early: bool, tmp_path: Path) -> None:
    """A folder that is not there ends it before all, and one without a model after the versions."""
    model = tmp_path / "base"
    if not is_early:
        model.mkdir()
        (model / "config.json").write_text("{}")
    result = CliRunner().invoke(app, ["doctor", "--json", "--model", str(model)])
    report = json.loads(result.stdout)
    assert isinstance(result.exception, InputError), result
    assert report["error"] == str(result.exception) and report["exit_status"] == 2
    names = [finding["name"] for finding in report["findings"]]
    assert names == ([] if is_early else ["python", "torch", "transformers", "peft"])


@pytest.mark.parametrize("fails", [False, True])
def test_what_loading_warns_of_is_a_finding(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> Any:
        logging.getLogger("foreword").warning("%d weights are not used", 2)
        if fails:
            raise InputError("no room")
        return backbone_of("llama"), None

    monkeypatch.setattr(options, "load", load)
    monkeypatch.setattr(doctor, "self_test", lambda *_: [])
    result = CliRunner().invoke(app, ["doctor", "--json", "--model", "smollm2-135m"])
    report = json.loads(result.stdout)
    found = {"name": "loading", "status": "warning", "detail": "2 weights are not used"}
    assert {**found, "cure": None} in report["findings"]
    assert report["error"] == ("no room" if fails else None)
    assert not logging.getLogger("foreword").handlers
