"""Pushing: a prompt's two files and a model card to a repository on the Hugging Face Hub.

In: a prompt's directory, a repository's id. Out: the repository with those three files; nothing
else of the directory leaves the machine. What is uploaded is a copy that was loaded and verified.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import InputError
from foreword.hub_files import REPOSITORY, hub_problem
from foreword.prompt import stored_prompt
from foreword.prompt.card import is_local, model_card
from foreword.prompt.directories import own_files
from foreword.prompt.peft_format import FILES

CARD_FILE = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be.

    Attributes:
        card: the text of README.md.
        files: the names of all files.
        url: where they lie; None of a dry run.
        local_base: the path by which the prompt's own files name the base, where they do.
    """

    card: str
    files: tuple[str, ...]
    url: str | None
    local_base: str | None


def push(
    prompt: str | os.PathLike[str],
    repository: str,
    *,
    is_private: bool = False,
    license: str | None = None,
    is_dry_run: bool = False,
) -> Pushed:
    """Upload a prompt with a card to a repository, which is made where it is missing.

    Args:
        prompt: its directory, or what `SoftPrompt.load` takes.
        repository: its id, as owner/name.
        is_private: make the repository private; one that is there and public is refused.
        license: as the Hub calls it, as "apache-2.0"; None: the card says none.
        is_dry_run: upload nothing.

    Raises:
        ArtifactError: no soft prompt, or a damaged one.
        InputError: not an id, no permission, no network.
    """
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"{repository!r} is not the id of a repository: expected owner/name")
    stored_prompt.read(prompt)  # refuses what is not a prompt by its own path
    with own_files(prompt) as folder:
        loaded = stored_prompt.read(folder)
        card = model_card(loaded, repository, license)
        (folder / CARD_FILE).write_text(card, "utf-8")
        url = None if is_dry_run else _upload(folder, repository, is_private)
    name = (loaded.facts.get("base") or {}).get("name")
    return Pushed(card, (*FILES, CARD_FILE), url, name if is_local(name) else None)


def _upload(folder: Path, repository: str, is_private: bool) -> str:
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = _make(api, repository, is_private)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            repo_type="model",
            allow_patterns=[*FILES, CARD_FILE],
            commit_message="Upload a soft prompt with foreword",
        )
    except InputError:
        raise
    except Exception as error:  # its own, the network's
        raise InputError(f"{repository}: not pushed; {_problem(error, repository)}") from error
    return url


def _make(api: Any, repository: str, is_private: bool) -> str:
    """Make a repository where it is missing; never leave a private one open to all."""
    try:
        # None: what the owner's settings say.
        made = api.create_repo(
            repo_id=repository,
            private=is_private or None,
            repo_type="model",
            exist_ok=not is_private,
        )
        return str(made or f"https://huggingface.co/{repository}")
    except Exception as error:
        if getattr(getattr(error, "response", None), "status_code", None) != 409:
            raise
        if not api.repo_info(repo_id=repository, repo_type="model").private:
            raise InputError(
                f"{repository}: not pushed; it is on the Hub already and public, and --private "
                "was asked for: make it private on its page, or choose another name"
            ) from None
        return f"{api.endpoint}/{repository}"


def _problem(error: Exception, repository: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError":
        owner = repository.partition("/")[0]
        return f"no permission: `hf auth login` with a token that may write to {owner}"
    return hub_problem(error, "model")
