"""Early checks: whether what a command names is there, before anything slow is imported.

In: data, a model, prompts, as they were typed. Out: nothing, or the error that reading them would
end in. Imports no torch, reads no row and downloads nothing; a prompt's files are read as a whole.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.prompt.stored_prompt import StoredPrompt

# Where a configuration names one of these, embeddings may be of another width than `hidden_size`.
OTHER_WIDTH = re.compile(r"emb\w*_(dim|size)$")


def check(
    *,
    data: Iterable[str | None] = (),
    prompts: Iterable[str | None] = (),
    model: str | None = None,
) -> None:
    """Refuse paths that are not there, and directories that hold no prompt, a damaged one, or one
    of another width than the model.

    Raises:
        DataError: no such data. ArtifactError: no such prompt. InputError: no such model.
        MismatchError: as `check_hidden_size` says.
    """
    from foreword.data.readers import check_is_there
    from foreword.loading.hub import check_name

    for one in filter(None, data):
        check_is_there(one)
    found = [_read_prompt(one) for one in filter(None, prompts)]
    if model is not None:
        check_name(model)
        for stored in filter(None, found):
            check_hidden_size(stored, model)


def check_hidden_size(stored: "StoredPrompt", name: str, directory: str | None = None) -> None:
    """Refuse a prompt of another hidden size than a model of this machine, by the model's
    config.json; what that does not settle is checked where the model is loaded.

    Args:
        stored: the prompt.
        name: the model, as it was typed.
        directory: where it is; None where its name says so.

    Raises:
        MismatchError: names both sizes.
    """
    from foreword.loading.hub import EMBEDDED
    from foreword.prompt.base_facts import check_width

    if directory is None and name == EMBEDDED:  # whatever lies here under that name
        return
    base: dict[str, Any] = stored.facts.get("base") or {}
    found = (base.get("fingerprint") or {}).get("hidden_size")
    if stored.form == "embeddings":
        found = stored.arrays[0].shape[1]
    size = _hidden_size(Path(directory or os.path.expanduser(name)))
    if isinstance(found, int) and size is not None:
        check_width(found, size, name, stored.facts)


def _hidden_size(directory: Path) -> int | None:
    """Return the width of a model's embeddings; None where its config.json leaves it open."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    text = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(text, dict) or any(OTHER_WIDTH.search(key) for key in text):
        return None
    size = text.get("hidden_size")
    return size if isinstance(size, int) else None


def _read_prompt(prompt: str) -> "StoredPrompt | None":
    """Return a prompt of this machine; None of a Hub id, which is looked into when it is loaded."""
    from foreword.prompt import stored_prompt
    from foreword.prompt.directories import is_prompts_name

    if os.path.isdir(prompt) or not is_prompts_name(prompt):
        return stored_prompt.read(prompt, say=lambda _: None)
    return None
