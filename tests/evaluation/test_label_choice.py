"""Classification: choices beside the oracle, calibration by its definition, the options."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from test_evaluation import EXAMPLES, FAST, PLAIN, SHORT, backbone, slow_loss, soft_prompt
from typer.testing import CliRunner

from foreword import Example
from foreword.cli.commands import app
from foreword.errors import DataError, InputError
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.label_choice import choices_of
from foreword.evaluation.metrics import CALIBRATION, METRICS, Outcome

CHOICES = ("bc", "a", "hello", "b")


@pytest.mark.parametrize("is_bare", [True, False])
def test_the_likeliest_answer_is_chosen_with_its_probability(is_bare: bool) -> None:
    model = backbone()
    prompt = None if is_bare else soft_prompt(model)
    subject = Subject("x", prompt, encoding=PLAIN)
    metrics = [METRICS["loss"], METRICS["exact"], CALIBRATION]
    found = evaluate(model, subject, EXAMPLES, metrics, SHORT, FAST, choices=CHOICES)
    end = model.tokenizer.eos_token_id
    for example, outcome in zip(EXAMPLES, found.outcomes, strict=True):
        asked = model.tokenizer(example.prompt).input_ids
        losses = []
        for choice in CHOICES:
            labels = [*model.tokenizer(choice).input_ids, end]
            losses.append(slow_loss(model, prompt, [*asked, *labels], len(labels)))
        shares = [math.exp(-loss) for loss in losses]
        assert outcome.answer == CHOICES[losses.index(min(losses))]
        assert outcome.confidence == pytest.approx(max(shares) / sum(shares), abs=1e-9)
        assert outcome.loss == pytest.approx(losses[CHOICES.index(example.completion)], abs=1e-9)
    assert set(found.scores) == {"loss", "exact", "ece"} and found.seconds > 0


def test_members_choose_by_the_mean_of_their_probabilities() -> None:
    model = backbone()
    one, other = soft_prompt(model), soft_prompt(model, 2)
    twice = Subject("twice", members=(one, one))
    alone, both, mixed = (
        evaluate(model, subject, EXAMPLES, [METRICS["exact"]], SHORT, FAST, choices=CHOICES)
        for subject in (Subject("one", one), twice, Subject("two", members=(one, other)))
    )
    for first, second, third in zip(alone.outcomes, both.outcomes, mixed.outcomes, strict=True):
        assert first.confidence == pytest.approx(second.confidence, abs=1e-9)
        assert first.confidence != pytest.approx(third.confidence, abs=1e-6)


def test_calibration_is_the_mean_distance_of_confidence_and_right_answers() -> None:
    pairs = [(0.95, True), (0.92, False), (0.35, True), (1.0, True)]
    outcomes = [Outcome("a", "a" if right else "b", confidence=sure) for sure, right in pairs]
    # One bin of .92, .95 and 1.0, of which two are right; one of .35, which is right.
    expected = (abs(0.95 + 0.92 + 1.0 - 2) + abs(0.35 - 1)) / 4
    found = CALIBRATION.sample(outcomes, np.ones((1, 4), dtype=np.int64))
    assert found[0] == pytest.approx(expected)
    twice = CALIBRATION.sample(outcomes, np.array([[0, 0, 2, 0]]))
    assert twice[0] == pytest.approx(0.65)


def test_choices_come_from_commas_lines_or_the_data() -> None:
    assert choices_of(" bc, a ,hello", EXAMPLES) == ("bc", "a", "hello")
    assert choices_of("bc, a\nhello\n", [Example("x", "hello")]) == ("bc, a", "hello")
    assert choices_of("data", EXAMPLES) == ("bc", "a", "hello")
    for few in ("", "a", "a,a", ","):
        with pytest.raises(InputError, match="--choices: expected two different answers or more"):
            choices_of(few, EXAMPLES)
    with pytest.raises(DataError, match=r"rows:3: the answer 'hello' is none of --choices"):
        choices_of("bc,a", EXAMPLES)


@pytest.mark.parametrize("answer", ["HELLO", '"hello"', " Hello. "])
def test_an_answer_that_is_a_choice_but_for_its_case_is_refused_with_that_choice(
    answer: str,
) -> None:
    rows = [*EXAMPLES, Example("x", answer, "rows:9")]
    same = rf"^rows:9: the answer {re.escape(repr(answer))} is the choice 'hello' apart from case"
    with pytest.raises(DataError, match=rf"{same}, quotes or a final stop: write both alike$"):
        choices_of("bc,a,hello", rows)
    with pytest.raises(InputError, match="write it in one way, also in the data"):
        choices_of("data", rows)


def test_choices_are_written_as_the_answers_of_the_data() -> None:
    spaced = [
        Example("x", " yes"),
        Example("y", " no\n"),
        Example("z", " yes"),
        Example("u", " no\n"),
    ]
    assert choices_of("data", spaced) == (" yes", " no\n")
    assert choices_of("no,yes,maybe", spaced) == (" no\n", " yes", " maybe")
    mixed = [*spaced, Example("v", "yes")]
    assert choices_of("yes,maybe", mixed[:1] + mixed[-1:] * 2) == ("yes", "maybe")
    model = backbone()
    subject = Subject("x", soft_prompt(model), encoding=PLAIN)
    metrics = [METRICS["loss"], METRICS["exact"]]
    choices = choices_of("data", spaced)
    [alone] = evaluate(model, subject, spaced[:1], metrics, SHORT, FAST, choices=choices).outcomes
    losses = [
        evaluate(model, subject, [Example("x", text)], metrics[:1], SHORT, FAST).outcomes[0].loss
        for text in choices
    ]
    shares = [math.exp(-loss) for loss in losses]
    assert alone.confidence == pytest.approx(max(shares) / sum(shares), abs=1e-9)


def test_an_answer_with_nothing_before_it_is_refused_by_name() -> None:
    model = backbone()
    rows = [Example("", "a", "rows:7"), Example("x", "b", "rows:8")]
    with pytest.raises(DataError, match=r"^rows:7: nothing stands before the answer"):
        evaluate(model, Subject("x", encoding=PLAIN), rows, [METRICS["loss"]], SHORT, FAST)


def test_choices_that_become_the_same_tokens_are_refused() -> None:
    model = backbone()
    twice = ("a", f"a{model.tokenizer.eos_token}", "bc", "hello")
    with pytest.raises(DataError, match="'a' and 'a.*' become the same tokens"):
        evaluate(model, Subject("x", encoding=PLAIN), EXAMPLES, [METRICS["exact"]], choices=twice)


def test_options_and_calls_go_with_no_choices() -> None:
    model = backbone()
    with pytest.raises(InputError, match="nothing is generated"):
        evaluate(model, Subject("x"), EXAMPLES, choices=CHOICES, do_sample=True)


def test_the_command_writes_choices_and_how_sure_they_are(tmp_path: Path) -> None:
    model, data = backbone(), tmp_path / "rows.jsonl"
    model.model.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": one.prompt, "completion": one.completion} for one in EXAMPLES]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = tmp_path / "predictions.jsonl"
    ask = ["eval", "--model", str(tmp_path / "base"), "--data", str(data), "--json"]
    asked = [*ask, "--choices", "data", "--predictions", str(predictions)]
    [result] = json.loads(CliRunner().invoke(app, asked).stdout)["results"]
    assert "ece" in result["scores"]
    for line in predictions.read_text().splitlines():
        answer = json.loads(line)["answers"]["bare model"]
        assert answer["answer"] in ("bc", "a", "hello") and 1 / 3 <= answer["confidence"] <= 1
    asked[-1:] = [str(tmp_path / "few.jsonl"), "--limit", "1"]  # the choices stay those of the file
    CliRunner().invoke(app, asked, catch_exceptions=False)
    all_of, few = (
        [
            json.loads(line)["answers"]["bare model"]["confidence"]
            for line in file.read_text().splitlines()
        ]
        for file in (predictions, tmp_path / "few.jsonl")
    )
    assert few == pytest.approx(all_of[:1], abs=1e-4)
    with pytest.raises(DataError, match="none of --choices"):
        CliRunner().invoke(app, [*ask, "--choices", "bc,a"], catch_exceptions=False)


def test_choices_from_python_are_written_as_those_of_the_command() -> None:
    rows = [Example(f"is it {word}?", answer) for word, answer in (("so", " yes"), ("up", " no"))]
    model = backbone()
    asked = Subject("x", encoding=PLAIN)
    one, other = (
        evaluate(model, asked, rows, "auto", SHORT, FAST, choices=choices)
        for choices in (("yes", "no"), choices_of("yes,no", rows))
    )
    assert one.outcomes == other.outcomes
    assert {"loss", "ece"} < set(one.scores) == set(other.scores)


@pytest.mark.parametrize("names", [("IT", "it"), ("C", "C."), ("a", "“A”")])
def test_choices_that_accuracy_takes_for_one_class_are_refused(names: tuple[str, str]) -> None:
    rows = [Example("x", names[0]), Example("y", names[1])]
    with pytest.raises(InputError, match="--choices: .* takes them for one class"):
        choices_of("data", rows)
    with pytest.raises(InputError, match="choices: .* takes them for one class"):
        evaluate(backbone(), Subject("x"), rows, choices=names)


def test_calibration_is_of_choices_alone() -> None:
    for metrics in ([CALIBRATION], "loss,ece"):
        with pytest.raises(InputError, match="--metrics ece is of answers that are chosen"):
            evaluate(backbone(), Subject("x"), EXAMPLES, metrics)
    found = evaluate(
        backbone(), Subject("x", encoding=PLAIN), EXAMPLES, "ece,exact", SHORT, FAST,
        choices=CHOICES,
    )  # fmt: skip
    assert list(found.scores) == ["ece", "exact"]
