"""Said text: what a message says, where rows are plain text and no template is around it.

A plain text may be a template that was filled already, whose special tokens are read. What a
message says never is: whatever it spells is plain text, as behind a chat template. So the two are
told apart wherever one is written as the other.
"""

from typing import Self


class SaidText(str):
    """The text of a message, behind a text that a prompt holds.

    Attributes:
        num_held: characters of that text before it, which nobody has said.
    """

    __slots__ = ("num_held",)
    num_held: int

    def __new__(cls, said: str, held: str = "") -> Self:
        """Return a text that was said, behind one that is held."""
        made = super().__new__(cls, held + said)
        made.num_held = len(held)
        return made

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.said, self.held)

    @property
    def held(self) -> str:
        """What the prompt holds."""
        return self[: self.num_held]

    @property
    def said(self) -> str:
        """What the message says."""
        return self[self.num_held :]
