"""Training by rewards: the gradient is the obvious one, rewards rise, and a run can be stopped."""

import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy
import pytest
import seq2seq_models
import tiny_models
import torch
from stopped_runs import events_until
from test_preference import said
from tiny_tokenizer import CHATML, tiny_tokenizer
from tokenizers import AddedToken
from torch import Tensor
from transformers.utils import chat_template_utils

from foreword import Backbone, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.chat import answers
from foreword.config import RewardConfig
from foreword.data import template_dates
from foreword.data.batches import collate
from foreword.data.encoding import decode
from foreword.data.row import Row
from foreword.errors import InputError, TrainingError
from foreword.training import guards, setup
from foreword.training.checkpoint import OBJECTIVE, SOURCE, STATE_FILE, read_state
from foreword.training.distributed import ALONE
from foreword.training.packing.packed_decoder import packed
from foreword.training.policy import OwnSamples, PolicyGradient, advantages
from foreword.training.questions import Question
from foreword.training.rewarded import reward
from foreword.training.rewards import RewardFunction, load_reward
from foreword.training.rollouts import Rollouts
from foreword.training.step import accumulate, detached

QUESTIONS = [
    {"prompt": [{"role": "user", "content": f"say {word}"}], "letter": word} for word in "abcdef"
]
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
CONFIG = RewardConfig(group=4, answer_tokens=4, answer_batch=8)
TRAIN = TrainConfig(batch_size=3, num_steps=6, eval_every=2, save_every=1, learning_rate=0.05)


def of_even(completions: list[str], letter: list[str]) -> list[float]:
    """Reward each answer by the share of its characters whose number is even."""
    assert len(completions) == len(letter)
    return [sum(ord(one) % 2 == 0 for one in text) / max(1, len(text)) for text in completions]


CHECKER = RewardFunction("test:of_even", of_even)


def backbone(dtype: torch.dtype = torch.float64) -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=dtype, vocab_size=len(tokenizer))
    return Backbone(model, tokenizer)


def start_of(model: Backbone) -> SoftPrompt:
    embeddings = SoftPrompt.from_embeddings(tiny_models.embeddings(model.model, 4))
    states = model.compile(embeddings).states
    facts = {"encoding": {"is_text": False, "opening": "answer"}}
    return SoftPrompt.from_states(states, facts=facts)


def rollouts_of(model: Backbone, config: RewardConfig = CONFIG, start: int = 0) -> Rollouts:
    from foreword.chat import encoding_of

    questions = [
        Question(tuple(one["prompt"]), f"question {n}", {"letter": one["letter"]})
        for n, one in enumerate(QUESTIONS[start:], 1)
    ]
    known = {one.source: one for one in questions}
    return Rollouts(model, known, encoding_of(start_of(model)), CHECKER, config)


@pytest.mark.parametrize("values", [[0.0, 1.0, 1.0, 0.5], [2.0, 2.0], [-1.0, 3.0, 0.25]])
def test_advantages_are_those_of_the_papers(values: list[float]) -> None:
    others = [statistics.fmean(values[:i] + values[i + 1 :]) for i in range(len(values))]
    expected = [value - mean for value, mean in zip(values, others, strict=True)]
    assert advantages(values, "rloo") == pytest.approx(expected)
    deviation = statistics.stdev(values) + 1e-4
    expected = [(value - statistics.fmean(values)) / deviation for value in values]
    assert advantages(values, "grpo") == pytest.approx(expected)


def obvious(
    model: Any, prompt: SoftPrompt, start: SoftPrompt, rows: list[Row], config: RewardConfig
) -> Tensor:
    """Return what the formula lessens, one concatenated row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        assert row.reward is not None
        own = said(model, prompt, row)
        with torch.no_grad():
            reference = said(model, start, row)
        scale = 1 / row.num_labels if config.algorithm == "grpo" else 1.0
        total = total - row.reward.advantage * scale * own.sum()
        total = total + config.kl * scale * (0.5 * (own - reference) ** 2).sum()
    return total / len(rows)


@pytest.mark.parametrize("size", [24, 5])
@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_gradient_is_that_of_the_formula(algorithm: Any, kl: float, size: int) -> None:
    model = backbone()
    config = replace(CONFIG, algorithm=algorithm, kl=kl)
    rollouts, start = rollouts_of(model, config), start_of(model)
    moved = start.replaced([one + 0.3 * torch.randn_like(one) for one in start.tensors])
    asked = rollouts.rows(list(rollouts.questions.values()))
    rows = OwnSamples(rollouts, start, 0).rows(moved, asked, 0, ALONE)
    assert len(rows) == 24 and not PolicyGradient(rollouts).is_flat(rows)
    theirs = moved.trainable(torch.float64)
    expected = obvious(model.model, theirs, start, rows, config)
    expected.backward()
    for change in (lambda one: one, packed):
        leaves = detached(moved.trainable(torch.float64).states)
        batches = [collate(rows[i : i + size], 0) for i in range(0, len(rows), size)]
        loss = accumulate(change(model), [leaves], batches, objective=PolicyGradient(rollouts))
        for mine, obvious_one in zip(leaves.tensors, theirs.tensors, strict=True):
            difference = (mine.grad - obvious_one.grad).norm() / obvious_one.grad.norm()
            assert difference < 1e-9
        rewards = [row.reward.value for row in rows if row.reward is not None]
        if not kl:
            assert loss == pytest.approx(-statistics.fmean(rewards), rel=1e-9)


def test_a_group_is_drawn_to_each_question_and_rewarded_by_its_row() -> None:
    model = backbone()
    rollouts, start = rollouts_of(model), start_of(model)
    asked = rollouts.rows(list(rollouts.questions.values()))[:2]
    drawn, rewards = rollouts.draw(start, asked, 0, 3, ALONE)
    assert [row.source for row in drawn] == ["question 1"] * 4 + ["question 2"] * 4
    for row, value in zip(drawn, rewards, strict=True):
        question = next(one for one in asked if one.source == row.source)
        given = len(question.input_ids)
        assert row.input_ids[:given] == question.input_ids
        text = decode(row.input_ids[given:], model.tokenizer)
        assert value == of_even([text], ["?"])[0]
    assert len({row.input_ids for row in drawn}) > 2
    torch.manual_seed(5)
    again, _ = rollouts.draw(start, asked, 0, 3, ALONE)
    other, _ = rollouts.draw(start, asked, 0, 4, ALONE)
    ids = [[row.input_ids for row in part] for part in (drawn, again, other)]
    assert ids[0] == ids[1] != ids[2]


def test_a_function_is_told_answers_without_the_token_that_ends_them() -> None:
    model = backbone()
    added = AddedToken("<end>", special=False, normalized=False)  # ends answers, and is text
    model.tokenizer.add_tokens([added])
    model.tokenizer.chat_template = CHATML.replace("<|im_end|>", "<end>")
    model.tokenizer.eos_token = "<end>"
    network = tiny_models.build("llama", dtype=torch.float64, vocab_size=len(model.tokenizer))
    with torch.no_grad():
        network.lm_head.weight[-1] *= 3  # likely in some places
    model = Backbone(network, model.tokenizer)
    told: list[str] = []

    def lengths(completions: list[str]) -> list[float]:
        told.extend(completions)
        return [float(len(one)) for one in completions]

    rollouts = replace(rollouts_of(model), reward=RewardFunction("lengths", lengths))
    asked = rollouts.rows(list(rollouts.questions.values()))
    drawn, _ = rollouts.draw(start_of(model), asked, 0, 0, ALONE)
    end = len(model.tokenizer) - 1
    assert any(end in row.input_ids[-row.num_labels :] for row in drawn)  # and is learned
    assert not any("<end>" in one for one in told)


def run(
    folder: Path | None = None,
    stop: int = 0,
    function: RewardFunction = CHECKER,
    config: RewardConfig = CONFIG,
    **changes: Any,
) -> list[TrainEvent]:
    model = backbone(torch.float32)
    events = reward(
        model, start_of(model), function, QUESTIONS[:4], config, replace(TRAIN, **changes),
        validation=QUESTIONS[4:], checkpoint=folder, resume=folder is not None,
    )  # fmt: skip
    return events_until(events, stop)


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_rewards_rise(algorithm: Any) -> None:
    config = replace(CONFIG, algorithm=algorithm, group=8)
    events = run(config=config, num_steps=40, eval_every=20, learning_rate=1.5)
    levels = [one.reward for one in events if one.reward is not None]
    assert len(levels) == 40
    assert statistics.fmean(levels[-10:]) > statistics.fmean(levels[:5]) + 0.15
    assert [one.loss for one in events] == pytest.approx([-level for level in levels], abs=1e-5)
    prompt = events[-1].prompt
    assert prompt is not None
    found = prompt.facts["metrics"]["validation"]
    assert found["reward"] == -found["loss"] == prompt.facts["history"]["validation"]["reward"][-1]
    assert prompt.facts["training"]["objective"] == algorithm
    assert prompt.facts["encoding"]["is_text"] is False


def test_greedy_answers_of_held_out_questions_are_what_validation_rewards() -> None:
    last = run(num_steps=2)[-1]
    assert last.prompt is not None and last.validation is not None
    asked = [one["prompt"] for one in QUESTIONS[4:]]
    found = [one.text for one in answers(backbone(torch.float32), last.prompt, asked,
                                         max_new_tokens=4)]  # fmt: skip
    assert last.validation.reward == pytest.approx(statistics.fmean(of_even(found, ["", ""])))


def curves(events: list[TrainEvent]) -> list[tuple[Any, ...]]:
    return [(e.step, e.loss, e.reward, e.gradient_norm, e.validation) for e in events]


@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path, kl: float) -> None:
    config = replace(CONFIG, kl=kl)
    whole = run(tmp_path / "calm", config=config)
    parts = run(tmp_path / "left", 2, config=config)
    torch.manual_seed(99)
    parts += run(tmp_path / "left", 5, config=config) + run(tmp_path / "left", config=config)
    assert curves(parts) == curves(whole) and len(parts) == 6
    calm, left = (read_state(tmp_path / name / STATE_FILE).tensors for name in ("calm", "left"))
    assert all(torch.equal(value, left[name]) for name, value in calm.items() if name != "random")
    with pytest.raises(InputError, match="--group was 4, is 5"):
        run(tmp_path / "left", config=replace(config, group=5))


def test_a_reward_that_fails_loses_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "calm", save_every=5)
    calls: list[int] = []

    def failing(completions: list[str], letter: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == 5:  # of step 4, behind the validation of step 2
            raise ValueError("the checker is away\nfor good")
        return of_even(completions, letter)

    function = RewardFunction("test:of_even", failing)
    with pytest.raises(TrainingError) as failed:
        run(tmp_path / "left", function=function, save_every=5)
    line = str(failed.value)
    assert line.startswith("--reward test:of_even failed: ValueError: the checker is away (")
    assert "test_reward.py, line" in line and "\n" not in line
    assert read_state(tmp_path / "left" / STATE_FILE).progress().step == 3
    rest = run(tmp_path / "left", save_every=5)
    assert curves(rest) == curves(whole)[3:]


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, KeyboardInterrupt])
@pytest.mark.parametrize(("call", "step"), [(3, 2), (5, 3)], ids=["validation", "answers"])
def test_what_fails_between_steps_loses_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
    call: int,
    step: int,
) -> None:
    whole = run(tmp_path / "calm", save_every=9)
    drawn, calls = Rollouts._answered, []

    def failing(self: Rollouts, *given: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise error("not enough memory")
        return drawn(self, *given, **options)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Rollouts, "_answered", failing)
        run(tmp_path / "left", save_every=9)
    assert read_state(tmp_path / "left" / STATE_FILE).progress().step == step
    rest = run(tmp_path / "left", save_every=9)
    same = [[(e.step, e.loss, e.validation) for e in one] for one in (rest, whole)]
    assert same[0] == same[1][-len(rest) :]
    assert rest[-1].prompt is not None and whole[-1].prompt is not None
    assert rest[-1].prompt.content_hash == whole[-1].prompt.content_hash


@pytest.mark.parametrize("every", [1, 2])
def test_a_validation_that_fails_leaves_the_good_point_as_it_was(
    tmp_path: Path, every: int
) -> None:
    changes: dict[str, Any] = {"save_every": 1, "eval_every": every}
    events = run(tmp_path / "calm", **changes)
    calls: list[int] = []

    def failing(completions: list[str], letter: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == every + 1:  # the first validation, right behind a good point or later
            raise ValueError("away")
        return of_even(completions, letter)

    with pytest.raises(TrainingError):
        run(tmp_path / "left", function=RewardFunction("test:of_even", failing), **changes)
    run(tmp_path / "left", **changes)
    states = [read_state(tmp_path / name / STATE_FILE) for name in ("calm", "left")]
    whole, resumed = (one.progress() for one in states)
    assert events and resumed.good_step == whole.good_step
    assert resumed.good_level == pytest.approx(whole.good_level, nan_ok=True)


def test_a_function_that_changes_what_it_is_given_changes_nothing_else() -> None:
    rows = [{"keys": ["x", "y"], "turns": [{"role": "user"}]}] * 3

    def popping(prompts: Any, completions: list[str], keys: list[list[str]]) -> list[float]:
        found = [float(len(one)) for one in keys]
        for one in (*keys, *prompts):
            one.pop()
        return found

    function, prompts = RewardFunction("test:popping", popping), [[{"role": "user"}]] * 3
    for _ in range(2):
        assert function(prompts, ["a", "b", "c"], rows) == [2.0, 2.0, 2.0]
    assert rows[0]["keys"] == ["x", "y"] and prompts[0] == [{"role": "user"}]


class Table:
    """As a DataFrame: what is read of it one after another is its columns' names."""

    columns = range(12)

    def __iter__(self) -> Iterator[int]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("found", "named"),
    [
        ([0.5], "a number for each of 12 answers, got 1"),
        ([float("nan")] * 12, "expected finite numbers of at most .*, got nan"),
        (None, "expected a list of 12 numbers, got None"),
        (["good"] * 12, "expected a list of 12 numbers"),
        (["1"] * 12, "expected a list of 12 numbers"),
        ("1" * 12, "expected a list of 12 numbers"),
        ({float(number) for number in range(12)}, "expected a list of 12 numbers"),
        ({str(number): 1.0 for number in range(12)}, "expected a list of 12 numbers"),
        ([10**400] * 12, "expected a list of 12 numbers"),
        (torch.zeros(12, 2), "expected a list of 12 numbers"),
        (bytearray(12), "expected a list of 12 numbers"),
        (numpy.full(12, 1 + 2j), "expected a list of 12 numbers"),
        (Table(), "expected a list of 12 numbers"),
    ],
)
def test_what_is_no_reward_is_said_in_one_line(found: Any, named: str) -> None:
    with pytest.raises(TrainingError, match=named) as failed:
        run(function=RewardFunction("mine:f", lambda completions: found))
    assert "--reward mine:f" in str(failed.value) and "\n" not in str(failed.value)


def test_a_function_is_told_what_was_asked_as_the_row_has_it() -> None:
    model, seen = backbone(), set[Any]()
    turns = ({"role": "user", "content": "say b"},)

    def of_prompts(prompts: list[Any], completions: list[str]) -> list[float]:
        seen.update(one if isinstance(one, str) else one[0]["content"] for one in prompts)
        seen.update(type(one) for one in prompts)
        return [float(len(one)) for one in completions]

    rows = [{"prompt": "say a"}, {"prompt": list(turns)}]  # both are turns to the model
    config = replace(TRAIN, batch_size=2, num_steps=1, eval_every=0)
    function = RewardFunction("f", of_prompts)
    *_, last = reward(model, start_of(model), function, rows, CONFIG, config)
    assert seen == {"say a", "say b", str, tuple} and last.reward is not None


def test_numbers_of_any_kind_are_rewards_and_a_generator_fails_where_it_fails() -> None:
    for found in ([True, 2], (1, 2.0), torch.tensor([1, 2]), numpy.array([1.0, 2.0]), iter([1, 2])):
        function = RewardFunction("f", lambda completions, found=found: found)
        assert function(["x", "y"], ["p", "q"], [{}, {}]) == [1.0, 2.0]

    def told(completions: Any) -> Any:
        for one in completions:
            yield len(one) / (one != "q")

    with pytest.raises(TrainingError, match=r"f failed: ZeroDivisionError: .*test_reward.py, line"):
        RewardFunction("f", told)(["x", "y"], ["p", "q"], [{}, {}])


def test_a_function_is_given_what_it_names() -> None:
    seen: dict[str, Any] = {}

    def of_any(**columns: Any) -> list[float]:
        seen.update(columns)
        return [1.0, 2.0]

    rows = [{"letter": "a", "more": 1}, {"letter": "b"}]
    assert RewardFunction("f", of_any)(["x", "y"], ["p", "q"], rows) == [1.0, 2.0]
    assert seen == {"prompts": ["x", "y"], "completions": ["p", "q"], "letter": ["a", "b"],
                    "more": [1, None]}  # fmt: skip
    CHECKER.check(["letter"])
    with pytest.raises(InputError, match="takes 'letter'"):
        CHECKER.check(["word"])
    with pytest.raises(InputError, match="by name"):
        RewardFunction("f", lambda a, /: a).check(["a"])


def test_a_column_of_some_rows_is_given_in_every_step() -> None:
    seen: list[Any] = []

    def hinted(completions: list[str], hint: Any = "none", **columns: Any) -> list[float]:
        seen.append((hint, set(columns)))
        return [float(len(one)) for one in completions]

    made, config = backbone(), replace(TRAIN, batch_size=1, num_steps=2, eval_every=0)
    rows = [{"prompt": "say a", "hint": "x"}, {"prompt": "say b", "letter": "b"}]
    function, asked = RewardFunction("hinted", hinted), [{"prompt": "say c"}]
    list(reward(made, start_of(made), function, rows, CONFIG, config, validation=asked))
    hints = [hint[0] if isinstance(hint, list) else hint for hint, _ in seen]
    assert sorted(map(str, hints)) == ["None", "None", "x"]  # the last one of the validation
    assert all(names == {"prompts", "prompt", "letter"} for _, names in seen)


def test_a_function_is_found_in_a_file_or_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_checks.py").write_text("def long(completions):\n    return [1.0]\nnumber = 3\n")
    (tmp_path / "broken_checks.py").write_text("import nowhere_at_all\n")
    monkeypatch.chdir(tmp_path)
    for spec in ("my_checks:long", "my_checks.py:long", f"{tmp_path}/my_checks.py:long"):
        assert load_reward(spec)([], ["a"], [{}]) == [1.0]
    for spec, named in (
        ("long", "expected module:function"),
        ("my_checks:short", "has no function 'short'"),
        ("my_checks:number", "has no function 'number'"),
        ("nowhere_at_all:f", "cannot import nowhere_at_all: ModuleNotFoundError"),
        ("none.py:f", "cannot import none.py: FileNotFoundError"),
        ("broken_checks:f", "No module named 'nowhere_at_all'"),
    ):
        with pytest.raises(InputError, match=named) as refused:
            load_reward(spec)
        assert str(refused.value).startswith("--reward") and "\n" not in str(refused.value)


def test_rewards_that_never_differ_are_said_and_end_nothing() -> None:
    function = RewardFunction("same", lambda completions: [-2.0] * len(completions))
    events = run(function=function, num_steps=12, eval_every=0)
    said_of = [notice for event in events for notice in event.notices if "same reward" in notice]
    assert len(events) == 12 and said_of == [guards.sameness(10, 10)]
    assert all(event.gradient_norm == 0 for event in events)


def test_rewards_that_never_differ_move_nothing_with_a_divergence_either(tmp_path: Path) -> None:
    function = RewardFunction("same", lambda completions: [0.0] * len(completions))
    changes: dict[str, Any] = {"num_steps": 11, "eval_every": 5, "micro_batch_size": 2}
    events = run(tmp_path, 7, function, replace(CONFIG, kl=0.3), **changes)
    events += run(tmp_path, 0, function, replace(CONFIG, kl=0.3), **changes)
    assert [event.step for event in events] == list(range(1, 12))
    assert all(event.gradient_norm == 0 for event in events)
    notices = [notice for event in events for notice in event.notices]
    assert guards.sameness(10, 10) in notices and not any("-0" in one for one in notices)
    assert events[9].validation is not None and str(events[9].validation.loss) == "0.0"
    state = read_state(tmp_path / STATE_FILE)
    start = start_of(backbone(torch.float32))
    assert all(map(torch.equal, state.prompt().tensors, start.tensors))


def test_a_divergence_pulls_back_once_a_reward_has_differed() -> None:
    calls: list[int] = []

    def once(completions: list[str]) -> list[float]:
        calls.append(1)
        return [float(len(calls) == 1 and one % 2) for one in range(len(completions))]

    changes: dict[str, Any] = {"num_steps": 3, "eval_every": 0, "warmup_share": 0.0}
    events = run(None, 0, RewardFunction("once", once), replace(CONFIG, kl=0.3), **changes)
    assert all(event.gradient_norm > 0 for event in events)


def test_rewards_that_differ_to_a_question_are_not_called_the_same() -> None:
    def halves(completions: list[str]) -> list[float]:
        return [float(one % 2) for one in range(len(completions))]

    events = run(
        function=RewardFunction("halves", halves), num_steps=11, eval_every=0, batch_size=4
    )
    assert {event.reward for event in events} == {0.5}
    assert not [notice for event in events for notice in event.notices if "reward" in notice]


def test_a_pass_may_hold_all_answers_of_a_step_and_no_more(tmp_path: Path) -> None:
    run(tmp_path, num_steps=1, micro_batch_size=12)
    assert read_state(tmp_path / STATE_FILE).progress().micro_batch_size == 12
    with pytest.raises(InputError, match="--micro-batch-size 13 .* 3 times 4 answers to each"):
        run(micro_batch_size=13)


def test_by_default_a_pass_is_small_where_answers_are_long(tmp_path: Path) -> None:
    sizes = []
    for tokens in (4, 200):
        run(tmp_path / f"{tokens}", 1, config=replace(CONFIG, answer_tokens=tokens))
        state = read_state(tmp_path / f"{tokens}" / STATE_FILE)
        sizes.append(state.progress().micro_batch_size)
    assert sizes == [3, 1]


def test_a_sharded_base_is_refused_by_options_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(setup.launch, "is_fsdp_asked_for", lambda: True)
    with pytest.raises(InputError, match="run without sharding$"):
        run()


def test_what_differs_is_named_as_the_command_names_it(tmp_path: Path) -> None:
    run(tmp_path, 1)
    with pytest.raises(InputError, match="run: --algorithm was 'rloo', is 'grpo'; give"):
        run(tmp_path, config=replace(CONFIG, algorithm="grpo"))
    state = read_state(tmp_path / STATE_FILE)
    ours = dict(state.facts["identity"])
    for changes, named in (
        ({SOURCE: ours[SOURCE] | {"columns": "f" * 64}},
         r"run: the columns of the questions differ \(expected \w{12}, got ffffffffffff\); give"),
        ({SOURCE: None}, "run: --reward was 'test:of_even', is not given; give"),
        ({OBJECTIVE: {"objective": "likelihood"}},
         "run: the objective was 'rloo', is 'likelihood'; --kl was 0.0, is not given"),
        ({"options": ours["options"] | {"held_hash": "x", "seed": 1},
          SOURCE: ours[SOURCE] | {"seed": 1}},
         "run: --seed was 0, is 1; the held hash was None, is 'x'; give"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=named):
            state.check(ours | changes)


class Boxed:
    """An object whose text holds its address."""

    def __init__(self, held: bytes = b"") -> None:
        self.held = held


class Picture(Boxed):
    """One with bytes."""

    def tobytes(self) -> bytes:
        return self.held


def test_objects_in_columns_are_known_again_in_another_process() -> None:
    def identity(value: Any) -> Any:
        question = Question("a", "question 1", {"it": [value]})
        found = rollouts_of(backbone())
        return replace(found, questions={question.source: question}).identity["columns"]

    keep = [Picture(b"a"), Picture(b"a"), Picture(b"b"), Boxed(), Boxed()]
    first, again, other, box, box_again = map(identity, keep)
    assert first == again != other and box == box_again != first
    day = date(2026, 1, 31)
    told = json.dumps([["question 1", {"it": [str(day)]}]], sort_keys=True)
    assert identity(day) == hashlib.sha256(told.encode()).hexdigest(), "as states know it"


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"learning_rate": "auto"}, "--learning-rate auto"), ({"method": "multitask"}, "multitask")],
)
def test_options_of_labels_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        run(**changes)


def test_a_question_beside_which_no_answer_fits_is_refused() -> None:
    with pytest.raises(InputError, match="question 1: .* lower --answer-tokens"):
        run(config=replace(CONFIG, answer_tokens=250))


def test_a_question_may_be_one_token() -> None:
    made = backbone(torch.float32)
    made.tokenizer.chat_template = None
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(made.model, 4))
    function = RewardFunction("even", lambda completions: [len(one) % 2 for one in completions])
    short = replace(TRAIN, num_steps=1)
    asked = [{"prompt": "a"}, {"prompt": "b"}]
    (event,) = reward(made, start, function, asked, CONFIG, short, validation=asked)
    assert event.reward is not None and event.validation is not None


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_behind_an_encoder_questions_are_as_long_as_its_positions(form: Any) -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    made = Backbone(seq2seq_models.build("bart", vocab_size=len(tokenizer)), tokenizer)
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(made.model, 4))
    if form == "key_values":
        config = TrainConfig(form=form, num_virtual_tokens=4, init="vocabulary", num_steps=1)
        *_, last = train(made, [Row.from_ids([3, 4], [5])], config)
        start = last.prompt
    text, answer = (36, 39) if form == "embeddings" else (40, 35)  # of 40 positions each
    function = RewardFunction("even", lambda completions: [len(one) % 2 for one in completions])

    def asked(num_tokens: int, answer_tokens: int) -> None:
        config = replace(CONFIG, group=2, answer_tokens=answer_tokens)
        rows = [{"prompt": "b"}, {"prompt": "a" * num_tokens}]
        list(reward(made, start, function, rows, config, replace(TRAIN, num_steps=2)))

    asked(text, answer)
    with pytest.raises(InputError, match=f"^question 2: text of {text + 1} tokens, at most {text}"):
        asked(text + 1, answer)
    with pytest.raises(InputError, match=f"^--answer-tokens {answer + 1}: .* room for {answer}:"):
        asked(text, answer + 1)


def test_questions_are_compared_whole_and_tell_nothing_of_answers() -> None:
    model = backbone(torch.float32)
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(model.model, 4))
    function = RewardFunction("even", lambda completions: [len(one) % 2 for one in completions])
    model.tokenizer.chat_template = None
    asked = [{"prompt": f"what is 2+{number}"} for number in range(4)]
    held_out = [{"prompt": f"what is 2+{number}"} for number in (3, 5, 6)]
    short = TrainConfig(num_steps=1, batch_size=2)
    (event,) = reward(model, start, function, asked, CONFIG, short, validation=held_out)
    [said] = [one for one in event.notices if "validation" in one]
    assert said.startswith("1 of 3 validation rows have the prompt of a training row: ")
    assert said.endswith("(validation question 1)")
    assert event.prompt is not None and event.prompt.facts["encoding"]["is_spaced"] is None


@pytest.mark.parametrize("recorded", [{}, {"encoding": {"is_text": False, "date": None}}])
def test_a_run_from_a_prompt_without_a_day_goes_on_the_next_day(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: dict[str, Any]
) -> None:
    on_a_clock(monkeypatch, 1)
    model = backbone(torch.float32)
    model.tokenizer.chat_template = DATED
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(model.model, 4), facts=recorded)

    def went(stop: int) -> list[TrainEvent]:
        events = reward(
            model, start, CHECKER, QUESTIONS, CONFIG, replace(TRAIN, num_steps=2),
            checkpoint=tmp_path, resume=True,
        )  # fmt: skip
        return events_until(events, stop)

    went(1)
    on_a_clock(monkeypatch, 2)
    last = went(0)[-1]
    assert last.step == 2 and last.prompt is not None
    assert last.prompt.facts["encoding"]["date"] == "2026-01-01"


def on_a_clock(monkeypatch: pytest.MonkeyPatch, day: int) -> None:
    """Let chat templates read a day of January 2026 as today's."""

    class Clock(template_dates.datetime):  # type: ignore[misc,name-defined]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, day)

    monkeypatch.setattr(template_dates, "datetime", Clock)
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
