"""`foreword distill --context PROMPT`: a prompt becomes a smaller one, or one of another form."""

import json
from pathlib import Path

import pytest
import tiny_models
from test_cli import evaluated, fails, invoke

from foreword import Backbone, SoftPrompt, compose, text_prompt
from foreword.prompt.store import Store

SHORT = ["--num-steps", "3", "--answer-tokens", "4", "--top-k", "9"]


@pytest.fixture
def queries(tmp_path: Path) -> str:
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{word}?"}) + "\n" for word in "abcdefgh"))
    return str(path)


@pytest.fixture
def prompt(model: str, tmp_path: Path) -> str:
    backbone = Backbone.load(model)
    values = tiny_models.embeddings(backbone.model, 12, 1)
    facts = {"base": backbone.identity(), "encoding": {"is_text": False, "opening": "generation"}}
    keys = backbone.compile(SoftPrompt.from_embeddings(values, facts=facts))
    SoftPrompt.from_states(keys.cached, facts=facts).save(tmp_path / "large")
    return str(tmp_path / "large")


def test_a_prompt_becomes_a_smaller_one_on_its_own_base(
    prompt: str, queries: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    output = str(tmp_path / "small")
    given = ["distill", "--context", prompt, "--data", queries, "--output", output, *SHORT]
    said = invoke(*given, "--num-virtual-tokens", "4").replace("\n", " ")
    assert "12 virtual tokens of a prompt as keys and values, read once" in said
    assert "by 4 as keys and values, 3.0 times less memory" in said
    assert "--context PROMPT" in said and "of text" not in said
    small = SoftPrompt.load(output)
    assert small.num_virtual_tokens == 4
    assert small.facts["distilled"]["context_hash"] == SoftPrompt.load(prompt).content_hash
    beside = evaluated("eval", "--prompt", output, "--context", prompt, "--data", queries)
    sizes = {o["subject"]: o["num_virtual_tokens"] for o in beside["agreement"]["results"]}
    assert sizes == {"bare model": 0, "soft prompt": 4, "whole text": 12}
    other = str(tmp_path / "other")
    for more, reason in (
        (["--context", prompt], "12 virtual tokens, and --num-virtual-tokens 64 are not fewer"),
        (["--context", str(tmp_path)], "--context: no file of text, and as a prompt: "),
        (
            ["--context", prompt, "--form", "embeddings", "--start", "attention"],
            "--start attention",
        ),
        (["--context", prompt, "--form", "embeddings", "--start", "first"], "use --start vocab"),
    ):
        plain = ["distill", "--data", queries, "--output", other, *SHORT]
        assert reason in fails(monkeypatch, capsys, *plain, *more)
    refused = fails(monkeypatch, capsys, "distill", "--output", other, "--context", prompt, *SHORT)
    assert "a prompt holds no text to ask about: give queries (--data)" in refused


def test_keys_and_values_become_embeddings_of_as_many_tokens(
    prompt: str, queries: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "embedded")
    given = ["--context", prompt, "--form", "embeddings", "--data", queries, "--output", output]
    said = invoke("distill", *given, *SHORT)
    assert "starts from sampled vocabulary" in said and "foreword export --prompt" in said
    found = SoftPrompt.load(output)
    assert found.form == "embeddings" and found.num_virtual_tokens == 12
    assert "goes on after step 3" in invoke("distill", *given, *SHORT, "--resume")


def test_a_text_under_a_name_can_be_the_context(model: str, queries: str, tmp_path: Path) -> None:
    named, output = str(tmp_path / "named"), str(tmp_path / "small")
    text_prompt(Backbone.load(model), "The lamp is red. The door is blue.").save(named)
    given = ["--context", named, "--data", queries, "--output", output, *SHORT]
    assert "tokens of text, read once" in invoke("distill", *given, "--num-virtual-tokens", "4")


def test_two_prompts_are_composed_under_a_name(
    prompt: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    store = str(tmp_path / "store")
    invoke("prompts", "add", "large", prompt, "--prompts", store)
    said = invoke("prompts", "compose", "both", "large", prompt, "--prompts", store)
    assert "added both@" in said and "12 and 12 virtual tokens" in said
    found = SoftPrompt.load(Store(store).resolve("both").path)
    expected = compose(Backbone.load(model), *[SoftPrompt.load(prompt)] * 2)
    assert found.content_hash == expected.content_hash
    for name, reason in (("none", "no prompt 'none' in"), ("no/where", "no such directory")):
        refused = ["prompts", "compose", "other", "large", name, "--prompts", store]
        assert reason in fails(monkeypatch, capsys, *refused)


def test_a_prompt_that_was_trained_beside_others_says_so(
    prompt: str, queries: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, output = str(tmp_path / "store"), str(tmp_path / "small")
    invoke("prompts", "add", "large", prompt, "--prompts", store)
    given = ["--context", prompt, "--data", queries, "--output", output, "--distractors", store]
    said = invoke("distill", *given, *SHORT, "--num-virtual-tokens", "4")
    assert "2 of 7 rows stand beside one of 1 other prompts" in said
    assert SoftPrompt.load(output).facts["distilled"]["distractors"] == 0.25
    invoke("prompts", "compose", "both", output, output, "--prompts", store)
    assert "not trained to stand together" not in caplog.text


@pytest.mark.parametrize("num_lines", [4, 900])
def test_the_next_commands_that_are_shown_work(
    model: str, data: str, tmp_path: Path, num_lines: int
) -> None:
    text, output = tmp_path / "text.txt", str(tmp_path / "out")
    text.write_text("".join(f"Item {n} is kept in box {n % 13}.\n" for n in range(num_lines)))
    given = ["distill", "--model", model, "--context", str(text), "--data", data]
    said = invoke(*given, "--output", output, "--num-virtual-tokens", "4", *SHORT)
    assert ("parts of at most" in said) == (num_lines > 100)
    [line] = [line for line in said.splitlines() if line.startswith("measure:")]
    shown = line.removeprefix("measure:").split()[1:]
    given = {"--context": str(text), "--data": data}
    values = [given.get(before, one) if one == "FILE" else one
              for before, one in zip(["", *shown], shown, strict=False)]  # fmt: skip
    invoke(*values, "--max-new-tokens", "2", "--unrelated", "none")
