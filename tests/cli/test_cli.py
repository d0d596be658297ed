"""The command line, end to end on a tiny model: files in, prompt and one-line errors out."""

import copy
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from command_line import FAST, QUICK
from safetensors.torch import load_file, save_file
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.chat import answers, encode, encoding_of, typed
from foreword.cli import app, chat, main
from foreword.cli.progress import run
from foreword.config import SamplingConfig
from foreword.errors import DataError, TrainingError
from foreword.evaluation import forgetting
from foreword.prompt.store import Store
from foreword.training import out_of_memory
from foreword.training.loop import TrainEvent


@pytest.fixture
def trained(model: str, data: str, tmp_path: Path) -> str:
    output = str(tmp_path / "prompt")
    invoke("train", "--model", model, "--data", data, "--output", output, *FAST)
    return output


def invoke(*arguments: str, text: str | None = None) -> str:
    result = CliRunner().invoke(app, arguments, input=text, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    monkeypatch.setattr(sys, "argv", ["foreword", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code not in (0, None)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_train_writes_a_prompt_and_says_what_next(model: str, data: str, tmp_path: Path) -> None:
    output = str(tmp_path / "prompt")
    said = invoke("train", "--model", model, "--data", data, "--output", output, *FAST)
    prompt = SoftPrompt.load(output)
    assert prompt.num_virtual_tokens == 4
    assert "training: 9 rows" in said and "validation: 1 rows" in said
    assert f"foreword chat --prompt {output}" in said
    assert prompt.facts["training"]["num_steps"] == 4


def test_every_training_option_reaches_the_run(model: str, data: str, tmp_path: Path) -> None:
    output = str(tmp_path / "prompt")
    options = ["--form", "embeddings", "--learning-rate", "0.5", "--batch-size", "3", "--seed", "7"]
    invoke("train", "--model", model, "--data", data, "--output", output, *FAST, *options)
    training = SoftPrompt.load(output).facts["training"]
    assert (training["form"], training["learning_rate"]) == ("embeddings", 0.5)
    assert (training["batch_size"], training["seed"]) == (3, 7)


def test_generate_is_the_same_without_cache(trained: str) -> None:
    cached, uncached = (
        invoke("generate", "--prompt", trained, "say a", "--max-new-tokens", "6", *extra)
        for extra in ([], ["--no-cache"])
    )
    assert cached == uncached


def test_generate_answers_the_bare_model_too(model: str) -> None:
    said = invoke("generate", "--model", model, "say a", "--json", "--max-new-tokens", "3")
    assert json.loads(said)["prompt"] == "say a"


def test_eval_compares_bare_model_instruction_and_prompt(
    trained: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgetting, "unrelated_text", lambda: "x" * 200)
    said = evaluated("eval", "--prompt", trained, "--data", data, "--instruction", "Repeat.")
    names = [row["subject"] for row in said["results"]]
    assert names == ["bare model", "instruction", "soft prompt"]
    loss = said["results"][2]["scores"]["loss"]
    assert loss["low"] <= loss["value"] <= loss["high"]
    assert said["results"][2]["differences"]["exact"].keys() == {"value", "low", "high"}
    assert said["forgetting"]["change"]["low"] is not None


def evaluated(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*arguments, *QUICK, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_eval_says_what_it_chose_and_shows_intervals(model: str, data: str) -> None:
    said = invoke("eval", "--model", model, "--data", data, *QUICK)
    assert "metrics: loss, exact (3 distinct answers, in words: median 1)" in said
    assert "3 examples; in brackets 95% bootstrap intervals" in said
    assert "unrelated" not in said


def test_eval_checks_forgetting_on_a_text_of_ones_own(
    trained: str, data: str, tmp_path: Path
) -> None:
    (tmp_path / "own.txt").write_text("The river rises in the hills.")
    base = ["eval", "--prompt", trained, "--data", data, "--metrics", "loss"]
    own = evaluated(*base, "--unrelated", str(tmp_path / "own.txt"))["forgetting"]
    assert own["change"]["value"] == own["behind"]["value"] - own["without"]["value"]
    assert own["change"]["low"] is None  # one window
    assert evaluated(*base, "--unrelated", "none")["forgetting"] is None


def test_predictions_are_written_for_reading(model: str, tmp_path: Path) -> None:
    data, path = tmp_path / "rows.jsonl", tmp_path / "said.jsonl"
    data.write_text(json.dumps({"prompt": "grüß dich", "completion": "a"}) + "\n")
    invoke("eval", "--model", model, "--data", str(data), *QUICK, "--predictions", str(path))
    written = path.read_text(encoding="utf-8")
    line = json.loads(written)
    assert (line["prompt"], line["expected"], line["source"][-2:]) == ("grüß dich", "a", ":1")
    assert line["answers"]["bare model"]["right"] is False and "grüß" in written
    assert line["answers"]["bare model"].keys() >= {"answer", "cut off"}


def test_compare_lays_prompts_beside_each_other(
    trained: str, model: str, data: str, tmp_path: Path
) -> None:
    other, png = str(tmp_path / "other"), tmp_path / "scores.png"
    invoke("train", "--model", model, "--data", data, "--output", other, *FAST, "--seed", "3")
    said = evaluated(
        "compare", trained, other, "--data", data, "--instruction", "Repeat.", "--png", str(png)
    )
    names = [row["subject"] for row in said["results"]]
    assert names == [trained, other, "instruction", "bare model"]
    values = [row["scores"]["loss"]["value"] for row in said["results"]]
    changes = [row["differences"]["loss"]["value"] for row in said["results"][1:]]
    assert changes == pytest.approx([value - values[0] for value in values[1:]])
    assert png.read_bytes().startswith(b"\x89PNG")


def test_compare_lets_prompts_answer_together(trained: str, data: str, tmp_path: Path) -> None:
    other, png = str(tmp_path / "other"), tmp_path / "scores.png"
    prompt = SoftPrompt.load(trained)
    prompt.replaced([3 * tensor for tensor in prompt.tensors]).save(other)
    base = ["compare", trained, other, trained + "/", "--data", data, "--predictions"]
    told = str(tmp_path / "told.jsonl")
    vote = evaluated(*base, told, "--ensemble", "vote", "--png", str(png))["results"][3]
    assert vote["subject"] == "vote of 3" and vote["scores"].keys() == {"exact"}
    first = json.loads(Path(told).read_text().splitlines()[0])["answers"]
    assert first["vote of 3"] == first[trained]  # two of three
    assert png.read_bytes()[:4] == b"\x89PNG"
    mean = evaluated(*base, told, "--ensemble", "average")["results"]
    losses = [row["scores"]["loss"]["value"] for row in mean]
    assert mean[3]["subject"] == "average of 3" and losses[3] <= sum(losses[:3]) / 3  # Jensen
    said = invoke(*base, told, "--ensemble", "vote", *QUICK)
    assert re.search(r"vote of 3 *│ *- *│", said)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "needs two prompts or more"),
        (["{trained}/", "--metrics", "loss"], "a vote is taken over answers"),
    ],
)
def test_a_vote_needs_prompts_and_answers(  # type: ignore[no-untyped-def]
    trained: str, data: str, extra: list[str], message: str, monkeypatch, capsys
) -> None:
    more = [part.format(trained=trained) for part in extra]
    said = fails(
        monkeypatch, capsys, "compare", trained, *more, "--data", data, "--ensemble", "vote"
    )
    assert message in said


def test_compare_shows_differences_against_the_first(trained: str, data: str) -> None:
    said = invoke("compare", trained, "--data", data, *QUICK)
    assert f"against {trained}, paired" in said and "bare model" in said


def test_a_prompt_is_not_compared_with_itself(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, trained: str, data: str
) -> None:
    said = fails(monkeypatch, capsys, "compare", trained, trained, "--data", data)
    assert "given twice" in said


def test_a_picture_needs_its_extra(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, trained: str, data: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    arguments = ["compare", trained, "--data", data, "--png", str(tmp_path / "x.png")]
    assert "pip install 'foreword[plots]'" in fails(monkeypatch, capsys, *arguments)


def test_the_harness_needs_its_extra(monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = fails(monkeypatch, capsys, "lm-eval", "--tasks", "none")
    assert "pip install 'foreword[lm-eval]'" in said


def test_show_says_what_a_prompt_is(trained: str, model: str) -> None:
    facts = json.loads(invoke("show", "--prompt", trained, "--json"))
    assert facts["base"] == model and facts["virtual tokens"] == 4 and facts["step"] in (2, 4)
    assert "no token space" in facts["nearest tokens"] and len(facts["layer norms"]) == 3
    assert re.match(r"█.*  loss [\d.]+ to [\d.]+ in 4 steps, held out", facts["curve"])
    assert json.loads(invoke("show", trained, "--json")) == facts


def test_show_names_the_nearest_tokens(model: str, data: str, tmp_path: Path) -> None:
    output, png = str(tmp_path / "prompt"), tmp_path / "prompt.png"
    invoke(
        "train", "--model", model, "--data", data, "--output", output, *FAST, "--form", "embeddings"
    )
    arguments = ["show", output, "--model", model, "--with", output, "--input", "hi"]
    said = invoke(*arguments, "--png", str(png))
    assert "nearest by cosine" in said and "norms of the table" in said
    assert "the token in its place 1.000" in said and "attention received: " in said
    assert png.read_bytes().startswith(b"\x89PNG")
    facts = json.loads(invoke(*arguments, "--json", "--nearest", "2"))
    assert [len(one["by_dot"]) for one in facts["nearest tokens"]] == [2] * 4
    paid = facts["attention"]["mean of tokens"]
    assert len(paid) == 3 and all(0 < sum(layer) < 1 for layer in paid)


def test_show_compares_forms_where_a_model_compiles_them(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, trained: str, model: str, data: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    invoke(
        "train", "--model", model, "--data", data, "--output", other, *FAST, "--form", "embeddings"
    )
    said = fails(monkeypatch, capsys, "show", trained, "--with", other)
    assert "different forms" in said and "--model" in said
    said = invoke("show", trained, "--with", other, "--model", model)
    assert "compiled to prefixes" in said


def test_chat_switches_between_base_and_prompt(trained: str) -> None:
    said = invoke(
        "chat", "--prompt", trained, "--max-new-tokens", "3",
        text="hello\n/base\nhello\n/prompt\n/what\n/quit\n",
    )  # fmt: skip
    assert "prompt> " in said and "base> " in said and said.count(chat.HELP) == 2
    assert said.count(" s]") == 4  # two texts, and two that are asked anew


def test_chat_asks_the_last_question_anew_with_the_turns_before_it(
    trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is asked what the other was, and the later conversation goes by the latest answer."""
    from foreword import chat as texts

    asked: list[tuple[bool, Any]] = []

    def stream(backbone: Any, prompt: Any, text: Any, *rest: Any, **more: Any) -> Iterator[str]:
        asked.append((prompt is not None, copy.deepcopy(text)))
        yield f"answer {len(asked)}"

    monkeypatch.setattr(texts, "stream", stream)
    monkeypatch.setattr(texts, "reads_turns", lambda *of: True)
    prompt = SoftPrompt.load(trained)
    session = chat.Session(None, prompt, SamplingConfig())  # type: ignore[arg-type]
    session.take("/base")
    session.take("/prompt")
    assert not asked  # there is no question yet
    for line in ("one", "two", "/base", "three", "/prompt"):
        session.take(line)
    turns = [
        {"role": role, "content": content}
        for content, role in (
            ("one", "user"), ("answer 1", "assistant"), ("two", "user"), ("answer 3", "assistant"),
            ("three", "user"),
        )
    ]  # fmt: skip
    assert asked == [
        (True, turns[:1]),
        (True, turns[:3]),
        (False, turns[:3]),
        (False, turns),
        (True, turns),
    ]
    assert session.turns[-1]["content"] == "answer 5" and len(session.turns) == 6


def test_chat_asks_another_prompt_by_its_name(
    trained: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Backbone.load(model)
    other = SoftPrompt.load(trained)
    other.tensors = [tensor * 2 for tensor in other.tensors]
    other.save(tmp_path / "other")
    session = chat.Session(backbone, None, SamplingConfig(max_new_tokens=4))
    session.take("hello")
    session.take("/prompt")
    session.take(f"/prompt {tmp_path / 'none'}")
    assert session.active is None and len(session.turns) == 2
    said = capsys.readouterr().out
    assert chat.NO_PROMPT in said and "none: no such directory" in said
    for name in (trained, tmp_path / "other"):
        session.take(f"/prompt {name}")
        prompt = SoftPrompt.load(name)
        [found] = answers(
            backbone, prompt, [typed(backbone, prompt, "hello")], encoding_of(prompt),
            max_new_tokens=4,
        )  # fmt: skip
        assert session.turns[-1]["content"] == found.text and len(session.turns) == 2


def test_a_line_that_cannot_be_answered_is_no_part_of_the_conversation(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from foreword import chat as texts

    real = texts.stream

    def stream(backbone: Any, prompt: Any, text: Any, *rest: Any, **more: Any) -> Iterator[str]:
        line = text if isinstance(text, str) else text[-1]["content"]
        if line == "midway":
            yield "half of"
        if line in ("refused", "midway"):
            raise DataError(f"{line}: no")
        yield from real(backbone, prompt, text, *rest, **more)

    monkeypatch.setattr(texts, "stream", stream)
    session = chat.Session(Backbone.load(model), None, SamplingConfig(max_new_tokens=2))
    session.take("refused")
    assert session.turns == [] and capsys.readouterr().out == "error: refused: no\n"
    session.take("hello")
    kept = copy.deepcopy(session.turns)
    for line in ("refused", "midway"):
        session.take(line)
        assert session.turns == kept and session.is_open
    assert "half of\nerror: midway: no\n" in capsys.readouterr().out
    monkeypatch.setattr(texts, "stream", lambda *of, **more: stream(None, None, "refused"))
    session.take("/base")
    assert session.turns == kept


def test_chat_forgets_on_clear(trained: str, model: str) -> None:
    session = chat.Session(Backbone.load(model), None, SamplingConfig(max_new_tokens=2))
    session.take("hello")
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"]
    session.take("/clear")
    assert session.turns == []


def test_an_interrupt_keeps_the_best_so_far(tmp_path: Path) -> None:
    prompt = SoftPrompt.from_embeddings(torch.ones(2, 4), facts={"metrics": {"step": 1}})

    def events():  # type: ignore[no-untyped-def]
        yield TrainEvent(1, 9, 1.0, 0.1, 1.0, 10, 0.1, prompt=prompt)
        raise KeyboardInterrupt

    saved = run(events(), str(tmp_path / "best"))
    assert saved is not None and saved.step == 1
    assert SoftPrompt.load(tmp_path / "best").content_hash == prompt.content_hash


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_best_and_resume_goes_on(
    monkeypatch: pytest.MonkeyPatch, model: str, data: str, tmp_path: Path, number: int
) -> None:
    step, handler = out_of_memory.train_step, signal.getsignal(signal.SIGINT)

    def step_then_signal(run: Any, state: Any, rows: Any) -> Any:
        if state.progress.step == 2:
            os.kill(os.getpid(), number)
        return step(run, state, rows)

    arguments = ["train", "--model", model, "--data", data, *FAST, "--output"]
    monkeypatch.setattr(out_of_memory, "train_step", step_then_signal)
    stopped = CliRunner().invoke(app, [*arguments, str(tmp_path / "stopped")])
    assert stopped.exit_code == 128 + number
    assert f"stopped after step 3; the best so far prompt, of step 2, is in {tmp_path}" in (
        stopped.output.replace("\n", "")
    )
    assert SoftPrompt.load(tmp_path / "stopped").facts["metrics"]["step"] == 2
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is handler
    invoke(*arguments, str(tmp_path / "calm"))
    said = invoke(*arguments, str(tmp_path / "stopped"), "--resume")
    assert "goes on after step 3" in said
    assert "begins at step 1" in invoke(*arguments, str(tmp_path / "new"), "--resume")
    calm, resumed = (SoftPrompt.load(tmp_path / name) for name in ("calm", "stopped"))
    assert resumed.content_hash == calm.content_hash


def test_a_stopped_run_is_not_overwritten(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, model: str, data: str, tmp_path: Path
) -> None:
    rows = [Row.from_ids([5, 6, 7], [8])] * 4
    events = train(Backbone.load(model), rows, TrainConfig(num_steps=3), checkpoint=tmp_path)
    next(events)
    events.close()
    said = fails(monkeypatch, capsys, "train", "--data", data, "--output", str(tmp_path))
    assert "stopped at step 1; go on with it with --resume" in said
    said = fails(
        monkeypatch, capsys, "train", "--data", data, "--output", str(tmp_path), "--resume",
        "--model", model, "--form", "embeddings",
    )  # fmt: skip
    assert "--form was 'key_values', is 'embeddings'" in said and "training rows differ" in said


def test_a_run_that_cannot_go_on_says_what_it_leaves(  # type: ignore[no-untyped-def]
    monkeypatch, model: str, data: str, tmp_path: Path
) -> None:
    step = out_of_memory.train_step

    def last_step_fails(run: Any, state: Any, rows: Any) -> Any:
        if state.progress.step == 3:
            raise TrainingError("the run cannot go on")
        return step(run, state, rows)

    monkeypatch.setattr(out_of_memory, "train_step", last_step_fails)
    options = ["--model", model, "--data", data, "--output", str(tmp_path), *FAST]
    ended = CliRunner().invoke(app, ["train", *options])
    kept = f"{tmp_path} holds the best prompt, of step 2, and the training state of step 2"
    assert str(ended.exception) == f"the run cannot go on; {kept}"


def test_curves_are_drawn(model: str, data: str, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    output = str(tmp_path / "prompt")
    options = [*FAST, "--curves", str(picture)]
    said = invoke("train", "--model", model, "--data", data, "--output", output, *options)
    assert picture.read_bytes().startswith(b"\x89PNG") and f"curves: {picture}" in said


def test_a_tracker_is_told_every_step(model: str, data: str, tmp_path: Path) -> None:
    name = "tensorboard.backend.event_processing.event_accumulator"
    reading = pytest.importorskip(name)
    output = tmp_path / "prompt"
    options = [*FAST, "--track", "tensorboard"]
    invoke("train", "--model", model, "--data", data, "--output", str(output), *options)
    reader = reading.EventAccumulator(str(output / "foreword"))
    reader.Reload()
    assert [event.step for event in reader.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in reader.Scalars("validation/loss")] == [2, 4]


def test_an_unknown_tracker_is_one_line(monkeypatch, capsys, tmp_path: Path, data: str) -> None:  # type: ignore[no-untyped-def]
    options = ["--data", data, "--output", str(tmp_path), "--track", "none-such"]
    said = fails(monkeypatch, capsys, "train", *options)
    assert "--track none-such: not installed" in said


def test_a_missing_file_is_one_line(monkeypatch, capsys, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    said = fails(monkeypatch, capsys, "train", "--data", "none.jsonl", "--output", str(tmp_path))
    assert "none.jsonl" in said


def test_an_output_that_cannot_be_written_is_refused_before_training(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, tmp_path: Path, data: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("here")
    said = fails(monkeypatch, capsys, "train", "--data", data, "--output", str(blocked / "prompt"))
    assert "what was there before is kept" in said and blocked.read_text() == "here"


def test_a_wrong_base_is_refused_by_name(monkeypatch, capsys, trained: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other"
    tokenizer = tiny_tokenizer()
    tiny_models.build(
        "llama", seed=3, dtype=torch.float32, vocab_size=len(tokenizer)
    ).save_pretrained(other)
    tokenizer.save_pretrained(other)
    said = fails(monkeypatch, capsys, "generate", "--prompt", trained, "--model", str(other), "hi")
    assert "they differ in embeddings" in said


def test_a_row_past_the_context_names_file_and_line(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, model: str, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "x" * 400, "completion": "y"}) + "\n")
    arguments = ["train", "--model", model, "--data", str(path), "--output", str(tmp_path / "o")]
    said = fails(monkeypatch, capsys, *arguments, *FAST, "--validation", "0")
    assert "long.jsonl:1" in said and "--truncate" in said


def test_a_lora_adapter_is_named(monkeypatch, capsys, model: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    said = fails(monkeypatch, capsys, "show", "--prompt", str(tmp_path))
    assert "'LORA'" in said


def test_the_command_is_installed() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "from foreword.cli import main; main()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.startswith("foreword ")


def test_what_to_type_next_repeats_the_columns(model: str, tmp_path: Path) -> None:
    rows = tmp_path / "tickets.jsonl"
    row = {"subject": "Sign-in é", "body": "It fails", "team": "login"}
    rows.write_text("".join(json.dumps(row | {"body": f"No {n}"}) + "\n" for n in range(3)))
    template, output = "Subject: {subject}\n'{body}'", tmp_path / "own"
    columns = ["--template", template, "--label-column", "team", "--skip-blank"]
    said = invoke(
        "train", "--model", model, "--data", str(rows), "--output", str(output), *columns,
        "--method", "prefix-tuning", "--num-steps", "1", "--validation", "0",
    )  # fmt: skip
    assert f"--template writes it, as in chat and over HTTP: {template!r}" in said
    [line] = [line for line in said.splitlines() if line.startswith("measure:")]
    words = line.removeprefix("measure:").replace("foreword", "printf '%s\\0'").rstrip()
    shell = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    typed = shell.stdout.split("\0")[:-1]
    assert typed == ["eval", "--prompt", str(output), *columns, "--data", "FILE"]
    invoke(*typed[:-1], str(rows), "--model", model)


def test_a_chat_template_of_ones_own_is_saved_in_the_prompt(model: str, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ '<|im_end|>' }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "Good?"}, {"role": "assistant", "content": "yes"}]
    rows = tmp_path / "turns.jsonl"
    rows.write_text("".join(json.dumps({"messages": turns, "id": n}) + "\n" for n in range(3)))
    output = tmp_path / "own"
    command = ["train", "--model", model, "--data", str(rows), "--output", str(output)]
    own = ["--chat-template", str(template), "--init-text", r"a\nb", "--validation", "0"]
    own += ["--num-virtual-tokens", "4", "--num-steps", "2", "--method", "prefix-tuning"]
    said = invoke(*command, *own)
    assert "note: " in said and "column 'id' is not used (3 rows)" in said
    assert r"--init-text holds \n as two characters" in said
    prompt = SoftPrompt.load(output)
    assert prompt.facts["encoding"]["chat_template"] == template.read_text()
    backbone = Backbone.load(model)
    ids = encode(backbone, [turns[0]], encoding_of(prompt))[0]
    assert backbone.tokenizer.decode(ids) == "user:Good?<|im_end|>assistant:"


def test_held_out_rows_are_never_the_train_split_by_default(  # type: ignore[no-untyped-def]
    monkeypatch, capsys, model: str, data: str, trained: str, tmp_path: Path
) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(Path(data).read_text())
    for arguments in (
        ["eval", "--prompt", trained, "--data", str(folder)],
        ["compare", trained, "--data", str(folder)],
        ["train", "--data", data, "--validation", str(folder), "--output", str(tmp_path / "o")],
    ):
        said = fails(monkeypatch, capsys, *arguments)
        assert f"{folder}: expected one split, found test, train" in said
    output = str(tmp_path / "new")
    arguments = ["--data", str(folder), "--validation", str(folder / "test")]
    said = invoke("train", "--model", model, *arguments, "--output", output, *FAST)
    assert "training: 10 rows" in said and "validation: 10 rows" in said


def test_a_text_gets_a_name_and_answers_as_the_text_before_the_question(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "system.txt"
    text.write_text("Answer in one word.")
    store = str(tmp_path / "store")
    said = invoke(
        "prompts", "add", "support", "--text", f"@{text}", "--model", model, "--prompts", store
    )
    assert "added support@" in said and "tokens, exact, read once; serve it: foreword serve" in said
    first = tmp_path / "turns.json"
    first.write_text(json.dumps([{"role": "user", "content": "a"}]))
    more = ["--messages", str(first), "--model", model, "--prompts", store]
    assert "added shots@" in invoke("prompts", "add", "shots", *more)
    folder = str(Store(store).resolve("support").path)
    answered = invoke("generate", "--prompt", folder, "Good?", "--max-new-tokens", "5", "--json")
    backbone = Backbone.load(model)
    turns = [{"role": "system", "content": text.read_text()}, {"role": "user", "content": "Good?"}]
    [expected] = answers(backbone, None, [turns], max_new_tokens=5)
    assert expected.text in json.loads(answered).values()
    for arguments, reason in (
        (["support"], "give one of a directory, --text and --messages"),
        (["support", "--text", "a"], "give --model"),
        (["support", folder, "--model", model], "a prompt names its own base"),
        (["support", "--messages", str(text), "--model", model], "is no JSON"),
    ):
        assert reason in fails(monkeypatch, capsys, "prompts", "add", *arguments)


def test_a_text_is_distilled_and_measured_beside_itself(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, queries = tmp_path / "handbook.md", tmp_path / "queries.jsonl"
    text.write_text("The lamp is red. The door is blue. The cat is called Ann.")
    rows = [
        {"messages": [{"role": "user", "content": f"{word}?"}]}
        for word in ["lamp", "door", "cat", "a", "b"]
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = str(tmp_path / "handbook")
    given = ["--context", str(text), "--data", str(queries), "--model", model, "--output", output]
    short = [
        "--num-virtual-tokens",
        "4",
        "--num-steps",
        "3",
        "--answer-tokens",
        "4",
        "--top-k",
        "9",
    ]
    said = invoke("distill", *given, *short)
    assert f"5 queries from {queries}, answered behind it; the " in said.replace("\n", " ")
    assert "held-out quer" in said and "unrelated text: KL" in said
    assert "times less memory" in said and "behind the prompt" in said
    assert SoftPrompt.load(output).num_virtual_tokens == 4
    assert "goes on after step 3" in invoke("distill", *given, *short, "--resume")
    test = tmp_path / "test.jsonl"
    test.write_text(json.dumps({"prompt": "cat?", "completion": "Ann"}) + "\n")
    scores = evaluated("eval", "--prompt", output, "--context", str(text), "--data", str(test))
    assert "whole text" in json.dumps(scores["results"]) and len(scores["results"]) == 3
    beside = scores["agreement"]
    assert [one["subject"] for one in beside["results"]] == [
        "bare model", "soft prompt", "whole text"
    ]  # fmt: skip
    assert beside["results"][1]["cache_bytes"] < beside["results"][2]["cache_bytes"]
    unanswered = ["eval", "--prompt", output, "--context", str(text), "--data", str(queries)]
    assert evaluated(*unanswered)["results"] == []
    shown = invoke(*unanswered)
    assert "no task score, only agreement with the whole text" in shown
    assert "5 queries, beside the model behind the whole text" in shown
    assert "whole text, read each" in shown
    for more, reason in (
        ([], "give the text by --context FILE or by --instruction"),
        (["--context", str(tmp_path / "none")], "--context: cannot read"),
        (["--instruction", "Hi."], "no more than --num-virtual-tokens 64"),
    ):
        plain = ["--data", str(queries), "--model", model, "--output", str(tmp_path / "other")]
        assert reason in fails(monkeypatch, capsys, "distill", *plain, *more)


def test_a_text_is_distilled_from_several_seeds_at_a_rate_that_is_found(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queries, output = tmp_path / "queries.jsonl", str(tmp_path / "lamp")
    rows = [{"messages": [{"role": "user", "content": f"{word}?"}]} for word in "abcde"]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["distill", "--instruction", "The lamp is red. The door is blue.", "--model", model]
    given += ["--data", str(queries), "--output", output, "--num-virtual-tokens", "4", "--seeds"]
    refused = fails(monkeypatch, capsys, *given, "2", "--held-out", "0")
    assert "--seeds goes by held-out queries" in refused
    said = invoke(
        *given, "2", "--num-steps", "2", "--answer-tokens", "3", "--lr", "auto", "--on-policy",
        "0.5",
    )  # fmt: skip
    assert "seed 0:" in said and "seed 1:" in said and "2 seeds: validation loss" in said
    facts = SoftPrompt.load(output).facts
    assert facts["training"]["probe"] and facts["metrics"]["seeds"]["best"] in (0, 1)
    assert facts["distilled"]["on_policy"] == 0.5 and 0 <= facts["distilled"]["agreement"] <= 1


def test_what_a_prompt_of_peft_does_not_tell_is_said(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    SoftPrompt.from_embeddings(torch.ones(2, 32)).save(folder)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file), file)  # as PEFT writes it: without facts
    config = json.loads((folder / "adapter_config.json").read_text())
    for name, expected in (
        (None, "does not record its base"),
        (model, ""),
        ("other/one", "and is"),
    ):
        config["base_model_name_or_path"] = name
        (folder / "adapter_config.json").write_text(json.dumps(config))
        asked = (
            "generate",
            "--model",
            model,
            "--prompt",
            str(folder),
            "a",
            "--max-new-tokens",
            "1",
        )
        said = " ".join(invoke(*asked).split())
        assert "does not say how its rows were written" in said
        assert "that it is this model is unchecked" in said and expected in said
        assert (f"names its base, {name!r}" in said) == (name is not None)


def test_an_adapter_for_an_encoder_does_not_tell_its_base_either(tmp_path: Path) -> None:
    """PEFT's task is all that such a file knows of its base: its kind, and not which one."""
    tokenizer, base, folder = tiny_tokenizer(), tmp_path / "t5", tmp_path / "adapter"
    seq2seq_models.build("t5", vocab_size=len(tokenizer)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    SoftPrompt.from_embeddings(torch.ones(2, 32)).save(folder)
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(load_file(file), file)
    changes = {"task_type": "SEQ_2_SEQ_LM", "base_model_name_or_path": "other/one"}
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    asked = ["--model", str(base), "--prompt", str(folder), "a", "--max-new-tokens", "1"]
    said = " ".join(invoke("generate", *asked).split())
    assert "names its base, 'other/one'" in said and "that it is this model is unchecked" in said


def test_chat_says_when_lines_are_asked_alone(
    trained: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = Backbone.load(model)
    of_turns, of_text = SoftPrompt.load(trained), SoftPrompt.load(trained)
    for prompt, is_text in ((of_turns, False), (of_text, True)):
        prompt.facts["encoding"] = {"is_text": is_text}
    session = chat.Session(backbone, of_text, SamplingConfig(max_new_tokens=2))
    said = []
    for active in (of_text, of_text, None, of_turns, of_text):
        session.active = active
        session.say_memory()
        said.append(capsys.readouterr().out.partition(":")[0].strip())
    alone = "each line is asked alone"
    together = "each line is asked with the conversation before it"
    assert said == [alone, "", together, "", alone]
