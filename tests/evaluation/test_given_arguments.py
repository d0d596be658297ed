"""Arguments from Python: several things are a list, and what means nothing is one line."""

from collections.abc import Callable
from typing import Any

import pytest
from test_evaluation import EXAMPLES, FAST, PLAIN, SHORT, backbone, soft_prompt
from transformers import GenerationConfig

from foreword import DistillConfig, Example, TrainConfig, distill, train
from foreword.data.several import several
from foreword.errors import DataError, ForewordError, InputError
from foreword.evaluation.bootstrap import share
from foreword.evaluation.ensembles import averaged, vote
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS

MODEL = backbone()
PROMPT = soft_prompt(MODEL)
BARE = Subject("bare", encoding=PLAIN)
SAME = [Example("a", "yes"), Example("b", "no")]
RUN = TrainConfig(num_virtual_tokens=2, num_steps=1, method="prefix-tuning")


def asked(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "examples": EXAMPLES, "metrics": ("exact",), "config": SHORT, "resampling": FAST,
    }  # fmt: skip
    return evaluate(MODEL, BARE, **(given | changes))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: asked(examples="rows.jsonl"), "examples: expected a list of Examples, got 'rows"),
        (lambda: asked(examples=[{"prompt": "a"}]), "example 1: expected an Example, got dict"),
        (lambda: asked(metrics=[3]), "metrics: expected metrics or their names, got int"),
        (lambda: asked(metrics=()), "metrics: expected some of loss"),
        (lambda: asked(metrics="exakt"), "expected 'auto' or some of loss"),
        (lambda: asked(max_new_tokens=3), "max_new_tokens: give it in config, an EvalConfig"),
        (
            lambda: asked(generation_config=GenerationConfig(max_new_tokens=3)),
            "max_new_tokens: give it in config, an EvalConfig",
        ),
        (lambda: asked(max_length=3), "max_length: give it in config, an EvalConfig"),
        (lambda: asked(temperature=9.0), "temperature: the likeliest ids are taken"),
        (lambda: asked(metrics="loss", top_k=3), "nothing is generated for a loss: leave out top_"),
        (
            lambda: asked(examples=SAME, choices="yes,no"),
            "choices: expected a list of answers",
        ),
        (lambda: asked(examples=SAME, choices=("yes", "no", "yes ")), "two different answers"),
        (lambda: asked(examples=SAME[:1], choices=("yes",)), "two different answers or more"),
        (lambda: asked(examples=SAME, choices=("yes", 3)), "choices: expected texts, got 3"),
        (lambda: asked(examples=SAME, choices=("yes", "maybe")), "the answer 'no' is none of"),
        (lambda: list(vote(MODEL, [PROMPT], "hi")), "texts: expected a list of texts or conver"),
        (lambda: list(averaged(MODEL, [PROMPT], "hi")), "texts: expected a list of texts or con"),
        (lambda: list(vote(MODEL, [PROMPT], ["a"], batch_size=-1)), "batch_size must be at least"),
        (
            lambda: list(vote(MODEL, [PROMPT], ["a"], temperature=5.0)),
            "temperature: the likeliest ids are taken",
        ),
        (lambda: list(distill(MODEL, "a" * 90, "q.jsonl", RUN)), "queries: expected a list of te"),
        (lambda: list(train(MODEL, "rows.jsonl", RUN)), "examples: expected a list of rows, got"),
        (lambda: list(train(MODEL, {"prompt": "a"}, RUN)), "examples: expected a list of rows"),
        (lambda: list(train(MODEL, SAME, RUN, validation=0.1)), "validation: expected a list of"),
        (
            lambda: list(train(MODEL, SAME, RUN, objective="dpo")),
            "objective: expected an obj",
        ),
        (lambda: share(5, 2), "expected a count of 0 to 2, got 5"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(call: Callable[[], Any], named: str) -> None:
    with pytest.raises((InputError, DataError)) as refused:
        call()
    assert named in str(refused.value) and "\n" not in str(refused.value)
    assert isinstance(refused.value, ForewordError)


def test_metrics_may_be_names_or_come_from_a_generator() -> None:
    expected = asked(metrics=(METRICS["loss"], METRICS["exact"])).scores
    for given in ("loss,exact", ["loss", METRICS["exact"]], (name for name in ("loss", "exact"))):
        found = asked(metrics=given).scores
        assert list(found) == ["loss", "exact"]
        assert [one.value for one in found.values()] == [one.value for one in expected.values()]
    assert set(asked(metrics="auto").scores) == {"loss", "exact"}


def test_a_list_is_anything_that_yields_its_things_once() -> None:
    assert several("x", (n for n in range(3)), "numbers") == [0, 1, 2]
    table = type("DataFrame", (list,), {})
    with pytest.raises(InputError, match=r"of a DataFrame give df\.to_dict\('records'\)"):
        several("examples", table(), "rows")


def test_tokens_a_second_are_of_the_answers_alone() -> None:
    found = asked(metrics="loss,exact")
    assert 0 < found.answering_seconds < found.seconds
    tokens = sum(answer.num_tokens for answer in found.answers)
    assert found.tokens_per_second == pytest.approx(tokens / found.answering_seconds)


def test_distillation_takes_queries_from_a_generator() -> None:
    queries = (f"what is {letter}" for letter in "abcdefgh")
    config = DistillConfig(answer_tokens=2)
    *_, last = distill(MODEL, "ab " * 60, queries, RUN, distill_config=config)  # type: ignore[arg-type]
    assert last.prompt is not None
