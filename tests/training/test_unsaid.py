"""What would change nothing without a word: options without effect, rows that are known already."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.config import DataConfig, EncodingConfig, SamplingConfig
from foreword.data.columns import as_examples
from foreword.errors import DataError, InputError
from foreword.training.rows import contradicted, encode_rows, overlap

ROWS = [Row.from_ids([5, 6, 7], [8]), Row.from_ids([5, 6], [9])]
CONFIG = TrainConfig(num_virtual_tokens=2, init="vocabulary", num_steps=1, learning_rate=0.1)


@pytest.fixture(scope="module")
def trained_text() -> Backbone:
    tokenizer = tiny_tokenizer("$A <|im_end|>")
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    return Backbone(model, tokenizer)


@pytest.mark.parametrize(
    ("kind", "values", "named"),
    [
        (TrainConfig, {"patience": 2, "eval_every": 0}, "--patience 2"),
        (TrainConfig, {"num_steps": 2, "num_epochs": 1.0}, "--num-steps and --num-epochs"),
        (SamplingConfig, {"top_p": 0.9}, "--top-p 0.9"),
        (DataConfig, {"template": "{a}", "label_column": "b", "prompt_column": "c"}, "--template"),
    ],
)
def test_an_option_without_effect_is_refused(kind: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        kind(**values)


def test_a_pass_of_more_rows_than_a_step_is_refused() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    config = TrainConfig(batch_size=2, micro_batch_size=4, num_virtual_tokens=2)
    with pytest.raises(InputError, match="--micro-batch-size 4 is more .*, --batch-size 2$"):
        train(backbone, ROWS, config)
    config.check_step(2)
    with pytest.raises(InputError, match="--micro-batch-size 4 is more .* 1 times 3 answers to ea"):
        TrainConfig(batch_size=1, micro_batch_size=4).check_step(3)


def test_patience_needs_validation_rows() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    with pytest.raises(InputError, match="--patience .* no validation rows"):
        train(backbone, ROWS, TrainConfig(patience=2, num_virtual_tokens=2))


def test_an_init_beside_a_prompt_to_start_from_is_said_to_be_unused() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    initial = SoftPrompt.from_embeddings(torch.ones(2, 32))
    (event,) = train(backbone, ROWS, CONFIG, initial=initial)
    assert any("--init and --init-text are not used" in notice for notice in event.notices)


def test_validation_rows_that_are_trained_on_are_counted() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    held_out = [ROWS[0], Row.from_ids([5, 6], [4]), Row.from_ids([1, 2], [8])]
    (event,) = train(backbone, ROWS, CONFIG, validation=held_out)
    said = [notice for notice in event.notices if "validation rows have" in notice]
    assert said == [overlap(ROWS, held_out)]
    assert said[0].startswith("2 of 3 validation rows have the prompt of a training row, 1 of them")
    assert overlap(ROWS, held_out[2:]) is None


def test_rows_that_answer_the_same_in_two_ways_are_counted() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    rows = [Row.from_ids([5, 6], [answer], f"r:{answer}") for answer in (4, 7, 4, 8)]
    (event,) = train(backbone, rows, CONFIG)
    said = [notice for notice in event.notices if "another answer" in notice]
    assert said == [contradicted(rows)]
    assert said[0].startswith("2 of 4 training rows") and said[0].endswith("(r:7, r:8)")
    assert contradicted([rows[0], rows[2]]) is None


def test_one_class_that_is_written_in_two_ways_is_said(trained_text: Backbone) -> None:
    rows = [{"prompt": f"{n}", "completion": "No" if n == 2 else "no"} for n in range(6)]
    (event,) = train(trained_text, rows, CONFIG, validation=rows[:3])
    said = [notice for notice in event.notices if "differ only in case" in notice]
    assert len(said) == 1 and "'no' (5 rows), 'No' (1): " in said[0]
    (event,) = train(trained_text, rows[3:], CONFIG, validation=rows[:3])
    assert not any("differ only in case" in notice for notice in event.notices)


def test_rows_of_tasks_are_compared_with_those_of_their_own() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    rows = [
        replace(Row.from_ids([5, 6], [answer], f"r:{task}{answer}"), task=task)
        for task, answer in (("mood", 4), ("topic", 7), ("topic", 8))
    ]
    held_out = [replace(Row.from_ids([5, 6], [7], "h:1"), task="topic")]
    other = [replace(Row.from_ids([5, 7], [7], "h:2"), task="topic")]
    first = [replace(Row.from_ids([5, 7], [7], "r:9"), task="mood")]
    config = replace(CONFIG, method="multitask", task_column="task")
    (event,) = train(backbone, [*rows, *first], config, validation=[*held_out, *other])
    both = [one for one in event.notices if "another answer" in one or "validation rows" in one]
    assert both[0].startswith("1 of 4 training rows") and both[0].endswith("(r:topic8)")
    assert both[1].startswith("1 of 2 validation rows") and both[1].endswith("(h:1)")
    (event,) = train(backbone, [*rows, *first], CONFIG, validation=[*held_out, *other])
    assert event.notices[0].startswith("2 of 4 training rows")  # of one prompt
    assert event.notices[1].startswith("2 of 2 validation rows")


def test_named_columns_are_the_ones_that_are_read() -> None:
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]
    row = {"messages": turns, "q": "a", "a": "b"}
    named = DataConfig(prompt_column="q", completion_column="a")
    assert as_examples(row, config=named)[0].prompt == "a"
    assert as_examples(row)[0].completion == "v"
    with pytest.raises(DataError, match="'turns'.*--messages-column"):
        plain = {"prompt": "a", "completion": "b"}
        as_examples(plain, config=DataConfig(messages_column="turns"))


@pytest.fixture(scope="module")
def bart() -> Backbone:
    tokenizer = tiny_tokenizer("$A <|im_end|>")
    return Backbone(seq2seq_models.build("bart", vocab_size=len(tokenizer)), tokenizer)


def long_row(text: int, answer: int = 3) -> dict[str, str]:
    return {"prompt": "abcdefgh" * (text // 8), "completion": "x" * answer}


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_an_encoder_s_text_is_cut_at_its_start(bart: Backbone, method: Any) -> None:
    config = TrainConfig(method=method, num_virtual_tokens=2)
    encoder = bart.capabilities.encoder
    assert encoder is not None and encoder.context_length is not None
    room = encoder.context_length - 2 * (method == "prompt-tuning")
    examples = [long_row(2 * room), long_row(8)]
    with pytest.raises(DataError, match=f"at most {room} fit.*--truncate"):
        encode_rows(bart, examples, config, EncodingConfig())
    rows, said = encode_rows(bart, examples, config, EncodingConfig(truncate=True))
    whole = bart.tokenizer(examples[0]["prompt"]).input_ids
    assert list(rows[0].input_ids[: -rows[0].num_labels]) == whole[-room:]
    assert said == ["1 of 2 rows were too long and lost their beginning; every label is whole"]
    short, _ = encode_rows(bart, examples, config, EncodingConfig(truncate=True, max_length=9))
    assert [len(row.input_ids) for row in short] == [9, 9]
    assert short[0].input_ids[-rows[0].num_labels :] == rows[0].input_ids[-rows[0].num_labels :]
    with pytest.raises(DataError, match="labels of 1001 tokens, at most"):
        encode_rows(bart, [long_row(8, 1000)], config, EncodingConfig(truncate=True))


def test_what_a_prompt_forgets_needs_a_prompt(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from foreword.cli import app

    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    arguments = ["eval", "--data", str(path), "--unrelated", str(path), "--model", "./none"]
    ended = CliRunner().invoke(app, arguments)
    assert "--unrelated" in str(ended.exception)
