"""Answering: three lines of Python give what the command line gives to the same text."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from small_tokenizers import BUILDERS
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Example, SoftPrompt, TrainConfig, answer, chat, stream, train
from foreword.cli import main
from foreword.errors import DataError, InputError, UnsupportedError
from foreword.evaluation.ensembles import vote
from foreword.evaluation.evaluation import Subject, evaluate

BARE = Subject("bare")
SHORT = {"max_new_tokens": 6}
ROWS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcdefgh"]
TURNS = [
    {
        "messages": [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    }
    for row in ROWS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def backbone(folder: str) -> Backbone:
    return Backbone.load(folder)


def trained(backbone: Backbone, rows: Any) -> SoftPrompt:
    config = TrainConfig(num_virtual_tokens=4, init="vocabulary", num_steps=2)
    *_, last = train(backbone, rows, config)
    assert last.prompt is not None
    return last.prompt


@pytest.mark.parametrize(
    ("option", "meant"),
    [("max_tokens", "; did you mean max_new_tokens?"), ("top_pp", "; did you mean top_p?"),
     ("zzz", "")],
)  # fmt: skip
@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("answer", lambda model, **more: answer(model, None, "hi", **more)),
        ("stream", lambda model, **more: stream(model, None, "hi", **more)),
        ("generate", lambda model, **more: list(chat.answers(model, None, ["hi"], **more))),
        ("generate", lambda model, **more: list(chat.stream(model, None, "hi", **more))),
        ("generate", lambda model, **more: list(vote(model, [prefix(model)], ["hi"], **more))),
        ("generate", lambda model, **more: evaluate(model, BARE, [Example("a", "b")], **more)),
        ("generate", lambda model, **more: model.generate(None, torch.tensor([[3]]), **more)),
    ],
)
def test_an_option_that_there_is_not_is_refused_with_the_one_meant(
    named: str, call: Callable[..., Any], option: str, meant: str, backbone: Backbone
) -> None:
    with pytest.raises(InputError) as refused:
        call(backbone, **{option: 2})
    assert str(refused.value) == f"{named}({option}=...): no such option{meant}"


def prefix(backbone: Backbone) -> Any:
    values = torch.ones(2, backbone.capabilities.hidden_size)
    return backbone.compile(SoftPrompt.from_embeddings(values))


@pytest.mark.parametrize("rows", [TURNS, ROWS])
def test_texts_are_answered_as_by_the_command_line(
    rows: Any,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = trained(backbone, rows)
    prompt.save(tmp_path)
    texts = ["say a", "a longer text", "b"]
    found = answer(backbone, prompt, texts, **SHORT)
    arguments = ["generate", "--prompt", str(tmp_path), "--json", "--max-new-tokens", "6", *texts]
    monkeypatch.setattr(sys, "argv", ["foreword", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert stopped.value.code == 0 and [line["answer"] for line in lines] == found
    assert "".join(found)


@pytest.mark.parametrize("rows", [TURNS, ROWS])
def test_one_text_a_list_and_a_stream_say_the_same(rows: Any, backbone: Backbone) -> None:
    prompt = trained(backbone, rows)
    for one in (prompt, backbone.compile(prompt), None):
        alone = answer(backbone, one, "say a", **SHORT)
        assert answer(backbone, one, ["say a", "b"], batch_size=1, **SHORT)[0] == alone
        assert "".join(stream(backbone, one, "say a", **SHORT)) == alone
    assert answer(backbone, prompt, [], **SHORT) == []


def test_a_stream_computes_in_the_precision_of_its_call(backbone: Backbone) -> None:
    prompt = trained(backbone, ROWS)
    texts = [f"say {number}" for number in range(8)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = answer(backbone, prompt, texts, max_new_tokens=30, batch_size=1)
        begun = [stream(backbone, prompt, text, max_new_tokens=30) for text in texts]
    assert expected != answer(backbone, prompt, texts, max_new_tokens=30, batch_size=1)
    assert ["".join(pieces) for pieces in begun] == expected


def test_a_conversation_is_one_text_and_so_is_each_of_a_list(backbone: Backbone) -> None:
    prompt = trained(backbone, TURNS)
    asked = [{"role": "user", "content": "say a"}]
    alone = answer(backbone, prompt, asked, **SHORT)
    assert isinstance(alone, str) and alone == answer(backbone, prompt, "say a", **SHORT)
    assert answer(backbone, prompt, [asked, "say a"], **SHORT) == [alone, alone]


def test_drawn_answers_differ_and_wrong_values_are_named(backbone: Backbone) -> None:
    torch.manual_seed(0)
    drawn = {answer(backbone, None, "say a", temperature=5.0, **SHORT) for _ in range(5)}
    assert len(drawn) > 1
    for wrong in ({"temperature": -1}, {"max_new_tokens": 0}, {"top_p": 0.5}, {"batch_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "[-_]")):
            answer(backbone, None, "a", **wrong)


def test_what_is_no_prompt_and_a_backbone_without_a_tokenizer_are_refused(
    backbone: Backbone,
) -> None:
    with pytest.raises(InputError, match=r"SoftPrompt\.load"):
        answer(backbone, "my-prompt", "a")
    with pytest.raises(InputError, match="tokenizer"):
        answer(Backbone(backbone.model), None, "a")
    with pytest.raises(InputError, match="tokenizer"):
        stream(Backbone(backbone.model), None, "a")
    with pytest.raises(DataError, match="role"):
        answer(backbone, None, [{"role": "nobody", "content": "a"}])


def test_a_pipeline_of_transformers_is_told_what_to_call(backbone: Backbone) -> None:
    from transformers import pipeline

    with pytest.raises(UnsupportedError, match=r"foreword\.answer\(backbone, prompt, texts\)"):
        pipeline("text-generation", model=backbone, tokenizer=backbone.tokenizer)
    bare = pipeline("text-generation", model=backbone.model, tokenizer=backbone.tokenizer)
    assert bare("a", max_new_tokens=2)


@pytest.mark.parametrize("texts", [3, None, ["a", 3], {"role": "user"}, [["a"]], b"a"])
def test_what_is_no_text_is_refused(backbone: Backbone, texts: Any) -> None:
    with pytest.raises(InputError, match="expected a text, a conversation"):
        answer(backbone, None, texts)
    if not isinstance(texts, list):
        with pytest.raises(InputError, match="expected a text, a conversation"):
            stream(backbone, None, texts)


def test_the_page_runs(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
    parts = [part.partition("\n") for part in page.split("```")[1::2]]
    blocks = [code for language, _, code in parts if language == "python"]
    monkeypatch.chdir(tmp_path)
    trained(Backbone.load(folder), TURNS).save("my-prompt")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("smollm2-135m", folder), names)
    assert len(blocks) >= 3 and names["event"].prompt is not None


@pytest.mark.parametrize("tokens", BUILDERS)
def test_pieces_are_the_answer_for_every_way_to_make_a_text_of_tokens(tokens: str) -> None:
    tokenizer = BUILDERS[tokens]()
    tokenizer.chat_template, tokenizer.clean_up_tokenization_spaces = None, True
    count = 0
    for seed in range(4):
        model = tiny_models.build(
            "llama", seed=seed, dtype=torch.float32, vocab_size=len(tokenizer)
        )
        base = Backbone(model, tokenizer)
        ids = base.generate(None, torch.tensor([[5, 6]]), max_new_tokens=24, do_sample=False)
        model.generation_config.eos_token_id = int(ids[0, 12])  # a token that is text elsewhere
        for text in ("a b", "hello"):
            said = answer(base, None, text, max_new_tokens=24)
            assert "".join(stream(base, None, text, max_new_tokens=24)) == said
            count += len(said)
    assert count


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        ([{"role": "user"}], "message 1: expected content"),
        ([{"role": "user", "content": None}], "message 1: expected content"),
        ([{"content": "a"}], "message 1: expected a role"),
        ([{"role": "user", "content": 5}], "message 1: expected content"),
        ([{"role": "user", "content": "a"}, "b"], "message 2: expected a message"),
        ([{"role": "user", "content": ["a"]}], "message 1: expected parts"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: expected parts"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(
    backbone: Backbone, conversation: Any, expected: str
) -> None:
    for ask in (
        lambda: answer(backbone, None, conversation),
        lambda: answer(backbone, None, ["a", conversation]),
        lambda: stream(backbone, None, conversation),
    ):
        with pytest.raises(InputError, match=expected):
            ask()
    for size in (1.5, "2", 0):
        with pytest.raises(InputError, match="batch_size"):
            answer(backbone, None, "a", batch_size=size)  # type: ignore[call-overload]


def _plain(backbone: Backbone) -> Backbone:
    """Return the model with a tokenizer that has no chat template, and begins no text."""
    return Backbone(backbone.model, tiny_tokenizer(chat_template=None))


EMPTY: dict[str, tuple[str, Callable[[Backbone], Any]]] = {
    "one": ("the text", lambda b: answer(b, None, "", **SHORT)),
    "one of several": ("text 2", lambda b: answer(b, None, ["hi", ""], **SHORT)),
    "in a later batch": ("text 3", lambda b: answer(b, None, ["a", "b", ""], batch_size=2)),
    "stream": ("the text", lambda b: list(stream(b, None, ""))),
    "vote": ("text 2", lambda b: list(vote(b, [b.demo], ["hi", ""], max_new_tokens=2))),
}


@pytest.mark.parametrize("way", EMPTY)
def test_a_text_without_a_token_is_named(backbone: Backbone, way: str) -> None:
    place, ask = EMPTY[way]
    plain: Any = _plain(backbone)
    plain.demo = SoftPrompt.from_embeddings(tiny_models.embeddings(plain.model, 3))
    with pytest.raises(DataError, match=f"^{place} is empty: expected at least one token") as error:
        ask(plain)
    assert str(error.value).isprintable()


def test_the_command_names_a_text_without_a_token(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Backbone.load(folder).model
    model.save_pretrained(tmp_path)
    tiny_tokenizer(chat_template=None).save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "argv", ["foreword", "generate", "--model", str(tmp_path), "hi", ""])
    with pytest.raises(SystemExit):
        main()
    assert "text 2 is empty" in capsys.readouterr().err
