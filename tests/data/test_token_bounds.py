"""A lower bound of a text's tokens never says more than there are, and spares the tokenizer."""

from typing import Any

import pytest
import small_tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foreword.config import EncodingConfig
from foreword.data.encoding import encode_prompt
from foreword.data.token_bounds import least_tokens
from foreword.errors import InputError


def changed(**changes: Any) -> PreTrainedTokenizerFast:
    """Return the byte-level tokenizer with parts of its backend replaced."""
    tokenizer = small_tokenizers.tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


def swallowing() -> PreTrainedTokenizerFast:
    tokenizer = small_tokenizers.tiny_tokenizer()
    token = AddedToken("<|gap|>", special=True, lstrip=True, rstrip=True)
    tokenizer.backend_tokenizer.add_special_tokens([token])
    return tokenizer


def removing() -> PreTrainedTokenizerFast:
    parts = [pre_tokenizers.Split("a", "removed"), pre_tokenizers.ByteLevel(False)]
    return changed(pre_tokenizer=pre_tokenizers.Sequence(parts))


TOKENIZERS = {
    **{name: build() for name, build in small_tokenizers.BUILDERS.items()},
    "swallowing": swallowing(),
    "composing": changed(normalizer=normalizers.NFC()),
    "stripping": changed(normalizer=normalizers.Strip()),
    "removing": removing(),
}
BOUNDED = {"byte-level", "byte fallback", "byte fallback, nothing stripped", "swallowing",
           "composing"}  # fmt: skip
PARTS = [
    "a",
    " ",
    "yes",
    "日",
    "e\u0301",
    "\u0958",
    "\u3000",
    "🙂",
    "<|gap|>",
    "<|im_start|>",
    "\n",
]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=30).map("".join))
def test_no_text_has_fewer_tokens_than_are_told(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    found = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert least_tokens(text, tokenizer) <= len(found)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_only_what_keeps_all_of_a_text_is_bounded(name: str) -> None:
    assert (least_tokens("b" * 10_000, TOKENIZERS[name]) > 500) == (name in BOUNDED)


@pytest.mark.parametrize("kind", ["text", "messages", "row template"])
def test_a_text_that_cannot_fit_is_refused_untokenized(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = small_tokenizers.tiny_tokenizer()
    long = "a" * 100_000
    prompt: Any = [{"role": "user", "content": long}] if kind == "messages" else long
    config = EncodingConfig(row_template="Q: {prompt}" if kind == "row template" else None)
    whole = encode_prompt(prompt, tokenizer, config, max_tokens=len(long) + 100)
    assert len(whole) >= len(long)

    def tokenize(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized")

    monkeypatch.setattr(type(tokenizer), "__call__", tokenize)
    with pytest.raises(InputError, match="has at least .* tokens; at most 500 are served"):
        encode_prompt(prompt, tokenizer, config, max_tokens=500)


def test_a_tokenizer_that_nothing_is_known_of_has_no_bound() -> None:
    assert least_tokens("a" * 1000, object()) == 0
