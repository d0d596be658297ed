"""Chat command: `foreword chat`, a conversation with the prompt or with the bare model.

In: lines from the terminal. Out: answers, streamed as they come. Does not know how a conversation
is encoded.
"""

import time
from typing import TYPE_CHECKING, Any

from foreword.cli import options
from foreword.config import SamplingConfig

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prompt.soft_prompt import SoftPrompt

HELP = "/base  the bare model · /prompt  the soft prompt · /clear  forget the conversation · /quit"


@options.from_configs(SamplingConfig)
def command(
    sampling: SamplingConfig,
    prompt: options.PromptDirectory = None,
    model: options.Model = None,
) -> None:
    """Chat, streaming; /base and /prompt switch between the bare model and the prompt.

    Example: foreword chat --prompt my-prompt
    """
    backbone, soft_prompt = options.load(model, prompt)
    options.output.print(HELP)
    session = Session(backbone, soft_prompt, sampling)
    while session.is_open:
        try:
            line = input(f"{session.name}> ").strip()
        except (EOFError, KeyboardInterrupt):
            options.output.print()
            return
        if line:
            session.take(line)


class Session:
    """A conversation, and which of the two answers it."""

    def __init__(self, backbone: "Backbone", prompt: "SoftPrompt | None", sampling: SamplingConfig):
        self.backbone, self.prompt, self.sampling = backbone, prompt, sampling
        self.active = prompt
        self.turns: list[dict[str, Any]] = []
        self.is_open = True

    @property
    def name(self) -> str:
        """Who answers now."""
        return "prompt" if self.active is not None else "base"

    def take(self, line: str) -> None:
        """Follow a command, or answer a text."""
        if line == "/quit":
            self.is_open = False
        elif line == "/base":
            self.active = None
        elif line == "/prompt":
            self.active = self.prompt
            if self.prompt is None:
                options.output.print("no prompt was given; start with --prompt DIRECTORY")
        elif line == "/clear":
            self.turns = []
        elif line.startswith("/"):
            options.output.print(HELP)
        else:
            self.answer(line)

    def answer(self, line: str) -> None:
        """Stream one answer; Ctrl-C stops it and keeps what came."""
        from foreword import chat

        config = chat.encoding_of(self.active)
        self.turns.append({"role": "user", "content": line})
        text: Any = self.turns if chat.reads_turns(self.backbone, self.active) else line
        started, count, said = time.perf_counter(), 0, ""
        pieces = chat.stream(self.backbone, self.active, text, config, **self.sampling.options())
        try:
            for piece in pieces:
                count += 1
                said += piece
                options.output.print(piece, end="")
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
        seconds = time.perf_counter() - started
        options.output.print(f"\n  [{seconds:.1f} s]", style="dim")
        self.turns.append({"role": "assistant", "content": said})
