"""Self-test: whether fast equals slow on the user's own model, and how fast it is.

In: a backbone and a prompt. Out: findings on generation, batches, chunked prefill, the gradient and
the speed. Whatever a check raises is its finding. Knows nothing of PEFT.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.compat.error_lines import first_line
from foreword.doctor.finding import Finding
from foreword.doctor.numbers import numbers_finding, too_large
from foreword.doctor.trial import Trial
from foreword.doctor.trials import NUM_READ, make_trial, sentence_ids
from foreword.errors import DataError, ForewordError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt
from foreword.training.guards import check_gradient

NUM_ROUNDS = 2  # of the speed measurement, each way
SMALLER = "free memory of the device, or load the model with device='cpu'"
REPORT = "a defect of foreword or of this release of transformers: please report it"


def self_test(backbone: Backbone, prompt: SoftPrompt | None, *, num_new: int = 32) -> list[Finding]:
    """Compare cached generation with the slow obvious computation, and measure both.

    Args:
        backbone: the model; its tokenizer, where it has one, encodes a fixed sentence.
        prompt: None is random virtual tokens at the scale of the model's embeddings.
        num_new: tokens to generate, fewer where the context is short.

    Raises:
        MismatchError: the prompt was made for another base model.
    """
    trial = make_trial(backbone, prompt, num_new)
    numbers, is_testable = numbers_finding(trial, is_given=prompt is not None)
    found = [*_reading(backbone), numbers]
    if not is_testable:
        return found
    row = trial.row
    chunk = (len(row) + 1) // 2
    checks: list[tuple[str, Callable[[], str]]] = [
        ("cached generation", lambda: _agreement(trial, [row])),
        ("chunked prefill", lambda: _agreement(trial, [row], prefill_chunk_size=chunk)),
        ("left-padded batch", lambda: _agreement(trial, trial.rows)),
        ("gradient", lambda: _gradient(trial)),
        ("prefix", lambda: _size(trial)),
        ("speed", lambda: _speed(trial)),
    ]
    if not trial.can_chunk:
        checks = [check for check in checks if check[0] != "chunked prefill"]
    return [*found, *(_finding(name, check) for name, check in checks)]


def _reading(backbone: Backbone) -> list[Finding]:
    if backbone.tokenizer is None:
        return []
    name, instead = "tokenizer", "the tests below read fixed ids"
    try:
        number = len(sentence_ids(backbone))
    except DataError as error:
        return [Finding(name, "wrong", f"{error}; {instead}")]
    if number < NUM_READ:
        detail = f"finds {number} tokens in a sentence of English; {instead}"
        return [Finding(name, "warning", detail, "give texts that it knows")]
    return [Finding(name, "ok", f"reads a sentence as {number} tokens, which the model all has")]


def _finding(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", check())
    except _Differs as error:
        return Finding(name, "wrong", str(error), REPORT)
    except torch.OutOfMemoryError as error:
        return Finding(name, "wrong", f"memory is out: {first_line(error)}", SMALLER)
    except ForewordError as error:  # says itself what to do
        return Finding(name, "wrong", str(error))
    except Exception as error:
        return Finding(name, "wrong", f"raises {type(error).__name__}: {error}", REPORT)


class _Differs(Exception):
    """The fast result differs from the slow one."""


def _agreement(trial: Trial, rows: list[torch.Tensor], **options: Any) -> str:
    found = trial.distance(rows, trial.fast(rows, **options))
    detail = (
        f"{found.num_same} of {found.num_tokens} tokens are the slow computation's; logits differ "
        f"by {found.error:.1e} of their spread (rounding: up to {trial.tolerance:g})"
    )
    if not found.error <= trial.tolerance:  # NaN is no agreement
        raise _Differs(detail)
    return detail


def _gradient(trial: Trial) -> str:
    prompt = trial.prompt.trainable()
    with torch.enable_grad():
        loss = trial.label_loss(prompt)
        loss.backward()
    grads = [tensor.grad for tensor in prompt.tensors if tensor.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(grads)) if grads else 0.0
    if not (math.isfinite(loss.item()) and math.isfinite(norm)):
        raise _Differs(
            f"is not finite, though the logits are: norm {norm:.3g} at a loss of {loss.item():.3g}"
        )
    # A prompt that is far too large was trained by steps that lost its gradient.
    check_gradient(loss.item(), norm, trial.backbone, step=int(too_large(trial) is not None))
    return f"reaches the prompt: norm {norm:.3g} at a loss of {loss.item():.3g} nats per token"


def _size(trial: Trial) -> str:
    prefix = trial.backbone.compile(trial.prompt)
    if isinstance(prefix.states, DeferredPrompt):
        return f"{prefix.num_virtual_tokens} virtual tokens, which every row reads with its own"
    return (
        f"{prefix.num_virtual_tokens} virtual tokens take {prefix.num_bytes:,} bytes, "
        "computed once and shared by all rows"
    )


def _speed(trial: Trial) -> str:
    """Measure one row both ways, in turn, and take the best round of each."""
    seconds: dict[str, list[float]] = {"cached": [], "uncached": []}
    for _ in range(NUM_ROUNDS):
        seconds["cached"].append(_seconds(lambda: trial.fast([trial.row])))
        seconds["uncached"].append(_seconds(trial.slow))
    cached, uncached = (trial.num_new / min(values) for values in seconds.values())
    return (
        f"{cached:.1f} tokens per second cached, {uncached:.1f} without a cache: "
        f"{cached / uncached:.1f} times as fast"
    )


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started
