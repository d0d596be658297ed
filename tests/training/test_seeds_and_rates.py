"""A rate that is found, and runs from several seeds."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from stopped_runs import events_until
from tiny_tokenizer import tiny_tokenizer
from typer.main import get_command
from typer.testing import CliRunner

from foreword import Backbone, Row, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.cli import app
from foreword.config import FORMS
from foreword.errors import DivergedError, InputError
from foreword.training import lr_search, start
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.seeds import seeds_of, spread, train_seeds

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(2, seed=5).tolist())
    for length in (4, 9, 6, 5)
]
CONFIG = TrainConfig(
    method="prompt-tuning", num_virtual_tokens=4, batch_size=3, num_steps=8, eval_every=2,
    learning_rate="auto",
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=torch.float32))


def run(
    backbone: Backbone, folder: Path | None = None, stop: int = 0, **changes: Any
) -> list[TrainEvent]:
    events = train(
        backbone, ROWS, dataclasses.replace(CONFIG, **changes), validation=ROWS[:2],
        checkpoint=folder, resume=folder is not None,
    )  # fmt: skip
    return events_until(events, stop)


def trial(backbone: Backbone, rate: float) -> float:
    """Return the validation loss of a run that is as long as a trial."""
    events = run(backbone, learning_rate=rate, num_steps=lr_search.num_steps(8), eval_every=0)
    assert events[-1].validation is not None
    return events[-1].validation.loss


def test_the_rate_is_the_best_of_short_runs(backbone: Backbone) -> None:
    facts = run(backbone)[-1].prompt.facts["training"]
    own = start.default_rate(backbone, CONFIG)
    rates = [float(f"{own * factor:.3g}") for factor in (0.1, 0.3, 1, 3)]
    expected = {rate: trial(backbone, rate) for rate in rates}
    assert {rate: loss for rate, loss in facts["probe"]} == pytest.approx(expected, rel=1e-6)
    assert facts["learning_rate"] == min(expected, key=expected.__getitem__)


def test_the_rate_of_embeddings_is_a_share_of_the_tables_scale(backbone: Backbone) -> None:
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size))
    scale = table.pow(2).mean().sqrt().item()
    assert start.default_rate(backbone, CONFIG) == pytest.approx(0.11 * scale, rel=5e-3)
    events = run(backbone, learning_rate=None)
    assert events[-1].prompt.facts["training"]["learning_rate"] == pytest.approx(
        0.11 * scale, rel=5e-3
    )


@pytest.mark.parametrize("method", ["prefix-tuning", "context-tuning"])
@pytest.mark.parametrize(
    "factor, expected", [(1, 0.03), (1.5, 0.045), (100, 0.06), (0.75, 0.022), (0.01, 0.015)]
)
def test_the_rate_of_keys_and_values_follows_the_scale_of_the_bases_values(
    method: Any, factor: float, expected: float
) -> None:
    """Values times c, and what is read of them by c: the same model, whose values move c as far."""
    model = tiny_models.build("llama", dtype=torch.float64)
    backbone, config = Backbone(model), dataclasses.replace(CONFIG, method=method)
    factor *= start.MEASURED_VALUES / start.value_scale(backbone)
    logits = backbone.logits(None, tiny_models.ids(5)[None])
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight *= factor
            layer.self_attn.o_proj.weight /= factor
    scaled = Backbone(model)
    torch.testing.assert_close(scaled.logits(None, tiny_models.ids(5)[None]), logits)
    assert start.default_rate(scaled, config) == expected
    short = dataclasses.replace(
        config, learning_rate=None, num_steps=1, warmup_share=0.0, num_virtual_tokens=8
    )
    assert next(iter(train(scaled, ROWS, short))).learning_rate == expected
    given = dataclasses.replace(config, learning_rate=0.5)
    assert start.with_rate(scaled, given).learning_rate == 0.5


def test_the_rate_is_found_where_the_context_is_short_or_nothing_attends() -> None:
    config = dataclasses.replace(CONFIG, method="prefix-tuning")
    short = Backbone(tiny_models.build("gpt2", n_positions=8))
    assert 0.015 <= start.default_rate(short, config) <= 0.06
    recurrent = Backbone(tiny_models.build("mamba2"))
    assert start.default_rate(recurrent, config) == 0.03


@pytest.mark.parametrize("num_rows, batch_size, steps", [(5, 16, 3), (4, 3, 6), (4, 4, 3)])
def test_epochs_are_passes_over_all_rows(
    backbone: Backbone, num_rows: int, batch_size: int, steps: int
) -> None:
    rows = (ROWS + ROWS)[:num_rows]
    config = dataclasses.replace(
        CONFIG, learning_rate=0.1, num_steps=None, batch_size=batch_size, num_epochs=3
    )
    *_, last = train(backbone, rows, config)
    assert last.step == last.num_steps == steps


def test_a_rate_that_is_given_is_taken_as_it_is(backbone: Backbone) -> None:
    assert run(backbone, learning_rate=0.25)[-1].prompt.facts["training"]["learning_rate"] == 0.25


MANY = [
    Row.from_ids(tiny_models.ids(6, seed=seed).tolist(), [7, 9 + seed % 2]) for seed in range(20)
]


def test_where_nothing_is_said_short_rows_are_the_start(backbone: Backbone) -> None:
    first, last = train(backbone, MANY, TrainConfig(num_steps=2))
    assert last.prompt.facts["method"] == "context-tuning"
    assert last.prompt.num_virtual_tokens == 192
    assert "starts from the first rows" in first.notices[0]


@pytest.mark.parametrize(
    "said",
    [
        {"num_virtual_tokens": 8},
        {"method": "prefix-tuning"},
        {"init": "random"},
        {"form": "key_values"},
    ],
)
def test_where_something_is_said_of_the_start_it_holds(backbone: Backbone, said: Any) -> None:
    *_, last = train(backbone, MANY, TrainConfig(num_steps=1, **said))
    assert last.prompt.facts["method"] == "prefix-tuning"
    assert last.prompt.num_virtual_tokens == said.get("num_virtual_tokens", 32)


def test_long_rows_and_few_rows_are_no_start(backbone: Backbone) -> None:
    long = [
        Row.from_ids(tiny_models.ids(100, seed=seed).tolist(), [7], f"row {seed}")
        for seed in range(20)
    ]
    for rows in (long, MANY[:4], MANY[:1] * 20):
        *_, last = train(backbone, rows, TrainConfig(num_steps=1))
        assert last.prompt.facts["method"] == "prefix-tuning"


def test_recurrent_layers_start_from_vocabulary() -> None:
    backbone = Backbone(tiny_models.build("mamba2", dtype=torch.float32))
    *_, last = train(backbone, MANY, TrainConfig(num_steps=1))
    assert last.prompt.facts["method"] == "prefix-tuning"


def test_a_start_from_rows_goes_on_bit_for_bit(backbone: Backbone, tmp_path: Path) -> None:
    config = TrainConfig(num_steps=4, batch_size=4, save_every=1)
    *_, calm = train(backbone, MANY, config)
    events = train(backbone, MANY, config, checkpoint=tmp_path)
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    *_, resumed = train(backbone, MANY, config, checkpoint=tmp_path, resume=True)
    assert resumed.prompt.content_hash == calm.prompt.content_hash


def test_the_run_after_a_probe_is_the_run_at_that_rate(backbone: Backbone) -> None:
    found = run(backbone)
    rate = found[-1].prompt.facts["training"]["learning_rate"]
    told = run(backbone, learning_rate=rate)
    assert [event.loss for event in found] == [event.loss for event in told]
    assert found[-1].prompt.content_hash == told[-1].prompt.content_hash
    assert found[0].notices[0].startswith(f"learning rate {rate:g}, by the loss after 4 steps at")


def test_a_resumed_run_keeps_its_rate(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = run(backbone)
    run(backbone, tmp_path, stop=3)
    monkeypatch.setattr(lr_search, "rates", lambda config: pytest.fail("it is known by now"))
    rest = run(backbone, tmp_path)
    assert [event.loss for event in rest] == [event.loss for event in calm[3:]]
    assert rest[-1].prompt.content_hash == calm[-1].prompt.content_hash
    assert rest[-1].prompt.facts["training"]["probe"] == calm[-1].prompt.facts["training"]["probe"]
    assert read_state(tmp_path / STATE_FILE).progress().is_finished


def test_rates_that_diverge_are_passed_over() -> None:
    facts, said = lr_search.chosen({0.1: 2.0, 0.3: 1.5, 1.0: float("inf")}, 5)
    assert facts == {"learning_rate": 0.3, "probe": [[0.1, 2.0], [0.3, 1.5], [1.0, None]]}
    assert "learning rate 0.3" in said
    with pytest.raises(DivergedError, match="all of 0.1, 0.3 diverged within 5 steps"):
        lr_search.chosen({0.1: float("inf"), 0.3: float("inf")}, 5)


def validated(loss: float, exact: float) -> SoftPrompt:
    metrics = {"step": 1, "validation": {"loss": loss, "exact": exact}}
    return SoftPrompt.from_embeddings(torch.full((2, 4), loss), facts={"metrics": metrics})


def test_a_spread_keeps_the_best_and_knows_the_others() -> None:
    found = spread({7: validated(3.0, 0.5), 8: validated(1.0, 0.9), 9: validated(2.0, 0.7)})
    assert found.best_seed == 8 and float(found.best.embeddings[0, 0]) == 1.0
    seeds = found.best.facts["metrics"]["seeds"]
    assert (seeds["loss"]["mean"], seeds["loss"]["deviation"]) == (2.0, 1.0)
    assert seeds["exact"]["mean"] == pytest.approx(0.7)
    assert "3 seeds: validation loss 2.000 +- 1.000" in str(found)


def test_a_spread_says_what_the_objective_is_about() -> None:
    kinds = {
        "reward": ({"reward": 0.25, "loss": -0.25, "exact": 0.1}, "reward 0.250 .*of 1 or more 10"),
        "preferred": ({"preferred": 0.75, "loss": 0.5, "exact": 0.1}, "loss 0.500 .*preferred 75"),
    }
    for name, (validation, said) in kinds.items():
        prompt = validated(0.0, 0.0)
        prompt.facts["metrics"]["validation"] = validation
        found = spread({0: prompt, 1: prompt})
        assert re.search(said, str(found))
        assert found.best.facts["metrics"]["seeds"][name]["mean"] == validation[name]


def test_seeds_need_a_validation_and_a_number() -> None:
    with pytest.raises(InputError, match="give --validation rows"):
        spread({0: SoftPrompt.from_embeddings(torch.ones(2, 4))})
    with pytest.raises(InputError, match="--seeds must be at least 1"):
        seeds_of(CONFIG, 0)


def test_runs_of_several_seeds_are_those_of_each_alone(backbone: Backbone, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.1, seed=5)
    options = {"validation": ROWS, "folder": tmp_path}
    ended = {}
    for one in train_seeds(backbone, ROWS, config, 3, **options):
        assert one.folder == tmp_path / "seeds" / str(one.seed) and one.resumed_after is None
        if one.seed == 7:  # the run of the last seed is left after its first step
            next(one.events)
            one.events.close()
            continue
        *_, last = one.events
        alone = list(train(backbone, ROWS, one.config, validation=ROWS))[-1]
        assert last.prompt.content_hash == alone.prompt.content_hash
        ended[one.seed] = last.prompt
    assert list(ended) == [5, 6]
    resumed = {}
    for one in train_seeds(backbone, ROWS, config, 3, resume=True, **options):
        assert one.resumed_after == (1 if one.seed == 7 else CONFIG.num_steps)
        *_, last = one.events
        resumed[one.seed] = last.prompt
    assert {s: resumed[s].content_hash for s in ended} == {
        s: prompt.content_hash for s, prompt in ended.items()
    }
    assert spread(resumed).best_seed in (5, 6, 7)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = [{"prompt": f"say {w}", "completion": w, "job": "xy"[w > "c"]} for w in "abcdefg"]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "train", "--model", str(folder), "--data", str(data), "--num-virtual-tokens", "4",
        "--num-steps", "4", "--eval-every", "2",
    ]  # fmt: skip


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_trains_from_several_seeds(command: list[str], tmp_path: Path) -> None:
    arguments = [*command, "--output", str(tmp_path), "--seeds", "2", "--seed", "5"]
    said = invoke(*arguments)
    seeds = SoftPrompt.load(tmp_path).facts["metrics"]["seeds"]
    own = {seed: SoftPrompt.load(tmp_path / "seeds" / seed) for seed in ("5", "6")}
    assert own["5"].content_hash != own["6"].content_hash
    losses = {seed: one.facts["metrics"]["validation"]["loss"] for seed, one in own.items()}
    assert seeds["loss"]["each"] == losses and "2 seeds: validation loss" in said
    best = own[min(losses, key=losses.__getitem__)]
    assert SoftPrompt.load(tmp_path).content_hash == best.content_hash
    again = invoke(*arguments, "--resume")
    assert "goes on after step 4" in again
    assert SoftPrompt.load(tmp_path).content_hash == best.content_hash


def test_the_command_line_finds_a_rate(command: list[str], tmp_path: Path) -> None:
    said = invoke(*command, "--output", str(tmp_path), "--lr", "auto", "--method", "p-tuning")
    facts = SoftPrompt.load(tmp_path).facts["training"]
    assert len(facts["probe"]) == 4 and f"note: learning rate {facts['learning_rate']:g}" in said


def test_the_command_line_takes_a_rate_by_either_name(command: list[str], tmp_path: Path) -> None:
    for name in ("--lr", "--learning-rate"):
        invoke(*command, "--output", str(tmp_path / name), name, "0.25")
        assert SoftPrompt.load(tmp_path / name).facts["training"]["learning_rate"] == 0.25
    refused = CliRunner().invoke(app, [*command, "--output", str(tmp_path), "--lr", "fast"])
    assert refused.exit_code == 2


def test_every_task_is_saved_apart(command: list[str], tmp_path: Path) -> None:
    said = invoke(*command, "--output", str(tmp_path), "--method", "multitask",
                  "--task-column", "job", "--lr", "0.1")  # fmt: skip
    assert f"each task's own to {tmp_path}/tasks" in said
    x, y = (SoftPrompt.load(tmp_path / "tasks" / name) for name in "xy")
    assert x.content_hash != y.content_hash and x.facts["task"] == "x"
    assert SoftPrompt.load(tmp_path).num_virtual_tokens == 4


def test_the_commands_of_the_page_on_methods_are_commands() -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("foreword train")]
    own = get_command(app).commands["train"]  # type: ignore[attr-defined]
    methods = set()
    for line in lines[1:]:
        given = own.make_context("train", shlex.split(line)[2:]).params
        TrainConfig(method=given["method"], task_column=given["task_column"])
        methods.add(given["method"])
    assert methods - {None} == set(FORMS)
