"""Hub files: files of a repository on the Hugging Face Hub, by name; no code of it is run.

In: a repository's id, patterns of file names. Out: a directory in the Hub's own cache that holds
those files, or one line that says why not. Knows neither what the files hold nor models, which
transformers loads by itself.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from foreword.errors import InputError

_PART = r"[A-Za-z0-9][A-Za-z0-9._-]*"
REPOSITORY = re.compile(f"{_PART}/{_PART}")


def download(
    repository: str,
    kind: Literal["dataset", "model"],
    names: Sequence[str],
    revision: str | None = None,
) -> Path:
    """Return the directory of a repository's files of these names, downloaded where they are new.

    Args:
        repository: its id, as owner/name.
        kind: what it is a repository of.
        names: patterns of the file names, as `*.parquet`; nothing else is downloaded.
        revision: a branch, a tag or a commit; None: the newest.

    Raises:
        InputError: no such repository or revision, no access to it, or no network.
    """
    import huggingface_hub  # transformers brings it

    try:
        found = huggingface_hub.snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=list(names)
        )
    except Exception as error:  # its own, the network's, the disk's
        raise InputError(f"{repository}: {hub_problem(error, kind)}") from error
    return Path(str(found))


def hub_problem(error: Exception, kind: str) -> str:
    """Return in one line why the Hub did not do what it was asked, and what to do."""
    said = " ".join(str(error).split()) or type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if name == "RevisionNotFoundError":
        return f"the {kind} on the Hub has no such revision: name a branch, a tag or a commit"
    if name == "GatedRepoError" or status == 403:
        return f"no access to this {kind} on the Hub: ask for it on its page, then `hf auth login`"
    if name == "RepositoryNotFoundError" or status in (401, 404):
        return (
            f"no such {kind} on the Hub, or a private one: check the name, or `hf auth login` for "
            "a private one"
        )
    if name in ("OfflineModeIsEnabled", "LocalEntryNotFoundError") or os.environ.get(
        "HF_HUB_OFFLINE", ""
    ).upper() in ("1", "ON", "YES", "TRUE"):
        return (
            f"the {kind} is not in the Hub's cache on this machine and the Hub is not reached: "
            "check the network, or unset HF_HUB_OFFLINE"
        )
    return f"the Hub did not answer as expected, {name}: {said[:200]}"
