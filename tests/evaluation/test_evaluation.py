"""Evaluation: answers and losses beside the oracle, instructions as turns, forgetting."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import seq2seq_models
import seq2seq_oracle
import tiny_models
import torch
from tiny_tokenizer import CHATML, tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example, SoftPrompt, chat
from foreword.config import EvalConfig, ResamplingConfig
from foreword.errors import DataError, InputError, UnsupportedError
from foreword.evaluation.ensembles import averaged, vote
from foreword.evaluation.evaluation import Subject, evaluate, read_as, read_rows, voted
from foreword.evaluation.forgetting import forgetting, unrelated_text
from foreword.evaluation.inspection import attention_received
from foreword.evaluation.metrics import METRICS, row_metric
from foreword.named_text import text_prompt

EXAMPLES = [
    Example("a", "bc", "rows:1"),
    Example("bit", "a", "rows:2"),
    Example("cc", "hello", "rows:3"),
]
PLAIN = EncodingConfig(row_template="{prompt}")
FAST = ResamplingConfig(num_resamples=50)
SHORT = EvalConfig(batch_size=2, max_new_tokens=3)


def backbone(**changes: Any) -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer), **changes)
    return Backbone(model, tokenizer)


def soft_prompt(model: Backbone, num_virtual: int = 4) -> SoftPrompt:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(num_virtual, 32, generator=generator, dtype=torch.float64)
    return SoftPrompt.from_embeddings(rows * 0.3)


def slow_loss(model: Backbone, prompt: SoftPrompt | None, ids: list[int], num_labels: int) -> float:
    logits = oracle.row_logits(model.model, prompt, torch.tensor(ids))[:-1]
    labels = torch.tensor(ids[1:])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    return losses[-num_labels:].sum().item()


def test_scores_count_the_answers_that_match() -> None:
    always = row_metric("always", lambda answer, expected: True)
    seen = []
    result = evaluate(
        backbone(), Subject("bare", encoding=PLAIN), EXAMPLES, [always], SHORT, FAST,
        on_answer=lambda: seen.append(1),
    )  # fmt: skip
    assert result.scores["always"].value == 1.0
    assert len(result.answers) == len(result.outcomes) == len(seen) == 3


def test_answers_and_losses_are_the_oracles() -> None:
    model = backbone()
    prompt = soft_prompt(model)
    subject = Subject("soft prompt", prompt, encoding=PLAIN)
    result = evaluate(model, subject, EXAMPLES, config=SHORT, resampling=FAST)
    ends = [model.tokenizer.eos_token_id]
    for example, outcome in zip(EXAMPLES, result.outcomes, strict=True):
        ids, labels = (
            list(model.tokenizer(t).input_ids) for t in (example.prompt, outcome.expected)
        )
        new = oracle.greedy(model.model, prompt, torch.tensor(ids), 3)
        assert outcome.answer == model.tokenizer.decode(new, skip_special_tokens=True)
        loss = slow_loss(model, prompt, [*ids, *labels, *ends], len(labels) + 1)
        assert outcome.loss == pytest.approx(loss, abs=1e-9)
        assert outcome.num_labels == len(labels) + 1


def test_the_loss_alone_generates_nothing() -> None:
    found = evaluate(backbone(), Subject("bare"), EXAMPLES, [METRICS["loss"]], SHORT, FAST)
    assert found.answers == () and found.scores["loss"].value > 0


def test_no_examples_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one"):
        evaluate(backbone(), Subject("bare"), [])


def test_a_row_that_does_not_fit_behind_a_prompt_is_named() -> None:
    model = backbone(max_position_embeddings=16)
    long = [Example("x" * 12, "y", "rows.jsonl:7")]
    assert evaluate(model, Subject("bare", encoding=PLAIN), long, [METRICS["loss"]]).outcomes
    with pytest.raises(DataError, match=r"rows.jsonl:7: expected at most 12 tokens for mine, got"):
        evaluate(model, Subject("mine", soft_prompt(model), encoding=PLAIN), long)


def test_the_length_of_training_rows_does_not_bind_evaluation() -> None:
    short = EncodingConfig(row_template="{prompt}", max_length=2)
    found = evaluate(backbone(), Subject("x", encoding=short), EXAMPLES, [METRICS["loss"]])
    assert [outcome.num_labels for outcome in found.outcomes] == [3, 2, 6]


def test_an_instruction_is_the_system_turn() -> None:
    turns = read_as(backbone(), Subject("x", instruction="Be brief."), "hi")
    assert turns == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


SYSTEM = {"role": "system", "content": "Own."}
USER = {"role": "user", "content": "a"}


def test_an_instruction_stands_before_a_rows_own_system_turn() -> None:
    subject = Subject("told", instruction="Be brief.")
    told = read_as(backbone(), subject, (SYSTEM, USER))
    assert told == [SYSTEM | {"content": "Be brief.\n\nOwn."}, USER]


def test_without_a_system_turn_an_instruction_stands_before_the_question(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, subject = backbone(), Subject("told", instruction="Be brief.")
    model.tokenizer.chat_template = CHATML.replace("['system', ", "[")
    assert read_as(model, subject, "a") == [USER | {"content": "Be brief.\n\na"}]
    evaluate(model, subject, EXAMPLES[:1], config=SHORT, resampling=FAST)
    assert "the base has no system turn" in caplog.text


def test_without_a_system_turn_an_instruction_stands_before_no_greeting() -> None:
    model, subject = backbone(), Subject("told", instruction="Be brief.")
    model.tokenizer.chat_template = CHATML.replace("['system', ", "[")
    greeting = {"role": "assistant", "content": "Hello."}
    told = [greeting, USER | {"content": "Be brief.\n\na"}]
    assert read_as(model, subject, (greeting, USER)) == told


def test_an_instruction_before_turns_needs_a_chat_template() -> None:
    model, subject = backbone(), Subject("told", instruction="Be brief.")
    model.tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        evaluate(model, subject, [Example((USER,), "b", "rows:1")], config=SHORT)


def test_an_answer_that_calls_tools_is_scored_by_its_loss_alone() -> None:
    template = CHATML.replace(
        "message['content']", "message['content'] ~ (message.tool_calls or '')"
    )
    model = backbone()
    model.tokenizer.chat_template = template
    answer = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    examples = [Example((USER,), "", "rows:7", answer=answer)]
    with pytest.raises(DataError, match="^rows:7: the answer holds more than text, and exact"):
        evaluate(model, Subject("bare"), examples, config=SHORT)
    [outcome] = evaluate(model, Subject("bare"), examples, [METRICS["loss"]], SHORT, FAST).outcomes
    assert outcome.num_labels > 10


def test_every_row_of_a_batch_ends_as_it_does_alone() -> None:
    model = backbone()
    model.tokenizer.chat_template = CHATML.replace("~ '<|im_end|>", "~ 'b<|bos|>")
    texts: list[Any] = ["hello", [USER], "a", [USER | {"content": "bit"}]]
    ends = [chat.end_tokens(model, text, EncodingConfig()) for text in texts]
    assert ends[0] != ends[1]
    together = list(chat.answers(model, None, texts, max_new_tokens=20))
    alone = [next(chat.answers(model, None, [text], max_new_tokens=20)) for text in texts]
    assert together == alone
    prompts = [soft_prompt(model), soft_prompt(model, 2)]
    for answer in (vote, averaged):
        both = list(answer(model, prompts, texts, max_new_tokens=20))
        assert both == [next(answer(model, prompts, [text], max_new_tokens=20)) for text in texts]


def test_forgetting_is_the_change_of_the_oracles_loss() -> None:
    model = backbone()
    prompt = soft_prompt(model)
    text = "The river rises in the hills. " * 10
    found = forgetting(model, prompt, text, resampling=FAST)
    ids = list(model.tokenizer(text).input_ids)
    parts = [ids[start : start + 128] for start in range(0, len(ids), 128)]
    count = len(ids) - len(parts)
    for score, one in ((found.without, None), (found.behind, prompt)):
        slow = sum(slow_loss(model, one, part, len(part) - 1) for part in parts) / count
        assert score.value == pytest.approx(slow, abs=1e-9)
    assert found.change.value == pytest.approx(found.behind.value - found.without.value)
    assert found.change.has_interval and len(parts) == 3


def test_every_window_of_unrelated_text_begins_as_a_text_does() -> None:
    tokenizer = tiny_tokenizer(adds="<|bos|> $A")
    model = Backbone(backbone().model, tokenizer)
    text = "The river rises in the hills. " * 10
    found = forgetting(model, soft_prompt(model), text, resampling=FAST)
    ids = list(tokenizer(text, add_special_tokens=False).input_ids)
    parts = [[0, *ids[start : start + 127]] for start in range(0, len(ids), 127)]
    slow = sum(slow_loss(model, None, part, len(part) - 2) for part in parts)
    assert found.without.value == pytest.approx(slow / (len(ids) - len(parts)), abs=1e-9)


def test_a_prompt_that_says_nothing_forgets_nothing() -> None:
    model = backbone()
    empty = model.compile(soft_prompt(model))
    same = forgetting(model, empty, unrelated_text()[:300], resampling=FAST)
    again = forgetting(model, empty, unrelated_text()[:300], resampling=FAST)
    assert same.change.value == again.change.value
    with pytest.raises(InputError, match="at least 2 tokens"):
        forgetting(model, empty, "a")


def test_the_text_that_comes_along_is_long_enough_to_tell() -> None:
    assert len(unrelated_text().split()) > 900


def test_an_encoder_decoder_is_scored_as_its_oracle_and_forgets_nothing_to_continue() -> None:
    tokenizer = tiny_tokenizer("$A <|im_end|>", chat_template=None)
    network = seq2seq_models.build("t5", vocab_size=len(tokenizer))
    model, prompt = Backbone(network, tokenizer), seq2seq_models.embedding_prompt(network, 3)
    (found,) = evaluate(model, Subject("x", prompt), EXAMPLES[:1], config=SHORT).outcomes
    row, labels = (torch.tensor(tokenizer(text).input_ids) for text in ("a", "bc"))
    given = torch.cat([torch.tensor([network.config.decoder_start_token_id]), labels[:-1]])
    logits = seq2seq_oracle.row_logits(network, prompt, row, given)
    slow = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    assert found.loss == pytest.approx(slow, abs=1e-6) and found.num_labels == len(labels)
    with pytest.raises(UnsupportedError, match="answers texts and continues none"):
        forgetting(model, prompt, unrelated_text())
    with pytest.raises(UnsupportedError, match="attention is shown of decoders alone"):
        attention_received(model, prompt, [5, 6])


def test_the_page_on_evaluation_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in EXAMPLES]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    model = backbone()
    exec(code, {"backbone": model, "prompt": soft_prompt(model)})
    value, low, high, _ = capsys.readouterr().out.split()
    assert float(low) <= float(value) <= float(high)


def three(model: Backbone) -> tuple[SoftPrompt, ...]:
    facts = {"encoding": {"row_template": "{prompt}"}}
    values = soft_prompt(model).embeddings
    return tuple(SoftPrompt.from_embeddings(values * scale, facts=facts) for scale in (1, 5, 25))


def test_prompts_together_are_scored_by_their_mean_probability() -> None:
    model = backbone()
    prompts = three(model)
    metrics = (METRICS["loss"], METRICS["exact"])
    found = evaluate(model, Subject("mean", members=prompts), EXAMPLES, metrics, SHORT, FAST)
    for outcome, example in zip(found.outcomes, EXAMPLES, strict=True):
        ids = [*model.tokenizer(f"{example.prompt}{example.completion}").input_ids]
        ids.append(model.tokenizer.eos_token_id)
        rows = [oracle.row_logits(model.model, one, torch.tensor(ids))[:-1] for one in prompts]
        mean = torch.stack(rows).softmax(-1).mean(0)
        losses = -mean.log().gather(-1, torch.tensor(ids[1:])[:, None]).squeeze(-1)
        assert outcome.loss == pytest.approx(losses[-outcome.num_labels :].sum().item(), rel=1e-9)
    texts = [example.prompt for example in EXAMPLES]
    assert found.answers == tuple(averaged(model, prompts, texts, max_new_tokens=3))


def test_a_vote_over_results_is_the_vote_of_their_prompts() -> None:
    model = backbone()
    other = SoftPrompt.from_embeddings(2 * soft_prompt(model).embeddings)  # in a chat turn
    prompts = (*three(model), other)
    metrics = (METRICS["loss"], METRICS["exact"])
    alone = [
        evaluate(model, Subject(str(index), prompt), EXAMPLES, metrics, SHORT, FAST)
        for index, prompt in enumerate(prompts)
    ]
    found = voted("vote", alone, metrics, FAST)
    expected = list(vote(model, prompts, [e.prompt for e in EXAMPLES], max_new_tokens=3))
    assert list(found.answers) == [one.answer for one in expected]
    assert found.subject.members == prompts and found.scores.keys() == {"exact"}


def test_members_answer_as_they_are() -> None:
    model = backbone()
    with pytest.raises(InputError, match="give no prompt, instruction or encoding"):
        Subject("both", prompt=soft_prompt(model), members=three(model))
    other = SoftPrompt.from_embeddings(soft_prompt(model).embeddings)
    with pytest.raises(InputError, match="encoded differently"):
        evaluate(model, Subject("two", members=(*three(model), other)), EXAMPLES)


# --- what is measured is what is asked ------------------------------------------------------------

FILLED = "<|im_start|>user\nlamp on<|im_end|>\n<|im_start|>assistant\n"
SAVED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "PEFT's": {"encoding": {}},
    "turns": {"encoding": {"is_text": False}},
    "plain": {"encoding": {"is_text": True}},
    "mixed": {"encoding": {"is_text": None}},
    "row template": {"encoding": {"row_template": "Q: {prompt}\nA:"}},
}


@pytest.mark.parametrize("text", ["lamp on", FILLED])
@pytest.mark.parametrize("saved", SAVED)
def test_a_text_is_measured_as_every_route_asks_it(saved: str, text: str) -> None:
    model = backbone()
    prompt = soft_prompt(model)
    prompt.facts.update(SAVED[saved])
    example = Example(text, "b", "rows:1")
    subject = Subject("own", prompt)
    _, [row] = read_rows(model, subject, [example], [METRICS["loss"]], SHORT)
    asked = row.input_ids[: -row.num_labels]
    typed = chat.typed(model, prompt, text)
    config = chat.encoding_of(prompt)
    assert asked == chat.encode_row(model, typed, config).input_ids
    [answer] = chat.answers(model, prompt, [typed], max_new_tokens=3)
    found = evaluate(model, subject, [example], "exact", SHORT, FAST)
    assert found.answers == (answer,)
    # Training wrote a filled template as it is, whatever the rows were, but for a row template.
    if saved != "row template":
        is_turn = saved in ("nothing", "PEFT's", "turns") and text != FILLED
        assert isinstance(typed, str) != is_turn


def test_a_filled_template_is_asked_as_it_is_of_the_bare_model_too() -> None:
    model = backbone()
    example = Example(FILLED, "b", "rows:1")
    _, [row] = read_rows(model, Subject("bare"), [example], [METRICS["loss"]], SHORT)
    turn = replace(example, prompt=({"role": "user", "content": "lamp on"},))
    _, [expected] = read_rows(model, Subject("bare"), [turn], [METRICS["loss"]], SHORT)
    assert row.input_ids == expected.input_ids
    told = Subject("told", instruction="Be brief.")
    with pytest.raises(InputError, match="told: a row begins with a special token"):
        evaluate(model, told, [example], "loss")


def test_an_instruction_is_heard_wherever_it_is_taken() -> None:
    model = backbone()
    behind = soft_prompt(model)
    behind.facts["encoding"] = {"row_template": "Q: {prompt}\nA:"}
    for subject in (Subject("x", encoding=PLAIN), Subject("x", behind)):
        for prompt in ("a", ({"role": "user", "content": "a"},)):
            example = [Example(prompt, "b", "rows:1")]
            told = replace(subject, instruction="Be brief.")
            joined = [replace(example[0], prompt="Be brief.\n\na")]
            losses = [
                evaluate(model, one, rows, "loss", SHORT, FAST).scores["loss"].value
                for one, rows in ((subject, example), (told, example), (subject, joined))
            ]
            assert losses[0] != losses[1] == losses[2]
    held = text_prompt(model, "Be brief.")
    with pytest.raises(InputError, match="x: the prompt holds a text itself"):
        evaluate(model, Subject("x", held, instruction="In French."), EXAMPLES, "loss")


def test_answers_past_the_last_position_are_refused_before_the_first() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    model = Backbone(tiny_models.build("gpt2", vocab_size=len(tokenizer)), tokenizer)
    limit = model.capabilities.context_length
    assert limit is not None
    rows = [*EXAMPLES, Example("x" * (limit - 10), "b", "rows:4")]
    answered: list[int] = []
    config = EvalConfig(max_new_tokens=32)
    with pytest.raises(DataError, match=r"rows:4: expected at most .* lower --max-new-tokens"):
        evaluate(
            model, Subject("bare"), rows, "exact", config, FAST,
            on_answer=lambda: answered.append(1),
        )  # fmt: skip
    assert not answered
    assert evaluate(model, Subject("bare"), rows, "loss", config, FAST).scores["loss"].value > 0
