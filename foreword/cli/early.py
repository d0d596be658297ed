"""Early checks: whether what a command names is there, before anything slow is imported.

In: data, a model, prompts, as they were typed. Out: nothing, or the error that reading them would
end in. Imports no torch, reads no row and downloads nothing.
"""

from collections.abc import Iterable
from pathlib import Path


def check(
    *,
    data: Iterable[str | None] = (),
    prompts: Iterable[str | None] = (),
    model: str | None = None,
) -> None:
    """Refuse paths that are not there, and directories that hold no prompt.

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
    from foreword.prompt.directories import is_prompts_name
    from foreword.prompt.facts import read_config
    from foreword.prompt.peft_format import CONFIG_FILE

    path = Path(prompt)
    # A folder with a prompt's own folder in it, and a Hub id, are looked into when they are read.
    is_outer = any(any(path.glob(f"{'*/' * depth}{CONFIG_FILE}")) for depth in (1, 2))
    if path.is_dir() and not is_outer or not is_prompts_name(prompt):
        read_config(path)
