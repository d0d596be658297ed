"""The metric of calls: tools are shown to the model, and what it calls is compared by meaning."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_tokenizer import tiny_tokenizer
from tool_templates import HERMES, MISTRAL, RESPONSE, TEMPLATES
from typer.testing import CliRunner

from foreword import Backbone, EncodingConfig, SoftPrompt, chat
from foreword.chat import Answer
from foreword.cli import app
from foreword.config import EvalConfig, ResamplingConfig
from foreword.data.argument_types import type_of
from foreword.data.columns import as_examples
from foreword.data.tool_calls import ToolCall
from foreword.errors import DataError, InputError
from foreword.evaluation.answered_calls import answered_calls, expected_calls
from foreword.evaluation.evaluation import Subject, evaluate, read_rows
from foreword.evaluation.metrics import METRICS, Outcome, check_vote, choose, same_calls

FAST = ResamplingConfig(num_resamples=20)
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def row(*calls: dict[str, Any], text: str = "") -> dict[str, Any]:
    made = [
        {"id": f"abcdefgh{number}", "type": "function", "function": call}
        for number, call in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": text} | ({"tool_calls": made} if made else {})
    return {"messages": [{"role": "user", "content": "lamp"}, answer], "tools": TOOLS}


F, G = {"name": "f", "arguments": '{"a": 1, "b": "x"}'}, {"name": "g", "arguments": {}}
EXAMPLES = [
    example for one in (row(F), row(F, G), row(text="No."), row(G)) for example in as_examples(one)
]


@pytest.fixture
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer(chat_template=MISTRAL)
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    return Backbone(model, tokenizer)


def test_calls_are_compared_by_meaning_and_order() -> None:
    one, other = ToolCall("f", {"a": 1.0, "b": [True]}, "x"), ToolCall("g", {})
    expected = (ToolCall("f", {"b": [True], "a": 1}), other)
    assert same_calls(Outcome("", expected_calls=expected, calls=(one, other)))
    for calls in ((other, one), (one,), (one, other, other), (one._replace(name="h"), other)):
        assert not same_calls(Outcome("", expected_calls=expected, calls=calls))
    assert not same_calls(Outcome("", expected_calls=(one._replace(arguments={}),), calls=(one,)))
    assert same_calls(Outcome("No.", "Yes."))


def test_every_rows_tools_are_shown_and_its_calls_are_read(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, shown = backbone.tokenizer, []
    said = [
        '<|bos|>[{"name": "f", "arguments": {"b": "x", "a": 1.0}, "id": "abcdefghi"}]',
        '<|bos|>[{"name": "f", "arguments": {"a": 1, "b": "x"}}, {"name": "g", "arguments": {}}]',
        '<|bos|>[{"name": "g", "arguments": {}}]',
        '<|bos|>[{"name": "h", "arguments": {}}]',
    ]

    def answer_rows(_: Any, __: Any, rows: Sequence[Any], *___: Any, **____: Any) -> Iterator[Any]:
        shown.extend(tokenizer.decode(one.input_ids) for one in rows)
        for text in said:
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
            yield chat.Answer(text, len(ids), True, ids)

    monkeypatch.setattr(chat, "answer_rows", answer_rows)
    metrics = choose("auto", [example.completion for example in EXAMPLES], True)
    assert metrics.reason == "answers call tools"
    found = evaluate(backbone, Subject("bare"), EXAMPLES, metrics.metrics, EvalConfig(), FAST)
    assert [*map(same_calls, found.outcomes)] == [True, True, False, False]
    assert found.scores["calls"].value == 0.5 and found.scores["loss"].value > 0
    assert all('"name": "f"' in one and '"name": "g"' in one for one in shown)


def test_a_tokenizers_response_template_reads_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server reads them: a call in reasoning is none."""
    tokenizer = tiny_tokenizer(chat_template=HERMES)
    tokenizer.response_template = RESPONSE
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    call = '<tool_call>{"name": "f", "arguments": {"a": 1, "b": "x"}}</tool_call>'
    said = [f"<think>Hm.</think>\n{call}", f"<think>{call}</think>\nNo."]

    def answer_rows(_: Any, __: Any, rows: Sequence[Any], *___: Any, **____: Any) -> Iterator[Any]:
        for text in said:
            ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
            yield chat.Answer(text, len(ids), True, ids)

    monkeypatch.setattr(chat, "answer_rows", answer_rows)
    examples = [EXAMPLES[0], next(iter(as_examples(row(text="No."))))]
    found = evaluate(Backbone(model, tokenizer), Subject("bare"), examples, [METRICS["calls"]],
                     EvalConfig(), FAST)  # fmt: skip
    assert [len(outcome.calls) for outcome in found.outcomes] == [1, 0]
    assert found.scores["calls"].value == 1.0


VALUES = ["12345", "true", "null", '{"a": 1}', 7, True, None, ["x"], {"k": "1"}]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("has_tools", [True, False])
def test_a_rows_own_answer_is_right_by_every_template(name: str, has_tools: bool) -> None:
    """Also where no schema says of what type an argument is: the row's own calls do."""
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=2048)
    base = Backbone(model, tokenizer)
    examples = [
        example
        for value in VALUES
        for example in as_examples(row({"name": "f", "arguments": json.dumps({"z": value})}))
    ]
    if not has_tools:
        examples = [replace(example, tools=()) for example in examples]
    if has_tools:
        kinds = [{"type": type_of(value)} for value in VALUES]
        examples = [
            replace(example, tools=({"type": "function", "function": {
                "name": "f", "parameters": {"type": "object", "properties": {"z": kind}},
            }},))
            for example, kind in zip(examples, kinds, strict=True)
        ]  # fmt: skip
    _, rows = read_rows(base, Subject("bare"), examples, [METRICS["calls"]], EvalConfig())
    answers = [
        Answer("", one.num_labels, is_finished=True, ids=one.input_ids[-one.num_labels :])
        for one in rows
    ]
    found = answered_calls(base, EncodingConfig(), examples, answers)
    for calls, read in zip(expected_calls(examples), found, strict=True):
        assert same_calls(Outcome("", expected_calls=calls, calls=read)), (calls, read)


def test_a_call_that_is_not_read_back_is_refused_before_any_answer() -> None:
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES["marks"])
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=2048)
    spelled = {"z": "x", "y": "</parameter>\n<parameter=z>"}
    [bad] = as_examples(row({"name": "f", "arguments": json.dumps(spelled)}))
    answered: list[int] = []
    with pytest.raises(DataError, match="read otherwise from the text .*leave the row out"):
        evaluate(
            Backbone(model, tokenizer), Subject("bare"), [EXAMPLES[0], bad], [METRICS["calls"]],
            EvalConfig(max_new_tokens=2), FAST, on_answer=lambda: answered.append(1),
        )  # fmt: skip
    assert not answered


def test_what_cannot_be_compared_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="exact compares text: .*--metrics loss,calls"):
        evaluate(backbone, Subject("bare"), EXAMPLES, [METRICS["exact"]])
    with pytest.raises(InputError, match="without tools"):
        members = tuple(
            SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 2, seed))
            for seed in (1, 2)
        )
        evaluate(backbone, Subject("both", members=members), EXAMPLES, [METRICS["calls"]])
    with pytest.raises(InputError, match="a vote is taken over texts"):
        check_vote([METRICS["calls"]])


def test_the_command_trains_on_calls_and_scores_them(tmp_path: Path) -> None:
    """Typed as a user types it: a base whose template knows no tools, and a file that has one."""
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    model.float().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "own.jinja").write_text(MISTRAL)
    data, rows = tmp_path / "rows.jsonl", [row(F), row(G)]
    rows[1]["messages"][0] = {"role": "user", "content": "bell"}
    data.write_text("".join(json.dumps(one) + "\n" for one in rows))

    def typed(*words: str) -> Any:
        return CliRunner().invoke(app, [*words, "--data", str(data)], terminal_width=200)

    output = str(tmp_path / "prompt")
    common = ("--num-steps", "1", "--num-virtual-tokens", "2", "--output", output)
    base = ("--model", str(tmp_path / "base"))
    refused = typed("train", *base, *common)
    assert refused.exit_code and "shows no" in str(refused.exception) + refused.output
    own = ("--chat-template", str(tmp_path / "own.jinja"))
    trained = typed("train", *base, *common, *own)
    assert trained.exit_code == 0, trained.output
    predictions = tmp_path / "said.jsonl"
    scored = typed(
        "eval", *base, "--prompt", output, "--max-new-tokens", "2", "--unrelated", "none",
        "--predictions", str(predictions),
    )  # fmt: skip
    assert scored.exit_code == 0, scored.output
    assert "answers call tools" in scored.output and "0.0%" in scored.output
    line = json.loads(predictions.read_text().splitlines()[0])
    assert line["expected_calls"] == [{"name": "f", "arguments": {"a": 1, "b": "x"}}]
