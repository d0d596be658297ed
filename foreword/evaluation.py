"""What a prompt is worth: its answers on held-out examples, beside the bare model and an
instruction.

In: a backbone, examples, systems to compare. Out: a score for each. A system is a prompt, or an
instruction put before every example as a system turn, or neither: the bare model.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Answer, Text
from foreword.config import EncodingConfig
from foreword.data import Example
from foreword.errors import InputError
from foreword.prefix import Prefix
from foreword.prompt import SoftPrompt

Metric = Callable[[str, str], bool]


@dataclass(frozen=True)
class System:
    """One way to get an answer.

    Attributes:
        name: as the table shows it.
        prompt: the soft prompt, if any.
        instruction: a system turn before every example, if any.
        encoding: how examples become ids; default: the prompt's own, else the chat template.
    """

    name: str
    prompt: SoftPrompt | Prefix | None = None
    instruction: str | None = None
    encoding: EncodingConfig | None = None


@dataclass(frozen=True)
class Evaluation:
    """A system's result.

    Attributes:
        scores: for each metric the share of examples it holds for.
        answers: in the order of the examples.
        seconds: for all examples.
    """

    system: System
    scores: Mapping[str, float]
    answers: tuple[Answer, ...]
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens, over all rows of a batch."""
        return sum(answer.num_tokens for answer in self.answers) / max(self.seconds, 1e-9)


def exact(answer: str, expected: str) -> bool:
    """Whether the texts are equal, but for white space around them."""
    return answer.strip() == expected.strip()


def same_json(answer: str, expected: str) -> bool:
    """Whether both are JSON and mean the same."""
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except (json.JSONDecodeError, RecursionError):
        return False


METRICS: dict[str, Metric] = {"exact": exact, "json": same_json}


def evaluate(
    backbone: Backbone,
    system: System,
    examples: Sequence[Example],
    metrics: Mapping[str, Metric] = METRICS,
    *,
    on_answer: Callable[[], Any] | None = None,
    **options: Any,
) -> Evaluation:
    """Answer every example greedily and score the answers; `options` go to `chat.answers`.

    Raises:
        InputError: no examples.
    """
    if not examples:
        raise InputError("no examples to evaluate on; give at least one")
    started = time.perf_counter()
    found = []
    texts = [read_as(backbone, system, example.prompt) for example in examples]
    for answer in chat.answers(backbone, system.prompt, texts, system.encoding, **options):
        found.append(answer)
        if on_answer:
            on_answer()
    scores = {
        name: sum(
            metric(answer.text, example.completion)
            for answer, example in zip(found, examples, strict=True)
        )
        / len(examples)
        for name, metric in metrics.items()
    }
    return Evaluation(system, scores, tuple(found), time.perf_counter() - started)


def read_as(backbone: Backbone, system: System, prompt: Text) -> Text:
    """Return an example's prompt as the system reads it.

    A soft prompt reads what it was trained on. The bare model and an instruction get a chat turn
    where the tokenizer has a chat template, else plain text with the instruction before it.
    """
    config = system.encoding or chat.encoding_of(system.prompt)
    is_trained = system.prompt is not None and system.instruction is None
    if is_trained or config.row_template:
        return prompt
    if not getattr(backbone.tokenizer, "chat_template", None):
        return f"{system.instruction}\n\n{prompt}" if system.instruction else prompt
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system.instruction is None:
        return turns
    rest = [turn for turn in turns if turn["role"] != "system"]
    return [{"role": "system", "content": system.instruction}, *rest]
