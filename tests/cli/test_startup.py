"""Start-up: what is wrong with what a command is given is said without torch."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from foreword import SoftPrompt
from foreword.cli import early
from foreword.cli.commands import app
from foreword.errors import MismatchError, StorageError
from foreword.loading.hub import EMBEDDED
from foreword.prompt.tensor_file import read_metadata
from foreword.storage import locked

ROWS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcdef"]
TEXT = "Answer with the letter alone."
TRAIN = "train --data rows.jsonl --output new"
DISTILL = "distill --data rows.jsonl --instruction a --output new"
REWARD = "reward --prompt good --data rows.jsonl --reward checks.py:right --output new"
EVAL, COMPARE = "eval --data rows.jsonl", "compare good other --data rows.jsonl"
EXPORT = "export --model base.gguf --output new"
BAD_ROWS = {
    "bad.jsonl": "bad.jsonl:2",
    "empty.jsonl": "found an empty file",
    "columns.jsonl": "columns",
}
BAD_PROMPTS = {
    "./none": "none: no such directory",
    "folder": "folder: no adapter_config.json",
    "stopped": "stopped: holds a run that has not saved a prompt yet",
    "cut": "truncated",
    "nan": "NaN or infinite",
    "changed": "do not match their recorded hash",
}

WIDTHS = "the prompt has hidden size 8, narrow has 4; it was made for ./model"


def of_rows(call: str) -> dict[str, tuple[int, str]]:
    """Return a call with each file whose rows are wrong."""
    return {call.replace("rows.jsonl", name): (2, said) for name, said in BAD_ROWS.items()}


def of_prompts(call: str, *left_out: str) -> dict[str, tuple[int, str]]:
    """Return a call with each prompt that is none."""
    found = {name: said for name, said in BAD_PROMPTS.items() if name not in left_out}
    return {call.format(name): (2, said) for name, said in found.items()}


def of_models(call: str) -> dict[str, tuple[int, str]]:
    """Return a call with each name that is no model's."""
    return {
        f"{call} --model ./none": (2, "'./none' does not exist"),
        f"{call} --model rows.jsonl": (2, "rows.jsonl is a file"),
        f"{call} --model folder": (2, "folder: it has no config.json"),
        f"{call} --model none.gguf": (2, "none.gguf does not exist"),
    }


def of_outputs(call: str) -> dict[str, tuple[int, str]]:
    """Return a call with each output that is occupied."""
    start = call.removesuffix(" --output new")
    return {
        f"{start} --output good": (2, "good holds a soft prompt of foreword's"),
        f"{start} --output stopped": (2, "stopped holds a run that stopped at step 7"),
        f"{start} --output ended": (2, "ended holds a finished run of 9 steps"),
        f"{start} --output broken": (2, "broken/training_state.safetensors: not a training state"),
        f"{start} --output model": (2, "model holds a model (config.json)"),
        f"{start} --output taken": (StorageError.exit_code, "another run writes to it"),
        f"{start} --output rows.jsonl": (2, "a file stands where a directory is needed"),
        f"{start} --output new --resume --overwrite": (2, "leave one of them out"),
    }


CASES: dict[str, tuple[int, str]] = {
    # What needs no model at all.
    "prompts list": (0, ""),
    "prompts add home good": (0, ""),
    "prompts add-all good other": (0, ""),
    "prompts alias house home": (0, ""),
    "prompts show home": (0, ""),
    "prompts remove house": (0, ""),
    "prompts push good owner/name --dry-run": (0, ""),
    # A store.
    "prompts remove none": (2, "no prompt"),
    "prompts use none@0123": (2, "no prompt"),
    "prompts show none": (2, "no prompt"),
    "prompts alias flat none": (2, "no prompt"),
    "prompts add ../x good": (2, "is not a name"),
    "prompts add x. good": (2, "not ending with a dot"),
    "prompts add home": (2, "give one of a directory"),
    "prompts add home --text a": (2, "a text is read by a model"),
    "prompts add home --text @none --model model": (2, "--text: cannot read none"),
    "prompts add home --messages rows.jsonl --model model": (2, "rows.jsonl is no JSON"),
    **of_prompts("prompts add home {}"),
    **of_prompts("prompts add-all {}"),
    **of_prompts("prompts push {} owner/name --dry-run"),
    "prompts push good nowhere": (2, "not the id of a repository"),
    **of_prompts("prompts compose both good {}"),
    "prompts compose both none good": (2, "no prompt"),
    **of_models("prompts compose both good other"),
    # Runs.
    "train --data none.jsonl --output new": (2, "none.jsonl: no such file"),
    f"{TRAIN} --validation none.jsonl": (2, "none.jsonl: no such"),
    f"{TRAIN} --validation 1.5": (2, "a share in [0, 1)"),
    f"{TRAIN} --validation bad.jsonl": (2, "bad.jsonl:2"),
    f"{TRAIN} --seeds 0": (2, "--seeds must be at least 1"),
    f"{TRAIN} --seeds 2 --validation 0": (2, "--seeds keeps the best by validation"),
    f"{TRAIN} --patience 2 --validation 0": (2, "--patience counts validations"),
    f"{TRAIN} --objective dpo": (2, "say where it starts"),
    f"{TRAIN} --objective dpo --init-prompt good": (2, "rejected"),
    f"{TRAIN} --curves here.txt": (2, "expected the name of a .png file"),
    f"{TRAIN} --init-text @none": (2, "--init-text: cannot read none"),
    f"{TRAIN} --config none.yaml": (2, "none.yaml"),
    f"{TRAIN} --method none": (2, "none"),
    **of_rows(TRAIN),
    **of_models(TRAIN),
    **of_outputs(TRAIN),
    **of_prompts(TRAIN + " --init-prompt {}"),
    "distill --data none.jsonl --instruction a --output new": (2, "none.jsonl: no such file"),
    "distill --instruction @none --output new": (2, "--instruction: cannot read none"),
    "distill --context none.txt --output new": (2, "--context: cannot read none.txt"),
    "distill --context good --output new": (2, "give queries (--data)"),
    "distill --data one.jsonl --instruction a --output new": (2, "at least 2 queries"),
    "distill --data rows.jsonl --instruction say --output new": (2, "holds the whole text"),
    f"{DISTILL} --form embeddings --start attention": (2, "--start attention"),
    f"{DISTILL} --distractors other --on-policy 0.5": (2, "exclude each other"),
    f"{DISTILL} --seeds 2 --held-out 0": (2, "--seeds goes by held-out queries"),
    "distill --data bad.jsonl --instruction a --output new": (2, "bad.jsonl:2"),
    "distill --data columns.jsonl --instruction a --output new": (2, "columns.jsonl:1"),
    **of_models(DISTILL),
    **of_outputs(DISTILL),
    **of_prompts("distill --context {} --data rows.jsonl --output new/prompt", "./none"),
    f"{REWARD} --learning-rate auto": (2, "--learning-rate auto"),
    f"{REWARD} --group 1": (2, "--group must be at least 2"),
    REWARD.replace("checks.py:right", "checks.py:none"): (2, "has no function 'none'"),
    REWARD.replace("checks.py:right", "none:right"): (2, "cannot import none"),
    REWARD.replace("checks.py:right", "checks.py:wants"): (2, "takes 'color'"),
    "reward --prompt good --data bad.jsonl --reward checks.py:right --output new": (
        2,
        "bad.jsonl:2",
    ),
    **of_models(REWARD),
    **of_outputs(REWARD),
    f"{REWARD.removesuffix(' --output new')} --output good": (2, "the folder that --prompt reads"),
    **of_prompts(REWARD.replace("--prompt good", "--prompt {}")),
    # Answers.
    "generate a": (2, "which model?"),
    "generate a --model model --temperature -1": (2, "--temperature"),
    "generate a --prompt baseless": (2, "the prompt's file does not name its base"),
    "generate a --prompt elsewhere": (2, "'./gone' does not exist"),
    "generate a --prompt good --model narrow": (2, WIDTHS),
    "generate a --prompt known --model narrow": (2, WIDTHS),
    "chat --prompt good --model narrow": (2, WIDTHS),
    f"{EVAL} --prompt good --model narrow": (2, WIDTHS),
    "compare good --data rows.jsonl --model narrow": (2, WIDTHS),
    **of_prompts("generate --prompt {} a"),
    **of_models("generate a"),
    "chat": (2, "which model?"),
    **of_prompts("chat --prompt {}"),
    **of_models("chat"),
    # Measures.
    "eval --data none.jsonl": (2, "none.jsonl: no such file"),
    f"{EVAL} --unrelated none.txt": (2, "--unrelated says what a prompt forgets"),
    f"{EVAL} --prompt good --unrelated none.txt": (2, "--unrelated: cannot read none.txt"),
    f"{EVAL} --instruction @none": (2, "--instruction: cannot read none"),
    f"{EVAL} --metrics none": (2, "--metrics: expected"),
    f"{EVAL} --choices a": (2, "two different answers or more"),
    f"{EVAL} --choices a,b": (2, "is none of --choices"),
    f"{EVAL} --choices @none": (2, "--choices: cannot read none"),
    f"{EVAL} --predictions rows.jsonl": (2, "is read, too"),
    f"{EVAL} --predictions nowhere/file": (2, "there is no such folder"),
    f"{EVAL} --context none.txt": (2, "--context: cannot read none.txt"),
    **of_rows(EVAL),
    **of_models(EVAL),
    **of_prompts(EVAL + " --prompt {}"),
    "compare good good --data rows.jsonl": (2, "a prompt was given twice"),
    "compare good --data rows.jsonl --ensemble vote": (2, "needs two prompts or more"),
    f"{COMPARE} --ensemble vote --metrics loss": (2, "a vote is taken over answers"),
    f"{COMPARE} --instruction @none": (2, "--instruction: cannot read none"),
    f"{COMPARE} --png here.txt": (2, "expected the name of a .png file"),
    f"{COMPARE} --predictions rows.jsonl": (2, "is read, too"),
    **of_rows(COMPARE),
    **of_models(COMPARE),
    **of_prompts("compare good {} --data rows.jsonl"),
    "lm-eval": (2, "which tasks?"),
    "lm-eval --tasks arc_easy --none": (2, "unrecognized"),
    "show": (2, "which prompt?"),
    "show good --nearest 0": (2, "--nearest must be from 1"),
    "show good --input @none --model model": (2, "--input: cannot read none"),
    "show states --png here.txt": (2, "expected the name of a .png file"),
    "show good --png here.png": (2, "nothing to draw"),
    **of_prompts("show {}"),
    **of_prompts("show good --with {}"),
    **of_models("show good"),
    **of_prompts("doctor --prompt {}"),
    **of_models("doctor"),
    # Other engines, and the server.
    **of_prompts(EXPORT + " --to gguf --prompt {}"),
    f"{EXPORT} --to mlx --prompt good": (2, "end it .safetensors"),
    f"{EXPORT} --to gguf --prompt home={{}}".format("states"): (2, "holds keys and values"),
    f"{EXPORT} --to gguf --prompt base=good": (2, "stands for the bare model"),
    f"{EXPORT} --to mlx --prompt good --prompt other": (2, "takes one --prompt"),
    f"{EXPORT} --to llama-state --prompt good --server here": (2, "is no address"),
    f"{EXPORT} --to mlx --prompt good --server http://here": (2, "--server is of"),
    "export --to gguf --prompt good --model model --output new.gguf": (2, "a .gguf file"),
    "export --to llama-state --prompt good --model model --output new": (2, "a .gguf file"),
    "export --to checkpoint --prompt good --model model --output other": (2, "there already"),
    "export --to llama-state --prompt good --model base.gguf --output rows.jsonl": (
        2,
        "rows.jsonl is there already",
    ),
    **of_models("export --to checkpoint --prompt good --output new"),
    "serve ./none": (2, "'./none' does not exist"),
    "serve folder": (2, "folder: it has no config.json"),
    "serve model --prompts none": (2, "none: no such directory"),
    "serve model --prompts rows.jsonl": (2, "rows.jsonl"),
    "serve model --port 70000": (2, "70000"),
    "serve model --host no.such.host.invalid": (2, "cannot listen at"),
    "serve model --allow-origin here": (2, "here"),
    "serve model --runtime-loading": (2, "FOREWORD_ADMIN_KEY"),
    "serve model --admin-key root": (2, "give --runtime-loading, or leave it out"),
    "serve model --engine vllm --admin-key root": (3, "--admin-key: vLLM loads nothing"),
    "serve model -- --threads 2": (2, "take further options"),
    "serve model --engine llama.cpp": (2, "a .gguf file"),
    "serve base.gguf --engine llama.cpp -- --none": (2, "is no option of --engine llama.cpp"),
}
# Each in its own modules of foreword and of what it imports; torch, once there, would stay.
PROGRAM = """
import contextlib, io, json, sys
from foreword.cli import main
for case in json.load(sys.stdin):
    said = io.StringIO()
    sys.argv = ["foreword", *case.split()]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    slow = [name for name in ("torch", "transformers") if name in sys.modules]
    print(json.dumps([case, code, said.getvalue().strip(), slow]), flush=True)
    if slow:
        break
"""


def a_prompt(values: torch.Tensor, base: str | None = "./model") -> SoftPrompt:
    return SoftPrompt.from_embeddings(values, facts={"base": {"name": base}} if base else {})


def lay_out(folder: Path) -> None:
    """Make everything that the cases name."""
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (folder / "rows.jsonl").write_text("".join(lines))
    (folder / "one.jsonl").write_text(lines[0])
    (folder / "bad.jsonl").write_text(lines[0] + "{\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "columns.jsonl").write_text('{"question": "a", "reply": "b"}\n' * 2)
    (folder / "checks.py").write_text(
        "def right(completions):\n    return [1.0] * len(completions)\n"
        "def wants(completions, color):\n    return [1.0] * len(completions)\n"
    )
    (folder / "base.gguf").write_bytes(b"GGUF")
    for name in ("folder", "model", "broken", "taken", "narrow"):
        (folder / name).mkdir()
    (folder / "narrow" / "config.json").write_text('{"hidden_size": 4}')
    (folder / "model" / "config.json").write_text("{}")
    (folder / "broken" / "training_state.safetensors").write_bytes(b"\0" * 20)
    good = torch.arange(24.0).view(3, 8)
    for name in ("good", "cut", "changed"):
        a_prompt(good).save(folder / name)
    a_prompt(good + 1).save(folder / "other")
    a_prompt(good, "./gone").save(folder / "elsewhere")
    a_prompt(good, None).save(folder / "baseless")
    keys = [(torch.ones(1, 3, 4), torch.ones(1, 3, 4))]
    SoftPrompt.from_key_values(keys).save(folder / "states")
    base = {"name": "./model", "fingerprint": {"hidden_size": 8}}
    SoftPrompt.from_key_values(keys, facts={"base": base}).save(folder / "known")
    shutil.copytree(folder / "good", folder / "nan")
    file = folder / "nan" / "adapter_model.safetensors"
    save_file({"prompt_embeddings": good.log()}, file, read_metadata(file))
    for name, change in (("cut", lambda b: b[:-4]), ("changed", lambda b: b[:-4] + b"\0\0\0\1")):
        file = folder / name / "adapter_model.safetensors"
        file.write_bytes(change(file.read_bytes()))
    save_state(folder / "stopped", step=7, is_finished=False)
    save_state(folder / "ended", step=9, is_finished=True)


def save_state(folder: Path, **progress: object) -> None:
    from foreword.training.state_file import METADATA_NAME, STATE_VERSION

    folder.mkdir()
    facts = json.dumps({"version": STATE_VERSION, "progress": progress})
    file = folder / "training_state.safetensors"
    save_file({"now.0": torch.ones(2)}, file, metadata={METADATA_NAME: facts})


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What each case ends with: exit code, words, slow modules."""
    folder = tmp_path_factory.mktemp("startup")
    lay_out(folder)
    with locked(folder / "taken" / ".output.lock", "taken"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], input=json.dumps(list(CASES)),
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (folder / "new" / "adapter_config.json").exists()
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {case: rest for case, *rest in found}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_said_without_torch(case: str, said: dict[str, list[object]]) -> None:
    if case not in said:
        pytest.fail("an earlier case has imported torch")
    code, words, slow = said[case]
    assert (code, slow) == (CASES[case][0], []), words
    if code:
        last = str(words).splitlines()[-1]
        assert CASES[case][1] in last and last.startswith("error: "), words


def test_every_command_has_cases() -> None:
    command = typer.main.get_command(app)
    names = {
        f"{name} {inner}" if inner else name
        for name, one in command.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(one, "commands", {"": None})
    }
    assert names == {name for name in names for case in CASES if case.startswith(name)}
    assert len(names) > 15


def test_a_folder_of_a_prompt_and_names_of_the_hub_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_prompt(torch.ones(2, 4)).save(tmp_path / "run" / "checkpoint-300")
    (tmp_path / "splits" / "test").mkdir(parents=True)
    (tmp_path / "splits" / "test" / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    early.check(
        data=["splits", "splits/test", "splits:test", "owner/name:test", "hub:owner/name", None],
        prompts=["run", "owner/name", None],
        model="owner/name",
    )


def test_a_folder_of_the_embedded_models_name_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(EMBEDDED).mkdir()
    (Path(EMBEDDED) / "config.json").write_text('{"hidden_size": 4}')
    SoftPrompt.from_embeddings(torch.ones(2, 8)).save("prompt")
    early.check(prompts=["prompt"], model=EMBEDDED)
    with pytest.raises(MismatchError, match="hidden size 8"):
        early.check(prompts=["prompt"], model=f"./{EMBEDDED}")
