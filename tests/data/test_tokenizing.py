"""What a tokenizer raises at a text is one line that names both, on every way that reads one."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import foreword
from foreword import Backbone, EncodingConfig, Example, SoftPrompt, TrainConfig, answer, train
from foreword.data import encoding
from foreword.data.special_tokens import special_tokens_of
from foreword.data.tokenizing import token_ids
from foreword.errors import DataError, InputError
from foreword.evaluation import forgetting
from foreword.evaluation.ensembles import vote

PACKAGE = Path(foreword.__file__).parent
WORDS = ["a", "say", "xx", "yy", "</s>"]
LEFT_OUT = {"data/tokenizing.py", "data/token_texts.py", "loading/gguf.py"}  # these catch it
CONFIG = EncodingConfig()
FEW = TrainConfig(num_virtual_tokens=2, num_steps=1)
UNREAD = [{"prompt": "nix", "completion": " a"}]
ROWS = [{"prompt": f"say {word}", "completion": f" {word}"} for word in ("xx", "yy", "a")]


def words(*known: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of words, which raises at any other."""
    ids = {word: number for number, word in enumerate(known or WORDS)}
    backend = Tokenizer(models.WordLevel(ids))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


def base() -> Backbone:
    return Backbone(tiny_models.build("llama", vocab_size=len(WORDS)), words())


def pair(example: Example) -> Any:
    tokenizer = words()
    return encoding.encode_examples([example], tokenizer, CONFIG, 99, are_pairs=True)


def started(**options: Any) -> None:
    config = TrainConfig(num_steps=1, init="text", **options)
    list(train(base(), ROWS, config))


def voted() -> None:
    backbone = base()
    prompt = SoftPrompt.from_embeddings(torch.zeros(2, backbone.capabilities.hidden_size))
    list(vote(backbone, [prompt], ["xx", "xx nix"], max_new_tokens=1))


WAYS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a text": ("", lambda: answer(base(), None, "xx nix", max_new_tokens=1)),
    "one of several": ("text 2: ", lambda: answer(base(), None, ["xx", "xx nix"])),
    "one of a vote": ("text 2: ", voted),
    "a row": ("file:3: ", lambda: encoding.encode(Example("xx nix", "a", "file:3"), words(),
                                                  CONFIG, 99)),
    "an answer": ("file:3: ", lambda: encoding.encode(Example("xx", "nix", "file:3"), words(),
                                                      CONFIG, 99)),
    "of a pair": ("file:3: ", lambda: pair(Example("xx", "nix", "file:3"))),
    "a row of training": ("example 1: ", lambda: list(train(base(), UNREAD, FEW))),
    "a start text": ("--init-text: ", lambda: started(init_text="nix", num_virtual_tokens=2)),
    "unrelated text": ("--unrelated: ", lambda: forgetting.windows(base(), "nix xx", 8)),
    "a template": ("", lambda: special_tokens_of(words()).read("nix")),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_text_that_the_tokenizer_cannot_read_is_named(way: str) -> None:
    place, read = WAYS[way]
    with pytest.raises(DataError) as raised:
        read()
    said = str(raised.value)
    assert "nix" in said and "the tokenizer TokenizersBackend cannot read" in said, said
    assert said.startswith(place) and "unk_token" in said and "\n" not in said


def test_a_tokenizer_that_cannot_read_any_text_is_named() -> None:
    with pytest.raises(DataError, match="the tokenizer .* cannot read 'a' "):
        encoding.start_ids(words("xx", "</s>"))


def test_a_folder_of_this_machine_is_not_told(tmp_path: Path) -> None:
    words().save_pretrained(tmp_path / "own")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "own")
    with pytest.raises(DataError, match="the tokenizer own cannot read 'nix'"):
        token_ids(tokenizer, "nix")


def test_a_long_text_is_cut() -> None:
    with pytest.raises(DataError) as raised:
        token_ids(words(), "long\n" * 100)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_only_one_module_calls_a_tokenizer() -> None:
    for path in PACKAGE.rglob("*.py"):
        if str(path.relative_to(PACKAGE)) in LEFT_OUT:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert name not in ("tokenizer", "_tokenizer"), f"{path}:{node.lineno}"


@pytest.mark.parametrize("given", ["gpt2", 123, object(), ["gpt2"], words().backend_tokenizer])
def test_what_is_no_tokenizer_is_refused_at_once(given: Any, tmp_path: Path) -> None:
    model = tiny_models.shared("llama")
    for make in (
        lambda: Backbone(model, given),
        lambda: Backbone.load(str(tmp_path / "none"), tokenizer=given),
    ):
        with pytest.raises(InputError, match="expected a tokenizer of transformers, got") as found:
            make()
        assert "AutoTokenizer.from_pretrained(" in str(found.value)
        assert len(str(found.value)) < 250 and "\n" not in str(found.value)


def test_what_is_no_processor_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="expected a processor of transformers, got str 'gpt2'"):
        Backbone(tiny_models.shared("llama"), processor="gpt2")
    with pytest.raises(InputError, match="expected a processor of transformers, got TokenizersB"):
        Backbone(tiny_models.shared("llama"), processor=tiny_tokenizer())


def test_an_encoder_takes_them_alike() -> None:
    with pytest.raises(InputError, match="expected a tokenizer of transformers"):
        Backbone(seq2seq_models.build("t5"), "t5-small")
