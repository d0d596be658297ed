"""What Python hands to a run is trained on, every one of it, or refused by name."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Example, Row, SoftPrompt, TrainConfig, train
from foreword.config import RewardConfig
from foreword.data.target import certain
from foreword.errors import ForewordError
from foreword.training.preference import Preference
from foreword.training.questions import Question
from foreword.training.rewarded import reward
from foreword.training.rewards import RewardFunction, load_reward

CONFIG = TrainConfig(
    form="key_values", num_virtual_tokens=3, init="vocabulary", batch_size=2, num_steps=1,
    eval_every=0,
)  # fmt: skip
ROWS = [{"prompt": "say a", "completion": "b"}, {"prompt": "say c", "completion": "d"}]
Pair = namedtuple("Pair", "prompt completion")


def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    return Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)


@pytest.mark.parametrize(
    "wrong", ["text", ("a", "b"), None, Pair("a", "b"), 5, Example("a", None), Example(3, "a")],  # type: ignore[arg-type]
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("is_held_out", [False, True])
def test_what_is_no_example_is_refused(wrong: Any, is_held_out: bool) -> None:
    given = {"validation": [wrong]} if is_held_out else {}
    with pytest.raises(ForewordError, match="expected .* got (str|tuple|None|Pair|int)"):
        train(backbone(), ROWS if is_held_out else [*ROWS, wrong], CONFIG, **given)


def test_examples_that_can_be_read_once_are_all_trained_on() -> None:
    made = backbone()
    rows = [Row.from_ids([3, 4], [5]), Row.from_ids([6], [7, 8]), *ROWS]
    [whole] = train(made, rows, CONFIG, validation=rows)
    [once] = train(made, iter(rows), CONFIG, validation=iter(rows))
    assert (once.loss, once.validation) == (whole.loss, whole.validation)
    assert once.validation is not None


ASKED = Row.from_ids([3, 4], [5], "row 1")
OTHER = Row.from_ids([3, 4], [6, 7])
TAUGHT = replace(ASKED, target=certain([5]))
PAIR = replace(ASKED, rejected=OTHER)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(PAIR, weight=2.0), "a weight of 2"),
        (replace(ASKED, rejected=replace(OTHER, weight=0.5)), "a weight of 0.5"),
        (replace(TAUGHT, rejected=replace(OTHER, target=certain([6, 7]))), "a teacher's target"),
        (replace(ASKED, rejected=Row.from_ids([4, 4], [6])), "different ids before them"),
        (replace(ASKED, rejected=ASKED), "are the same ids"),
    ],
    ids=["weight", "weight of the other", "targets", "other texts", "same answers"],
)
@pytest.mark.parametrize("is_held_out", [False, True])
def test_pairs_of_rows_hold_what_pairs_of_texts_hold(
    wrong: Row, said: str, is_held_out: bool
) -> None:
    rows = [PAIR] if is_held_out else [PAIR, wrong]
    given = {"validation": [wrong]} if is_held_out else {}
    with pytest.raises(ForewordError, match=f"^row 1: .*{said}"):
        train(backbone(), rows, CONFIG, objective=Preference(), **given)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("is_held_out", [False, True])
def test_rows_of_labels_and_of_a_teacher_mix_in_no_batch(size: int, is_held_out: bool) -> None:
    config = replace(CONFIG, micro_batch_size=size)
    mixed = [TAUGHT, replace(OTHER, source="bare")]
    with pytest.raises(ForewordError, match="^bare: has no teacher's target"):
        train(backbone(), [TAUGHT] if is_held_out else mixed, config,
              validation=mixed if is_held_out else ())  # fmt: skip


@pytest.mark.parametrize("name", ["config", "encoding_config"])
def test_options_are_of_their_class(name: str) -> None:
    given: Any = {"config": CONFIG} | {name: {"seed": 1}}
    with pytest.raises(ForewordError, match=f"{name}: expected a .*Config, got dict"):
        train(backbone(), ROWS, **given)


@pytest.mark.parametrize("ids", [[5.5], ["a"], [True], [None]])
def test_ids_are_whole_numbers(ids: list[Any]) -> None:
    with pytest.raises(ForewordError, match="expected token ids"):
        Row.from_ids(ids, [6])


@pytest.mark.parametrize(
    "options",
    [{"beta": -1.0}, {"beta": 0}, {"beta": "0.1"}, {"chosen_weight": -1.0}, {"beta": None}],
)
def test_weights_of_preferences_are_numbers_in_range(options: Any) -> None:
    with pytest.raises(ForewordError, match="expected a number"):
        Preference(**options)


def test_answers_that_become_the_same_tokens_are_no_pair() -> None:
    made = backbone()
    pair = {"prompt": "q", "chosen": "b", "rejected": f"b{made.tokenizer.eos_token}"}
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(made.model, 3))
    with pytest.raises(ForewordError, match="become the same tokens|same answer"):
        train(made, [pair, pair], CONFIG, initial=start, objective=Preference())


# Rewards ------------------------------------------------------------------------------------------


def run(function: Any, questions: Any, **given: Any) -> Any:
    made = backbone()
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(made.model, 3))
    config = RewardConfig(group=2, answer_tokens=2)
    return reward(made, start, RewardFunction("mine", function), questions, config, CONFIG, **given)


@pytest.mark.parametrize("wrong", ["a", None, ("a",)])
def test_a_question_is_a_row(wrong: Any) -> None:
    with pytest.raises(ForewordError, match="question 2: expected a row of columns"):
        run(lambda completions: [1.0] * len(completions), [{"prompt": "a"}, wrong])


def test_two_questions_of_one_source_are_refused() -> None:
    questions = [Question("a", "q", {}), Question("b", "q", {})]
    with pytest.raises(ForewordError, match="two questions have one source"):
        run(lambda completions: [1.0] * len(completions), questions)


class Odd:
    """Fails at whatever is done with it."""

    def __float__(self) -> float:
        raise AttributeError("no number")

    def __iter__(self) -> Any:
        raise KeyError("no list")

    def __repr__(self) -> str:
        raise RuntimeError("not shown")


@pytest.mark.parametrize("found", [Odd(), [Odd(), Odd()], [1e300, -1e300], [float("nan"), 1.0]])
def test_what_a_reward_function_returns_is_one_line(found: Any) -> None:
    with pytest.raises(ForewordError, match="--reward mine: expected"):
        RewardFunction("mine", lambda completions: found)(["a", "b"], ["c", "d"], [{}, {}])


def test_a_reward_function_that_exits_fails() -> None:
    def leave(completions: list[str]) -> None:
        raise SystemExit(0)

    with pytest.raises(ForewordError, match="--reward mine failed: SystemExit: 0"):
        RewardFunction("mine", leave)(["a"], ["b"], [{}])


def test_a_module_that_exits_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "exits.py").write_text("import sys\ndef r(completions): ...\nsys.exit(0)\n")
    with pytest.raises(ForewordError, match="cannot import .*SystemExit"):
        load_reward(f"{tmp_path}/exits.py:r")


def test_columns_may_have_names_of_any_kind(tmp_path: Path) -> None:
    questions: Any = [{"prompt": "a", 1: "b", "c": "d"}, {"prompt": "b", 1: "b", "c": "d"}]
    [event] = run(lambda completions: [*map(float, range(len(completions)))], questions)
    assert event.prompt is not None


def test_a_step_is_kept_where_its_validation_fails(tmp_path: Path) -> None:
    calls = 0

    def judge(completions: list[str]) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise TimeoutError("busy")
        return [float(len(one) + index % 2) for index, one in enumerate(completions)]

    made = backbone()
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(made.model, 3))
    questions = [{"prompt": word} for word in ["a", "b", "c", "d"]]
    config = replace(CONFIG, num_steps=5, eval_every=3)

    def events(function: Any, folder: Path, resume: bool = False) -> Any:
        return reward(
            made, start, RewardFunction("mine", function), questions,
            RewardConfig(group=2, answer_tokens=2), config, validation=questions,
            checkpoint=folder, resume=resume,
        )  # fmt: skip

    whole = [(e.step, e.loss, e.validation) for e in events(judge_alike, tmp_path / "whole")]
    seen = []
    with pytest.raises(ForewordError, match="busy"):
        seen += [(e.step, e.loss, e.validation) for e in events(judge, tmp_path / "cut")]
    rest = events(judge_alike, tmp_path / "cut", resume=True)
    found = [(e.step, e.loss, e.validation) for e in rest]
    assert found[0][0] == 3 and found == whole[2:]  # validated now, and no step is taken twice


def judge_alike(completions: list[str]) -> list[float]:
    return [float(len(one) + index % 2) for index, one in enumerate(completions)]
