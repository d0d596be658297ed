"""The harness's requests behind a prompt, on local tasks: beside its own "hf" and the oracle."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import Backbone, SoftPrompt
from foreword.cli import app
from foreword.errors import InputError

pytest.importorskip("lm_eval", reason="needs: pip install 'foreword[lm-eval]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TASKS = {
    "own_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{choices.index(answer)}}",
        "metric_list": [{"metric": "acc"}],
    },
    "own_text": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "own_perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{answer}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}
ROWS = [
    {"question": "Is it a bird?", "choices": ["yes", "no"], "answer": "no"},
    {"question": "Is the kitchen light on?", "choices": ["yes", "no", "perhaps"], "answer": "yes"},
    {"question": "Say a", "choices": ["a", "bb"], "answer": "a"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("harness")
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float64, vocab_size=len(tokenizer), eos_token_id=2
    )
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    values = tiny_models.embeddings(model, 5)
    facts = {"base": {"name": str(root / "model")}, "encoding": {"row_template": "Q {prompt} A"}}
    SoftPrompt.from_embeddings(values, facts=facts).save(root / "prompt")
    rows = root / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (root / "tasks").mkdir()
    for name, task in TASKS.items():
        source = {
            "task": name, "dataset_path": "json", "test_split": "test",
            "dataset_kwargs": {
                "data_files": {"test": str(rows)}, "cache_dir": str(root / "cache"),
            },
        }  # fmt: skip
        (root / "tasks" / f"{name}.yaml").write_text(json.dumps(source | task))  # JSON is YAML
    return root


def run(folder: Path, model: str, arguments: dict[str, Any]) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import foreword.evaluation.lm_eval  # noqa: F401  registers the model

    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments, tasks=list(TASKS), batch_size=2, bootstrap_iters=0,
        device="cpu" if model == "hf" else "cuda:0",  # what the command line asks for
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
    )  # fmt: skip
    assert found is not None
    return found  # type: ignore[no-any-return]


def responses(found: dict[str, Any], task: str) -> list[Any]:
    return [sample["resps"] for sample in found["samples"][task]]


def loaded(folder: Path, **arguments: Any) -> Any:
    from foreword.evaluation.lm_eval import ForewordLM

    return ForewordLM(str(folder / "model"), str(folder / "prompt"), dtype="float64", **arguments)


def asked(*arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0)


def test_the_bare_model_scores_as_the_harness_own(folder: Path) -> None:
    own = run(folder, "foreword", {"base": str(folder / "model"), "dtype": "float64"})
    arguments = {"pretrained": str(folder / "model"), "dtype": "float64"}
    theirs = run(folder, "hf", arguments)
    assert responses(own, "own_text") == responses(theirs, "own_text")
    for task in ("own_choice", "own_perplexity"):
        for mine, other in zip(responses(own, task), responses(theirs, task), strict=True):
            flat, expected = ([x for r in side for x in _flat(r)] for side in (mine, other))
            assert flat == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("length", [14, 15, 16, 17, 40])
def test_texts_as_long_as_the_context_score_as_the_harness_own(folder: Path, length: int) -> None:
    from lm_eval.models.huggingface import HFLM

    from foreword.evaluation.lm_eval import ForewordLM

    theirs = HFLM(str(folder / "model"), dtype="float64", device="cpu", max_length=16)
    model = ForewordLM(str(folder / "model"), dtype="float64", device="cpu")
    passes = model.backbone.passes
    short = replace(passes, capabilities=replace(passes.capabilities, context_length=16))
    model.backbone = model.backbone.with_passes(short)
    text = ("abcdefghijklmnopqrstuvwxyz" * 2)[:length]
    rolled, pair = [asked(text)], [asked(text, "xy")]
    expected = theirs.loglikelihood_rolling(rolled, disable_tqdm=True)
    assert model.loglikelihood_rolling(rolled) == pytest.approx(expected, abs=1e-6)
    [(expected_pair, _)] = theirs.loglikelihood(pair, disable_tqdm=True)
    [(found, _)] = model.loglikelihood(pair, disable_tqdm=True)
    assert found == pytest.approx(expected_pair, abs=1e-6)


def _flat(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [x for item in value for x in _flat(item)]
    return [float(value)]


def test_a_prompt_is_found_by_its_arguments_and_changes_the_scores(folder: Path) -> None:
    bare = run(folder, "foreword", {"base": str(folder / "model")})
    behind = run(folder, "foreword", {"prompt": str(folder / "prompt")})
    assert behind["results"].keys() == TASKS.keys()
    assert responses(bare, "own_choice") != responses(behind, "own_choice")


def slow(folder: Path, ids: list[int], num_labels: int) -> tuple[float, bool]:
    backbone = Backbone.load(str(folder / "model"), dtype="float64")
    prompt = SoftPrompt.load(folder / "prompt")
    logits = oracle.row_logits(backbone.model, prompt, torch.tensor(ids))[:-1][-num_labels:]
    labels = torch.tensor(ids[-num_labels:])
    chosen = logits.log_softmax(-1).gather(1, labels[:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == labels).all())


def test_likelihoods_behind_a_prompt_are_the_oracles(folder: Path) -> None:
    model = loaded(folder, batch_size=2)
    pairs = [("Is it a bird?", " yes"), ("", "hello"), ("Say", " something longer than that")]
    found = model.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    tokens = model.tokenizer
    for (context, continuation), (likelihood, is_greedy) in zip(pairs, found, strict=True):
        labels = tokens(continuation).input_ids
        ids = [*(tokens(context).input_ids or [tokens.bos_token_id]), *labels]
        expected, is_best = slow(folder, ids, len(labels))
        assert likelihood == pytest.approx(expected, abs=1e-6) and is_greedy == is_best


def test_what_the_model_says_itself_is_greedy(folder: Path) -> None:
    model = loaded(folder)
    ids = model.tokenizer("Say").input_ids
    prompt = SoftPrompt.load(folder / "prompt")
    said = oracle.greedy(model.backbone.model, prompt, torch.tensor(ids), 3)
    requests = [(None, ids, said), (None, ids, [*said[:-1], said[-1] + 1])]
    assert [is_greedy for _, is_greedy in model._loglikelihood_tokens(requests)] == [True, False]


def test_long_texts_are_rolled_window_by_window_behind_the_prompt(folder: Path) -> None:
    model = loaded(folder)
    passes = model.backbone.passes
    short = replace(passes, capabilities=replace(passes.capabilities, context_length=16))
    model.backbone = model.backbone.with_passes(short)
    text = "abcdefghijklmnopqrstuvwxyz"
    (found,) = model.loglikelihood_rolling([asked(text)])
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text).input_ids]
    assert model.room == 11  # eleven tokens are read, and one more is predicted
    expected = slow(folder, ids[:12], 11)[0] + slow(folder, ids[11:23], 11)[0]
    expected += slow(folder, ids[-12:], 4)[0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_generation_stops_before_a_stop_string(folder: Path) -> None:
    model = loaded(folder, batch_size=3)
    contexts = ["Say", "Is it a bird?", "ab"]
    whole = model.generate_until([asked(c, {"until": [], "max_gen_toks": 8}) for c in contexts])
    ids = torch.tensor(model.tokenizer("Say").input_ids)
    prompt = SoftPrompt.load(folder / "prompt")
    slow_ids = oracle.greedy(model.backbone.model, prompt, ids, 8)
    assert whole[0] == model.tokenizer.decode(slow_ids, skip_special_tokens=True)
    # Stop strings of the context are none.
    assert model.generate_until([asked("Say", {"until": "Say", "max_gen_toks": 8})]) == whole[:1]
    stops = [text[2] for text in whole]
    cut = model.generate_until([asked(c, {"until": stops, "max_gen_toks": 8}) for c in contexts])
    assert cut == [text[: min(text.find(s) for s in stops if s in text)] for text in whole]


def test_contexts_may_be_read_as_the_prompts_own_rows(folder: Path) -> None:
    own, raw = loaded(folder, encoding="own"), loaded(folder)
    (mine,), (wrapped,) = (
        model.loglikelihood([asked(context, " yes")], disable_tqdm=True)
        for model, context in ((own, "bird"), (raw, "Q bird A"))
    )
    assert mine == pytest.approx(wrapped)
    options = {"until": [], "max_gen_toks": 4}
    assert own.generate_until([asked("bird", options)]) == raw.generate_until(
        [asked("Q bird A", options)]
    )
    with pytest.raises(InputError, match="use raw"):
        own.apply_chat_template([{"role": "user", "content": "hi"}])


def test_the_harness_delimiter_is_dropped_where_answers_have_none(folder: Path) -> None:
    own, raw = loaded(folder, encoding="own"), loaded(folder)
    own.is_spaced = False  # as a prompt says whose training rows were so
    (mine,), (glued,) = (
        model.loglikelihood([asked(context, text)], disable_tqdm=True)
        for model, context, text in ((own, "bird", " yes"), (raw, "Q bird A", "yes"))
    )
    assert mine == pytest.approx(glued)


@pytest.mark.parametrize("encoding", ["raw", "own"])
def test_a_token_that_the_model_does_not_have_is_named(folder: Path, encoding: str) -> None:
    model = loaded(folder, encoding=encoding)
    model.tokenizer.add_tokens(["[NEW]"])
    named = r"request: token \d+ is 263 \('\[NEW\]'\), expected an id from 0 to 262"
    pair = model._encode_pair("a [NEW]", " b")
    with pytest.raises(InputError, match=named):
        model._loglikelihood_tokens([(None, *pair)])
    with pytest.raises(InputError, match=named):
        list(model._generate(["a [NEW]"], {"max_gen_toks": 4}))


def test_wrong_arguments_are_named() -> None:
    from foreword.evaluation.lm_eval import ForewordLM

    with pytest.raises(InputError, match="takes base, prompt, .* not foo"):
        ForewordLM(base="x", foo=1)
    with pytest.raises(InputError, match="encoding must be raw or own"):
        ForewordLM(encoding="chat")
    with pytest.raises(InputError, match="number of rows, got 'auto'"):
        ForewordLM(batch_size="auto")
    for wrong in ("\u00b2", "0", "-1", "1.5"):
        with pytest.raises(InputError, match=f"number of rows, got '{wrong}'"):
            ForewordLM(batch_size=wrong)
    with pytest.raises(InputError, match="max_gen_toks must be a number of tokens, got 'abc'"):
        ForewordLM(max_gen_toks="abc")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one of torch's, as float32, got 'nn'"):
        ForewordLM(dtype="nn")
    with pytest.raises(InputError, match="base=MODEL"):
        ForewordLM()


@pytest.mark.parametrize(
    ("context", "options", "said"),
    [
        ("a", {"max_gen_toks": "abc"}, "max_gen_toks must be a number of tokens, got 'abc'"),
        ("a", {"max_gen_toks": 0}, "max_gen_toks must be a number of tokens, got 0"),
        ("a", {"temperature": "abc"}, "temperature must be a number, got 'abc'"),
        ("", {"max_gen_toks": 2}, "go on from an empty text"),
    ],
)
def test_wrong_options_of_a_generation_are_named(
    folder: Path, context: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        loaded(folder).generate_until([asked(context, options)])


def test_the_command_registers_the_model_and_passes_everything_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval.__main__ as harness
    from lm_eval.api.registry import get_model

    seen = []
    monkeypatch.setattr(harness, "cli_evaluate", lambda: seen.append(sys.argv[1:]))
    for given in (["--model_args", "prompt=p", "--tasks", "a"], ["--model", "hf", "--tasks", "a"]):
        CliRunner().invoke(app, ["lm-eval", *given], catch_exceptions=False)
    assert seen[0] == ["run", "--model", "foreword", "--model_args", "prompt=p", "--tasks", "a"]
    assert seen[1] == ["run", "--model", "hf", "--tasks", "a"]
    assert get_model("foreword").__name__ == "ForewordLM"
