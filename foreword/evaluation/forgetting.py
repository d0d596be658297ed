"""Forgetting: what a prompt does to text that has nothing to do with its task.

In: a backbone, a prompt, a text. Out: the mean loss of the text's tokens without the prompt and
behind it, and the paired change. Draws no table, and reads no file but the text that comes along.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from foreword.backbone import Backbone
from foreword.config import EvalConfig, ResamplingConfig
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.example import named
from foreword.data.tokenizing import token_ids
from foreword.errors import InputError, UnsupportedError
from foreword.evaluation.bootstrap import Score, difference, score
from foreword.evaluation.evaluation import room
from foreword.evaluation.losses import label_losses
from foreword.evaluation.metrics import METRICS, Outcome
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

WINDOW = 128  # tokens of unrelated text in one row
_DEFAULTS = EvalConfig()
_RESAMPLING = ResamplingConfig()


@dataclass(frozen=True)
class Forgetting:
    """The mean loss of a token of unrelated text, in nats.

    Attributes:
        without: of the bare model.
        behind: with the prompt before it.
        change: what the prompt adds, paired by windows of the text.
    """

    without: Score
    behind: Score
    change: Score


def unrelated_text() -> str:
    """Return the text that comes with foreword: short notes on everyday things, in English."""
    return files("foreword").joinpath("unrelated.txt").read_text(encoding="utf-8")


def forgetting(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix,
    text: str,
    config: EvalConfig = _DEFAULTS,
    resampling: ResamplingConfig = _RESAMPLING,
) -> Forgetting:
    """Measure what a prompt does to text that has nothing to do with its task.

    The text is cut into windows of at most 128 tokens, each behind the start ids of the tokenizer;
    a window's first token of text is not scored.

    Raises:
        InputError: less than two tokens of text. UnsupportedError: an encoder-decoder, which
            answers texts and continues none.
    """
    if backbone.reads_apart:
        raise UnsupportedError(
            f"{backbone.capabilities.model_type} answers texts and continues none; leave the "
            "forgetting check out (--unrelated none)"
        )
    rows = windows(backbone, text, min(WINDOW, room(backbone, prompt)))
    without, behind = (
        _score_rows(backbone, one, rows, config, resampling) for one in (None, prompt)
    )
    return Forgetting(without, behind, difference(behind, without, resampling))


def _score_rows(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    rows: Sequence[Row],
    config: EvalConfig,
    resampling: ResamplingConfig,
) -> Score:
    losses = label_losses(backbone, prompt, rows, config)
    outcomes = [Outcome("", loss=loss, num_labels=count) for loss, count in losses]
    return score(METRICS["loss"], outcomes, resampling)


def windows(backbone: Backbone, text: str, size: int) -> list[Row]:
    """Return a text as rows of at most `size` tokens, each behind the start ids of the tokenizer;
    all tokens of a row's text but the first are labels.

    Raises:
        InputError: no tokenizer, no room, or less than two tokens of text.
    """
    if backbone.tokenizer is None:
        raise InputError("text needs a tokenizer; give the backbone one")
    opening = encoding.start_ids(backbone.tokenizer)
    size -= len(opening)
    if size < 2:
        raise InputError("the prompt leaves no room for text in the model's context; shorten it")
    with named("--unrelated"):
        ids = token_ids(backbone.tokenizer, text, add_special_tokens=False)
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    rows = [
        Row((*opening, *part), len(part) - 1, "unrelated text") for part in parts if len(part) > 1
    ]
    if not rows:
        raise InputError(
            f"--unrelated: expected at least 2 tokens of unrelated text, got {len(ids)}"
        )
    for row in rows:
        backbone.check_row(row)
    return rows
