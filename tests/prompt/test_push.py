"""Pushing a prompt: what is uploaded is what was verified, with a card of its facts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny_models
import torch
import yaml
from huggingface_hub import errors
from safetensors.torch import save_file
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.errors import ArtifactError, InputError
from foreword.prompt.peft_format import CONFIG_FILE, FILES, TENSOR_FILE
from foreword.prompt.push import push

FACTS = {
    "base": {"name": "org/model", "revision": "abc"},
    "method": "prefix-tuning",
    "training": {"num_rows": 90},
    "metrics": {"step": 40, "training_loss": 0.5, "validation": {"loss": 0.25, "exact": 0.9}},
    "created": "2026-01-02T03:04:05+00:00",
}


def saved(path: Path, **facts: Any) -> Path:
    prompt = SoftPrompt.from_embeddings(torch.ones(3, 8), facts=FACTS | facts)
    prompt.save(path)
    return path


class HubFailure(Exception):
    """An answer of the Hub that is an error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


class FakeApi:
    """A Hub that keeps what it was sent; `known`: whether each repository is private."""

    endpoint = "https://hub"
    known: dict[str, bool]
    files: dict[str, bytes]
    failure: Exception | None

    def create_repo(self, repo_id: str, **options: Any) -> str:
        if repo_id in self.known:
            if not options["exist_ok"]:
                raise HubFailure(409)
        else:
            self.known[repo_id] = bool(options["private"])
        return f"https://hub/{repo_id}"

    def repo_info(self, repo_id: str, repo_type: str) -> Any:
        return SimpleNamespace(private=self.known[repo_id])

    def upload_folder(self, folder_path: str, allow_patterns: list[str], **options: Any) -> None:
        if self.failure:
            raise self.failure
        paths = [path for path in Path(folder_path).iterdir() if path.name in allow_patterns]
        self.files.update({path.name: path.read_bytes() for path in paths})


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    fake.known, fake.files, fake.failure = {}, {}, None
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    return fake


def header(card: str) -> dict[str, Any]:
    before, text, body = card.split("---\n", 2)
    assert before == "" and body.startswith("\n# ")
    return dict(yaml.safe_load(text))


def test_the_two_files_and_a_card_are_uploaded_and_nothing_else(
    api: FakeApi, tmp_path: Path
) -> None:
    saved(tmp_path / "prompt")
    for name in ("training_state.safetensors", "notes.txt", ".env", "README.md"):
        (tmp_path / "prompt" / name).write_text("secret")
    done = push(tmp_path / "prompt", "owner/name")
    assert sorted(api.files) == sorted([*FILES, "README.md"]) == sorted(done.files)
    for name in FILES:
        assert api.files[name] == (tmp_path / "prompt" / name).read_bytes()
    assert api.files["README.md"].decode() == done.card and "secret" not in done.card
    assert done.url == "https://hub/owner/name" and api.known == {"owner/name": False}
    assert (tmp_path / "prompt" / "README.md").read_text() == "secret"


def test_the_card_says_what_the_facts_say(api: FakeApi, tmp_path: Path) -> None:
    card = push(saved(tmp_path), "owner/name", license="apache-2.0").card
    assert header(card) == {
        "base_model": "org/model",
        "library_name": "foreword",
        "license": "apache-2.0",
        "tags": ["foreword", "soft-prompt", "prompt-tuning", "peft"],
    }
    for row in (
        "| base model | org/model |", "| revision of the base | abc |", "| virtual tokens | 3 |",
        "| form | embeddings (PROMPT_TUNING) |", "| size | 24 numbers, 96 bytes |",
        "| method | prefix-tuning |", "| rows trained on | 90 |", "| step | 40 |",
        "| training loss | 0.5000 |", "| validation loss | 0.2500 |",
        "| exact answers in validation | 90.0% |", f"| created | {FACTS['created']} |",
    ):  # fmt: skip
        assert row in card
    assert (
        "SoftPrompt.load('owner/name')" in card
        and "Backbone.load('org/model', revision='abc')" in card
    )
    assert "PeftModel.from_pretrained(model, 'owner/name')" in card


def test_the_code_of_a_card_runs(
    api: FakeApi,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = {"name": "org/model", "revision": None}
    blocks = push(saved(tmp_path / "owner" / "name", base=base), "owner/name").card.split("```")
    [code] = [block.removeprefix("python") for block in blocks if "Backbone" in block]
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer), eos_token_id=2)
    prompt = SoftPrompt.from_embeddings(torch.ones(3, model.config.hidden_size))
    prompt.save(tmp_path / "owner" / "name")
    model.generation_config.max_new_tokens = 2
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_card_without_facts_says_what_the_files_say(api: FakeApi, tmp_path: Path) -> None:
    key_values = [(torch.ones(2, 3, 4), torch.ones(2, 3, 4))] * 2
    SoftPrompt.from_key_values(key_values).save(tmp_path)
    card = push(tmp_path, "owner/name").card
    found = header(card)
    assert "base_model" not in found and "license" not in found and "prefix-tuning" in found["tags"]
    assert "| base model | not recorded |" in card and "training loss" not in card
    assert "foreword chat --prompt owner/name --model BASE" in card


def test_peft_is_named_only_where_it_reads_the_prompt(api: FakeApi, tmp_path: Path) -> None:
    uneven = [
        (torch.ones(2, 3, 4), torch.ones(2, 3, 4)),
        (torch.ones(1, 3, 8), torch.ones(1, 3, 8)),
    ]
    SoftPrompt.from_key_values(uneven).save(tmp_path)
    card = push(tmp_path, "owner/name").card
    assert "peft" not in header(card)["tags"] and "PeftModel" not in card


@pytest.mark.parametrize("name", ["/home/someone/model", "./model", "models/x.gguf", "a/b/c"])
def test_a_base_that_is_a_path_is_not_in_the_card(api: FakeApi, tmp_path: Path, name: str) -> None:
    done = push(saved(tmp_path, base={"name": name}), "owner/name")
    assert name not in done.card and "base_model" not in header(done.card)
    assert "| base model | a local model |" in done.card and done.local_base == name
    said = CliRunner().invoke(app, ["prompts", "push", str(tmp_path), "owner/name"]).output
    assert f"note: the prompt's files name its base as {name}, a path of this machine" in said


def test_facts_cannot_write_into_the_card(api: FakeApi, tmp_path: Path) -> None:
    name = "x\n---\nlicense: mit | <b>`[a](b)"
    card = push(saved(tmp_path, base={"name": name}, method="a|b\n# c"), "owner/name").card
    assert "license" not in header(card) and "\n# c" not in card and "<b>" not in card
    assert "| method | a&#124;b # c |" in card


def test_a_damaged_prompt_is_not_pushed(api: FakeApi, tmp_path: Path) -> None:
    saved(tmp_path)
    save_file({"prompt_embeddings": torch.full((3, 8), torch.nan)}, tmp_path / TENSOR_FILE)
    with pytest.raises(ArtifactError, match=f"^{tmp_path}/{TENSOR_FILE}: the prompt holds NaN"):
        push(tmp_path, "owner/name")
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ArtifactError, match="'LORA'"):
        push(tmp_path, "owner/name")
    with pytest.raises(ArtifactError, match="no such directory"):
        push(tmp_path / "none", "owner/name")
    assert not api.files and not api.known


@pytest.mark.parametrize("repository", ["name", "owner/", "a/b/c", "../name", "owner/na me", ""])
def test_what_is_no_id_is_refused(api: FakeApi, tmp_path: Path, repository: str) -> None:
    with pytest.raises(InputError, match="expected owner/name"):
        push(saved(tmp_path), repository)
    assert not api.known


def test_private_makes_a_private_repository_and_never_fills_a_public_one(
    api: FakeApi, tmp_path: Path
) -> None:
    saved(tmp_path)
    push(tmp_path, "owner/new", is_private=True)
    assert api.known == {"owner/new": True}
    api.files.clear()
    assert push(tmp_path, "owner/new", is_private=True).url == "https://hub/owner/new"
    assert len(api.files) == 3
    api.files.clear()
    api.known["owner/public"] = False
    with pytest.raises(InputError, match="on the Hub already and public"):
        push(tmp_path, "owner/public", is_private=True)
    assert not api.files
    push(tmp_path, "owner/public")
    assert len(api.files) == 3


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (HubFailure(403), "no permission: `hf auth login` with a token that may write to owner"),
        (HubFailure(401), "no permission"),
        (ConnectionError("no\nroute"), "ConnectionError: no route"),
        (errors.OfflineModeIsEnabled("x"), "the Hub is not reached"),
    ],
)
def test_what_the_hub_does_not_do_is_one_line(
    api: FakeApi, tmp_path: Path, failure: Exception, expected: str
) -> None:
    api.failure = failure
    with pytest.raises(InputError) as caught:
        push(saved(tmp_path), "owner/name")
    said = str(caught.value)
    assert said.startswith("owner/name: not pushed; ") and expected in said and "\n" not in said


def test_the_command_pushes_and_a_dry_run_only_prints(api: FakeApi, tmp_path: Path) -> None:
    arguments = ["prompts", "push", str(saved(tmp_path)), "owner/name"]
    said = CliRunner().invoke(app, [*arguments, "--dry-run"], catch_exceptions=False).output
    assert "library_name: foreword" in said and "not uploaded: adapter_config.json" in said
    assert not api.known and not api.files
    done = CliRunner().invoke(app, [*arguments, "--private"], catch_exceptions=False)
    assert done.exit_code == 0 and "to https://hub/owner/name" in done.output
    assert api.known == {"owner/name": True} and len(api.files) == 3
