"""Early checks: whether what a command names is there, before anything slow is imported.

In: data, a model, prompts, as they were typed. Out: nothing, or the error that reading them would
end in. Imports no torch, reads no row and downloads nothing; a prompt's files are read as a whole.
"""

import os
from collections.abc import Iterable


def check(
    *,
    data: Iterable[str | None] = (),
    prompts: Iterable[str | None] = (),
    model: str | None = None,
) -> None:
    """Refuse paths that are not there, and directories that hold no prompt, or a damaged one.

    Raises:
        DataError: no such data. ArtifactError: no such prompt. InputError: no such model.
    """
    from foreword.data.readers import check_is_there
    from foreword.loading.hub import check_name

    for one in filter(None, data):
        check_is_there(one)
    for one in filter(None, prompts):
        _check_prompt(one)
    if model is not None:
        check_name(model)


def _check_prompt(prompt: str) -> None:
    """Read a prompt of this machine; a Hub id is looked into when it is loaded."""
    from foreword.prompt import stored_prompt
    from foreword.prompt.directories import is_prompts_name

    if os.path.isdir(prompt) or not is_prompts_name(prompt):
        stored_prompt.read(prompt, say=lambda _: None)
