"""Stock PEFT, on the very ids that foreword reads: under transformers' Trainer, and answering.

In: a PEFT model, rows or texts. Out: a Trainer that says nothing and saves nothing by itself; the
answers of `generate`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from foreword import Backbone, EncodingConfig, Row
from foreword.chat import encode, end_tokens, read_answer


def trainer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    folder: str,
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> Trainer:
    """Return a Trainer over rows, padded on the right; `arguments` are TrainingArguments'."""
    quiet: dict[str, Any] = {
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    made = Trainer(
        model,
        TrainingArguments(output_dir=folder, **quiet | arguments),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        train_dataset=[columns(row) for row in rows],
        callbacks=list(callbacks),
    )
    made.remove_callback(PrinterCallback)
    return made


def columns(row: Row) -> dict[str, list[int]]:
    """Return a row as Trainer reads it; only its labels are learnt."""
    ids, num_given = list(row.input_ids), len(row.input_ids) - row.num_labels
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": [-100] * num_given + ids[num_given:],
    }


def answers(
    backbone: Backbone,
    model: Any,
    texts: Sequence[str],
    config: EncodingConfig,
    batch_size: int,
    max_new_tokens: int,
) -> Iterator[str]:
    """Answer texts greedily in batches padded on the left; of one row each they have no padding."""
    pad = backbone.tokenizer.pad_token_id
    ends = end_tokens(backbone, texts[0], config)
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        rows = [encode(backbone, text, config)[0] for text in part]
        length = max(len(row) for row in rows)
        ids = torch.tensor([[pad] * (length - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(backbone.device), attention_mask=mask.to(backbone.device),
                max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=ends,
                pad_token_id=pad,
            )  # fmt: skip
        for row in output.tolist():
            yield read_answer(backbone, row[length:], ends).text
