"""Tokenizers of every way to make a text of tokens, built in code: for the tests of decoding."""

from collections.abc import Callable

from tiny_tokenizer import tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "b", "END", "hello", "s", "é", "日本"]
SPECIAL = ["<s>", "</s>", "<unk>"]


def _fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_fallback(num_stripped: int = 1) -> PreTrainedTokenizerFast:
    """Build one as Llama 2 (`num_stripped` 1) or Gemma (0) has it: words, and single bytes."""
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if num_stripped:
        steps.append(decoders.Strip(" ", num_stripped, 0))
    backend.decoder = decoders.Sequence(steps)
    return _fast(backend)


def metaspace() -> PreTrainedTokenizerFast:
    """Build one as T5 has it: a Unigram model."""
    tokens = [*SPECIAL, "▁", *WORDS, *(f"▁{word}" for word in WORDS)]
    backend = Tokenizer(models.Unigram([(token, -1.0) for token in tokens], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    """Build one as BERT has it."""
    tokens = [*SPECIAL, *WORDS, *(f"##{word}" for word in WORDS), ".", "##", "'"]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _fast(backend)


def word_ends() -> PreTrainedTokenizerFast:
    """Build one as the first GPT has it: the last token of a word is marked."""
    tokens = [*SPECIAL, *WORDS, *(f"{word}</w>" for word in WORDS)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder("</w>")
    return _fast(backend)


BUILDERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level": tiny_tokenizer,
    "byte fallback": byte_fallback,
    "byte fallback, nothing stripped": lambda: byte_fallback(0),
    "metaspace": metaspace,
    "word pieces": word_piece,
    "word ends": word_ends,
}
