"""Stock PEFT: what it does with a prompt on the user's model: right, silently wrong or an error.

In: a backbone and an adapter directory. Out: findings, none of them "wrong": they say what PEFT
does, not whether foreword is in order. PEFT patches the model that it wraps, so it gets a copy of
the modules; the copy shares every weight, and the user's model is not touched.
"""

import copy
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat.error_lines import typed_line
from foreword.compat.transformers_api import GENERATE_CACHE, code_refused
from foreword.doctor.finding import Finding
from foreword.doctor.numbers import logits_problem
from foreword.doctor.trial import Trial, left_padded
from foreword.doctor.trials import make_trial
from foreword.generation.habits import without_habits
from foreword.prompt import directories
from foreword.prompt.soft_prompt import SoftPrompt

Output = tuple[list[Tensor], Any]  # the rows as they were given, and what was generated from them
INSTALL = "pip install 'foreword[peft]'"
EXACT = "foreword generates this exactly from the same directory"


def peft_findings(
    backbone: Backbone, directory: str | os.PathLike[str], *, num_new: int = 16
) -> list[Finding]:
    """Run stock PEFT on an adapter directory and compare it with the slow computation.

    Raises:
        ArtifactError: the directory holds no soft prompt.
        MismatchError: the prompt was made for another base model.
    """
    directory = directories.find(directory)
    trial = make_trial(backbone, SoftPrompt.load(directory), num_new)
    if (problem := logits_problem(trial, is_given=True)) is not None:
        return [Finding("stock PEFT", "warning", f"not measured: {problem[0]}", problem[1])]
    try:
        from peft import PeftModel
    except ImportError as error:
        return [Finding("stock PEFT", "warning", f"not measured: {error}", INSTALL)]
    with warnings.catch_warnings():
        # PEFT warns on right and on wrong results alike; the findings say which is which.
        warnings.simplefilter("ignore")
        try:
            shared = weights_shared(without_habits(backbone.model))
            with code_refused():  # an adapter may name a tokenizer
                model = PeftModel.from_pretrained(shared, directory).eval()
        except Exception as error:
            return [_raised("stock PEFT loading", error)]
        return [_finding(f"stock PEFT, {name}", case, trial, model) for name, case in CASES.items()]


def weights_shared(model: Any) -> Any:
    """Copy a model's modules and configuration, but none of its parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _finding(name: str, case: Callable[[Trial, Any], Output], trial: Trial, model: Any) -> Finding:
    try:
        rows, output = case(trial, model)
        found = trial.distance(rows, output)
    except Exception as raised:
        return _raised(name, raised)
    if found.error <= trial.tolerance:
        return Finding(name, "ok", "right: equal to the slow computation")
    if trial.is_bare(rows, output):
        detail = "silently wrong: no exception, and the answer is the bare model's, no prompt"
        return Finding(name, "warning", detail, EXACT)
    detail = (
        f"silently wrong: no exception, and {found.num_same} of {found.num_tokens} tokens are the "
        f"slow computation's; logits differ by {found.error:.1e} of their spread"
    )
    return Finding(name, "warning", detail, EXACT)


def _raised(name: str, error: Exception) -> Finding:
    said = typed_line(error).split(" (http")[0]
    return Finding(name, "warning", f"raises {said}", EXACT)


def _run(trial: Trial, model: Any, rows: list[Tensor], **options: Any) -> Output:
    ids, mask = left_padded(rows)
    options = trial.options | options
    return rows, model.generate(input_ids=ids, attention_mask=mask, **options)


def _one_row(trial: Trial, model: Any) -> Output:
    return _run(trial, model, [trial.row])


def _padded_batch(trial: Trial, model: Any) -> Output:
    return _run(trial, model, [trial.row, trial.row[: max(1, len(trial.row) // 2)]])


def _static_cache(trial: Trial, model: Any) -> Output:
    return _run(trial, model, [trial.row], cache_implementation="static")


def _chunked_prefill(trial: Trial, model: Any) -> Output:
    return _run(trial, model, [trial.row], prefill_chunk_size=(len(trial.row) + 1) // 2)


def _second_turn(trial: Trial, model: Any) -> Output:
    _, first = _one_row(trial, model)
    row = torch.cat([first.sequences[0], trial.row[:3]])
    return _run(trial, model, [row], **{GENERATE_CACHE: first[GENERATE_CACHE]})


def _assisted(trial: Trial, model: Any) -> Output:
    assistant = weights_shared(trial.backbone.model)
    return _run(trial, model, [trial.row], assistant_model=assistant)


def _prompt_lookup(trial: Trial, model: Any) -> Output:
    """Continue a row that repeats itself after its answer, so that lookup finds proposals."""
    own = trial.fast([trial.row]).sequences[0]
    row = torch.cat([own, trial.row])
    return _run(trial, model, [row], prompt_lookup_num_tokens=3)


CASES: dict[str, Callable[[Trial, Any], Output]] = {
    "one row": _one_row,
    "left-padded batch": _padded_batch,
    "static cache": _static_cache,
    "chunked prefill": _chunked_prefill,
    "second turn on the returned cache": _second_turn,
    "assisted decoding": _assisted,
    "prompt lookup": _prompt_lookup,
}
