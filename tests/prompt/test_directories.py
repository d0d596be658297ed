"""A prompt by folder or by Hub id: found where there is one, named where there are several."""

import logging
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.errors import ArtifactError
from foreword.prompt import directories
from foreword.prompt.facts import STATE_FILE
from foreword.prompt.peft_format import FILES


def saved(path: Path, value: float = 1.0) -> Path:
    SoftPrompt.from_embeddings(torch.full((3, 8), value)).save(path)
    return path


def value_of(prompt: Any) -> float:
    return SoftPrompt.load(prompt).embeddings[0, 0].item()


@pytest.mark.parametrize("place", ["default", "checkpoint-300", "checkpoint-300/default"])
def test_the_only_prompt_in_a_folder_is_found_and_said(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path / place, 2.0)
    saved(tmp_path / ".cache", 3.0)
    with caplog.at_level(logging.WARNING, "foreword"):
        assert value_of(tmp_path) == value_of(str(tmp_path)) == 2.0
    assert caplog.messages[0] == f"{tmp_path}: reads the prompt in {place}"


def test_of_several_prompts_none_is_read_and_all_are_named(tmp_path: Path) -> None:
    for step in (300, 90, 100):
        saved(tmp_path / f"checkpoint-{step}")
    named = "found prompts in checkpoint-90, checkpoint-100, checkpoint-300: name one of them"
    with pytest.raises(ArtifactError, match=named):
        SoftPrompt.load(tmp_path)


def test_a_folders_own_prompt_comes_before_those_in_it(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    saved(tmp_path / "checkpoint-1", 2.0)
    saved(tmp_path / "checkpoint-2", 3.0)
    assert value_of(tmp_path) == 1.0
    (tmp_path / FILES[0]).unlink()  # damaged, and not replaced by another
    with pytest.raises(ArtifactError, match=f"{tmp_path}: no adapter_config.json"):
        SoftPrompt.load(tmp_path)


def test_a_folder_without_a_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=f"{tmp_path}: no adapter_config.json"):
        SoftPrompt.load(tmp_path)


@pytest.mark.parametrize("place", ["", "seeds/1"])
def test_a_run_that_has_saved_no_prompt_is_named(place: str, tmp_path: Path) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / STATE_FILE).write_bytes(b"")
    named = f"{tmp_path}: holds a run that has not saved a prompt yet, .* with --resume"
    with pytest.raises(ArtifactError, match=named):
        SoftPrompt.load(tmp_path)
    saved(tmp_path, 1.0)
    (tmp_path / FILES[0]).unlink()  # a damaged prompt, not one to come
    with pytest.raises(ArtifactError, match=f"{tmp_path}: no adapter_config.json"):
        SoftPrompt.load(tmp_path)


# --- the Hub -----------------------------------------------------------------------------------


class FakeModels:
    """A Hub of one repository, whose files come as links into a cache, as the real one's do."""

    def __init__(self, source: Path, cache: Path) -> None:
        self.source, self.cache = source, cache
        self.asked: list[tuple[str, str, str | None]] = []

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options["repo_type"], options["revision"]))
        if repo_id != "owner/name":
            raise errors.LocalEntryNotFoundError("not here")
        for path in self.source.rglob("*"):
            relative = path.relative_to(self.source)
            if any(relative.match(pattern) for pattern in options["allow_patterns"]):
                if ("/" in str(relative)) != ("/" in options["allow_patterns"][0]):
                    continue
                (self.cache / relative).parent.mkdir(parents=True, exist_ok=True)
                (self.cache / relative).unlink(missing_ok=True)
                (self.cache / relative).symlink_to(path)
        return str(self.cache)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeModels:
    fake = FakeModels(tmp_path / "source", tmp_path / "cache")
    fake.cache.mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_hub_id_is_downloaded_and_only_a_prompts_own_files(models: FakeModels) -> None:
    saved(models.source, 2.0)
    for name in ("README.md", "code.py", "adapter_model.bin"):
        (models.source / name).write_text("")
    assert value_of("owner/name") == value_of("hub:owner/name@v1") == 2.0
    assert models.asked == [("owner/name", "model", None), ("owner/name", "model", "v1")]
    assert sorted(path.name for path in models.cache.iterdir()) == sorted(FILES)


def test_a_repository_may_hold_its_prompt_in_a_folder(models: FakeModels) -> None:
    saved(models.source / "default", 2.0)
    assert value_of("owner/name") == 2.0


def test_a_repository_without_a_prompt_is_named(models: FakeModels) -> None:
    models.source.mkdir()
    with pytest.raises(ArtifactError, match="^owner/name: no adapter_config.json on the Hub"):
        SoftPrompt.load("owner/name")


def test_what_the_hub_does_not_do_is_one_line(models: FakeModels) -> None:
    with pytest.raises(ArtifactError, match="^no such directory here, and on the Hub other/name"):
        SoftPrompt.load("other/name")


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "/owner/name", "./owner/name/x", "a/../b", "~/a"]
)
def test_what_is_no_id_does_not_ask_the_hub(models: FakeModels, name: str) -> None:
    with pytest.raises(ArtifactError, match="no such directory; expected a soft prompt's"):
        SoftPrompt.load(name)
    assert not models.asked


def test_a_path_comes_before_the_hub(
    models: FakeModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "owner" / "name", 3.0)
    assert value_of("owner/name") == 3.0 and not models.asked


def test_commands_take_folders_and_hub_ids(models: FakeModels, tmp_path: Path) -> None:
    saved(models.source, 2.0)
    saved(tmp_path / "runs" / "default", 3.0)
    store = ["--prompts", str(tmp_path / "store")]
    for name, prompt in (("hub", "owner/name"), ("run", str(tmp_path / "runs"))):
        for arguments in (["show", prompt], ["prompts", "add", name, prompt, *store]):
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, done.output
    versions = [path for path in (tmp_path / "store").glob("*/versions/*") if path.is_dir()]
    assert sorted(value_of(path) for path in versions) == [2.0, 3.0]


def test_copies_are_a_prompts_own_files(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    (tmp_path / "a" / "secret.txt").write_text("")
    with directories.own_files(tmp_path / "a") as copies:
        shutil.rmtree(tmp_path / "a")
        assert sorted(path.name for path in copies.iterdir()) == sorted(FILES)
        assert value_of(copies) == 1.0
    assert not copies.exists()
