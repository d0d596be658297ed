"""Ways to get a task done: what is trained, how, and at what cost.

In: a base, a task, a seed. Out: for each way a prompt or a model that answers, with the processor
seconds of its training. PEFT trains with transformers' Trainer on the very ids that foreword trains
on, as many rows in as many steps.
"""

import copy
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import stock
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from quality_data import Task
from safetensors.torch import load_file

from foreword import Backbone, EncodingConfig, Example, SoftPrompt, TrainConfig, train
from foreword.config import NUM_DEMONSTRATED
from foreword.data.encoding import encode_examples
from foreword.prompt.artifact import TENSOR_FILE
from foreword.prompt.prefix import Prefix
from foreword.training.start import initial_prompt

NUM_STEPS = 40
BATCH_SIZE = 8
NUM_VIRTUAL_TOKENS = 32
FEWER_DEMONSTRATED = 96  # virtual tokens from rows: half of the default
MAX_LENGTH = 2048
ROWS = EncodingConfig(row_template="<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")
SYSTEM_TURN = "<|im_start|>system\n{}<|im_end|>\n"


@dataclass(frozen=True)
class Trained:
    """What came out of one run.

    Attributes:
        backbone: the model that answers.
        prompt: what stands before the text, if anything.
        encoding: how a row becomes ids.
        seconds: processor seconds of the training alone.
        num_parameters: trained; 0 for text.
        num_bytes: of the files that would be shipped.
        peft: PEFT's own model, to see whether it answers alike.
    """

    backbone: Backbone
    prompt: SoftPrompt | Prefix | None
    encoding: EncodingConfig = ROWS
    seconds: float = 0.0
    num_parameters: int = 0
    num_bytes: int = 0
    peft: Any = None


Run = Callable[[Backbone, Task, int, Any, int], Trained]


@dataclass(frozen=True)
class System:
    """One line of the table.

    Attributes:
        variants: settings among which validation rows choose, with the first seed.
        run: from backbone, task, seed, the chosen variant and a number of steps to what answers.
        num_steps: of BATCH_SIZE rows, where no budget is given.
        is_seeded: whether another seed gives another result.
        is_padded: whether PEFT also answers in batches that it pads on the left.
        chooses: whether the likeliest of the task's labels is the answer, and not free text.
    """

    name: str
    variants: tuple[Any, ...]
    run: Run
    num_steps: int = NUM_STEPS
    is_seeded: bool = True
    is_padded: bool = False
    chooses: bool = False


def bare(backbone: Backbone, task: Task, seed: int, variant: None, num_steps: int) -> Trained:
    """Ask the model as it is."""
    return Trained(backbone, None)


def instructed(backbone: Backbone, task: Task, seed: int, variant: int, num_steps: int) -> Trained:
    """Put a hand-written instruction into the system turn, or before the text in the user's."""
    instruction = task.instructions[variant % 5]
    if variant >= 5:
        template = f"{ROWS.row_template}".replace("{prompt}", f"{instruction}\n\n{{prompt}}")
        num_bytes = len(instruction.encode())
        return Trained(backbone, None, EncodingConfig(template), num_bytes=num_bytes)
    text = SYSTEM_TURN.format(instruction)
    return Trained(backbone, _text(backbone, text), num_bytes=len(text.encode()))


def few_shot(backbone: Backbone, task: Task, seed: int, variant: int, num_steps: int) -> Trained:
    """Put an instruction and demonstrations before the question, as turns."""
    rows = list(task.train)
    random.Random(seed).shuffle(rows)
    turns = [
        f"<|im_start|>user\n{row.prompt}<|im_end|>\n"
        f"<|im_start|>assistant\n{row.completion}<|im_end|>\n"
        for row in _varied(rows, task.num_shots)
    ]
    text = SYSTEM_TURN.format(task.instructions[variant]) + "".join(turns)
    return Trained(backbone, _text(backbone, text), num_bytes=len(text.encode()))


def foreword(method: str, num_virtual_tokens: int = NUM_VIRTUAL_TOKENS) -> Run:
    """Train with foreword's defaults; the task's first instruction is the only choice."""

    def run(backbone: Backbone, task: Task, seed: int, variant: None, num_steps: int) -> Trained:
        config = TrainConfig(
            method=method,  # type: ignore[arg-type]
            init_text=None if method == "context-tuning" else task.instructions[0],
            num_virtual_tokens=num_virtual_tokens,
            batch_size=BATCH_SIZE,
            num_steps=num_steps,
            eval_every=0,
            seed=seed,
        )
        started = time.process_time()
        *_, last = train(backbone, list(task.train), config, encoding_config=ROWS)
        seconds = time.process_time() - started
        prompt = last.prompt
        with tempfile.TemporaryDirectory() as folder:
            prompt.save(folder)
            num_bytes = _size(folder)
        return Trained(backbone, prompt, ROWS, seconds, prompt.num_parameters, num_bytes)

    return run


def unchanged(model: Any, backbone: Backbone, task: Task) -> Any:
    """Start where PEFT starts."""
    return model


def from_text(model: Any, backbone: Backbone, task: Task) -> Any:
    """Start keys and values from a sentence's cache, by PEFT's own function."""
    text = " ".join([task.instructions[0]] * NUM_VIRTUAL_TOKENS)
    peft.initialize_kv_prefix_from_text(
        model, backbone.tokenizer, text=text, use_chat_template=False
    )
    return model


def from_rows(model: Any, backbone: Backbone, task: Task) -> Any:
    """Start keys and values exactly where context tuning of as many tokens starts."""
    rows, _ = encode_examples(list(task.train), backbone.tokenizer, ROWS, MAX_LENGTH)
    config = TrainConfig(method="context-tuning", num_virtual_tokens=FEWER_DEMONSTRATED)
    with tempfile.TemporaryDirectory() as folder:
        initial_prompt(backbone, config, rows).save(folder)
        (values,) = load_file(Path(folder) / TENSOR_FILE).values()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.copy_(values)
    return model


def peft_prompt(
    config: Callable[[Task], Any], start: Callable[[Any, Backbone, Task], Any] = unchanged
) -> Run:
    """Train a soft prompt with PEFT at a rate; foreword reads the file that PEFT writes.

    `start` gives PEFT's model other values to start from.
    """

    def run(backbone: Backbone, task: Task, seed: int, variant: float, num_steps: int) -> Trained:
        found = config(task)
        model, seconds = _trained(backbone, task, found, seed, variant, num_steps, start)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            prompt = SoftPrompt.load(folder)
            loaded = PeftModel.from_pretrained(copy.deepcopy(backbone.model), folder).eval()
            num_bytes = _size(folder)
        return Trained(backbone, prompt, ROWS, seconds, prompt.num_parameters, num_bytes, loaded)

    return run


def lora(backbone: Backbone, task: Task, seed: int, variant: float, num_steps: int) -> Trained:
    """Train LoRA of rank 8 with PEFT at a rate, and merge it."""
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16)
    model, seconds = _trained(backbone, task, config, seed, variant, num_steps)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        num_bytes = _size(folder)
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    merged = Backbone(model.merge_and_unload().eval(), backbone.tokenizer)
    return Trained(merged, None, ROWS, seconds, num_parameters, num_bytes)


def random_prompt(task: Task) -> Any:
    """PEFT's own default: noise."""
    return PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=NUM_VIRTUAL_TOKENS)


def text_prompt(task: Task) -> Any:
    """PEFT's prompt tuning from the same sentence that foreword starts from."""
    return PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=NUM_VIRTUAL_TOKENS,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=task.instructions[0],
        tokenizer_name_or_path="TOKENIZER",
    )


def prefix(task: Task, num_virtual_tokens: int = NUM_VIRTUAL_TOKENS) -> Any:
    """PEFT's prefix tuning; it starts at noise."""
    return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=num_virtual_tokens)


long_prefix = partial(prefix, num_virtual_tokens=FEWER_DEMONSTRATED)
"""As many virtual tokens as the context tuning that it is compared with."""


SYSTEMS = (
    System("bare model", (None,), bare, is_seeded=False),
    System("best of 5 instructions in 2 places", tuple(range(10)), instructed, is_seeded=False),
    System("few-shot in context", (0,), few_shot),
    System("bare model, likeliest label", (None,), bare, is_seeded=False, chooses=True),
    System(
        "best of 5 instructions in 2 places, likeliest label",
        tuple(range(10)),
        instructed,
        is_seeded=False,
        chooses=True,
    ),
    System("few-shot in context, likeliest label", (0,), few_shot, chooses=True),
    System("PEFT prompt tuning, defaults", (5e-5,), peft_prompt(random_prompt)),
    System(
        "PEFT prompt tuning, text, best of 4 rates",
        (1e-3, 5e-3, 1.5e-2, 5e-2),
        peft_prompt(text_prompt),
        is_padded=True,
    ),
    System("PEFT prefix tuning", (1e-2,), peft_prompt(prefix)),
    System(
        "PEFT prefix tuning, text, best of 2 rates",
        (5e-3, 3e-2),
        peft_prompt(prefix, from_text),
    ),
    System("PEFT from foreword's start", (3e-2,), peft_prompt(long_prefix, from_rows)),
    System("PEFT LoRA r=8, best of 2 rates", (5e-4, 2e-3), lora),
    System("foreword prompt-tuning", (None,), foreword("prompt-tuning")),
    System("foreword prefix-tuning", (None,), foreword("prefix-tuning")),
    System(
        "foreword context-tuning, 96 tokens",
        (None,),
        foreword("context-tuning", FEWER_DEMONSTRATED),
    ),
    System(
        "foreword context-tuning, 96 tokens, 80 steps",
        (None,),
        foreword("context-tuning", FEWER_DEMONSTRATED),
        num_steps=2 * NUM_STEPS,
    ),
    System(
        "foreword context-tuning (default)",
        (None,),
        foreword("context-tuning", NUM_DEMONSTRATED),
    ),
)
# What is measured at several budgets; PEFT's soft prompt is its best one.
CURVES = (
    "PEFT prefix tuning, text, best of 2 rates",
    "PEFT LoRA r=8, best of 2 rates",
    "foreword prefix-tuning",
    "foreword context-tuning (default)",
)


def _trained(
    backbone: Backbone,
    task: Task,
    config: Any,
    seed: int,
    rate: float,
    num_steps: int,
    start: Callable[[Any, Backbone, Task], Any] = unchanged,
) -> tuple[Any, float]:
    """Train with transformers' Trainer; return PEFT's model and the processor seconds it took."""
    rows, _ = encode_examples(list(task.train), backbone.tokenizer, ROWS, MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        if getattr(config, "tokenizer_name_or_path", None) == "TOKENIZER":
            backbone.tokenizer.save_pretrained(folder)
            config.tokenizer_name_or_path = folder
        torch.manual_seed(seed)
        model = start(get_peft_model(copy.deepcopy(backbone.model), config), backbone, task)
        trainer = stock.trainer(
            model, backbone.tokenizer, rows, folder, per_device_train_batch_size=BATCH_SIZE,
            max_steps=num_steps, learning_rate=rate, seed=seed,
        )  # fmt: skip
        started = time.process_time()
        trainer.train()
        return model.eval(), time.process_time() - started


def _text(backbone: Backbone, text: str) -> SoftPrompt:
    """Return a text as a prompt; it equals the model fed that text, and is computed once."""
    ids = backbone.tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    return SoftPrompt.from_embeddings(backbone.embed(ids))


def _varied(rows: Sequence[Example], count: int) -> list[Example]:
    """Return the first rows, no answer twice before every answer was there once."""
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.completion, []).append(row)
    depth = max(len(group) for group in groups.values())
    order = [group[i] for i in range(depth) for group in groups.values() if i < len(group)]
    return order[:count]


def _size(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
