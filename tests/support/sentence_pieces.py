"""A SentencePiece vocabulary of a few pieces, as GGUF files hold one."""

from dataclasses import dataclass
from typing import Any

PIECES = (" i", " I", "in", "Is", " Is", " is", "he", " he")
LETTERS = "abcdefghijklmnopqrstuvwxyzIUOS[]/.?{}:,"
TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "[INST]SPACE{{ m['content'] }}SPACE[/INST]"
    "{% else %}{{ 'SPACE' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def template(space: str) -> str:
    """Return a chat template with, or without, a space behind the marks of its turns."""
    return TURNS.replace("SPACE", space)


@dataclass(frozen=True)
class SentencePieces:
    """What a file says of its tokenizer.

    Attributes:
        chat_template: of the base.
        space: `add_space_prefix`; None: nothing.
        name: `general.name`.
    """

    chat_template: str
    space: bool | None = None
    name: str | None = None

    @property
    def tokens(self) -> list[str]:
        """All tokens, by id."""
        words = [*" ", *LETTERS, *PIECES]
        pieces = [one.replace(" ", "\u2581") for one in words]
        return ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces,
                "[INST]", "[/INST]", "<|endoftext|>"]  # fmt: skip

    def add_to(self, writer: Any) -> None:
        """Write the fields."""
        tokens = self.tokens
        num = len(tokens) - 262
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        scores = [-float(place) for place in range(num - len(PIECES))]
        scores += [-0.5 - 0.01 * place for place in range(len(PIECES))]
        writer.add_token_scores([0.0] * 259 + scores + [0.0] * 3)
        types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * num
        writer.add_token_types([*types, CONTROL, CONTROL, CONTROL])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_chat_template(self.chat_template)
        if self.space is not None:
            writer.add_add_space_prefix(self.space)
        if self.name is not None:
            writer.add_name(self.name)
