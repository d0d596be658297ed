"""A real tokenizer of 263 tokens, built in code: bytes, four merges, ChatML's special tokens."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}"
    "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# "Ċ" and "Ġ" are how a byte-level vocabulary writes a line break and a space.
MERGES = [("Ċ", "Ċ"), ("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s")]
SPECIAL = ["<|bos|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(
    adds: str | None = None, chat_template: str | None = CHATML, eos: str | None = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Args:
        adds: what it adds to a text by itself, as "<|bos|> $A"; None: nothing.
        chat_template: None for a base model's tokenizer.
        eos: the end token, which also pads, as in SmolLM2.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in MERGES)]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if adds is not None:
        named = [(token, vocab[token]) for token in SPECIAL]
        backend.post_processor = processors.TemplateProcessing(single=adds, special_tokens=named)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|bos|>", eos_token=eos, pad_token=eos
    )
    tokenizer.chat_template = chat_template
    return tokenizer
