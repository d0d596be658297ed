"""Chat command: `foreword chat`, a conversation with the prompt or with the bare model.

In: lines from the terminal. Out: answers, streamed as they come. Does not know how a conversation
is encoded.
"""

import time
from typing import TYPE_CHECKING, Any

from foreword.cli import options
from foreword.cli.console import one_line
from foreword.config import SamplingConfig
from foreword.errors import ForewordError, InputError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prompt.soft_prompt import SoftPrompt

HELP = (
    "/base  the last question anew, without a prompt · /prompt [NAME]  anew with the prompt, or "
    "another · /clear  forget the conversation · /quit"
)
NO_PROMPT = "no prompt was given; name one: /prompt DIRECTORY"


@options.from_configs(SamplingConfig)
def command(
    sampling: SamplingConfig,
    prompt: options.PromptDirectory = None,
    model: options.Model = None,
) -> None:
    """Chat, streaming; /base and /prompt ask the last question of the bare model and the prompt.

    Example: foreword chat --prompt my-prompt
    """
    backbone, soft_prompt = options.load(model, prompt)
    options.output.print(HELP)
    session = Session(backbone, soft_prompt, sampling)
    session.say_memory()
    while session.is_open:
        try:
            line = input(f"{session.name}> ").strip()
        except (EOFError, KeyboardInterrupt, RuntimeError):  # the last: there is no standard input
            options.output.print()
            return
        except UnicodeDecodeError as error:
            raise InputError(
                f"a line of the standard input is no text in {error.encoding}; write it so, or set "
                "PYTHONIOENCODING to its encoding"
            ) from None
        if line:
            session.take(line)


class Session:
    """A conversation, and who answers it: the bare model, or one prompt of several."""

    def __init__(self, backbone: "Backbone", prompt: "SoftPrompt | None", sampling: SamplingConfig):
        self.backbone, self.prompt, self.sampling = backbone, prompt, sampling
        self.active = prompt
        self.turns: list[dict[str, Any]] = []
        self.is_open = True
        self._has_memory = True

    @property
    def name(self) -> str:
        """Who answers now."""
        return "prompt" if self.active is not None else "base"

    def take(self, line: str) -> None:
        """Follow a command, or answer a text."""
        word, _, name = line.partition(" ")
        if line == "/quit":
            self.is_open = False
        elif line == "/base":
            self.ask_anew(None)
        elif word == "/prompt":
            if (prompt := self.found(name.strip())) is not None:
                self.prompt = prompt
                self.ask_anew(prompt)
        elif line == "/clear":
            self.turns = []
        elif line.startswith("/"):
            options.output.print(HELP)
        else:
            self.answer(line)

    def say_memory(self) -> None:
        """Say it when lines stop or start to be asked with the conversation before them."""
        from foreword import chat

        has_memory = chat.reads_turns(self.backbone, self.active)
        if has_memory != self._has_memory:
            rows = "this prompt's rows" if self.active is not None else "the bare model's texts"
            options.output.print(
                "each line is asked with the conversation before it"
                if has_memory
                else f"each line is asked alone: {rows} are no conversations"
            )
        self._has_memory = has_memory

    def found(self, name: str) -> "SoftPrompt | None":
        """Return the prompt of a directory or a Hub id, the latest one without a name; None where
        there is none, which is said.
        """
        if not name:
            if self.prompt is None:
                options.output.print(NO_PROMPT)
            return self.prompt
        from foreword import chat
        from foreword.prompt.soft_prompt import SoftPrompt

        try:
            prompt = SoftPrompt.load(name)
            self.backbone.compile(prompt)  # refuses a wrong base by name
            chat.check_template(self.backbone, prompt)
        except ForewordError as error:
            options.output.print(f"error: {one_line(str(error))}")
            return None
        return prompt

    def ask_anew(self, prompt: "SoftPrompt | None") -> None:
        """Let another answer the last question; the turns before it stay as they were, and the
        answer takes the place of the one that it had.
        """
        self.active = prompt
        self.say_memory()
        if self.turns:
            last = self.turns[-2:]
            del self.turns[-2:]
            if not self.answer(last[0]["content"]):
                self.turns += last

    def answer(self, line: str) -> bool:
        """Stream one answer; Ctrl-C stops it and keeps what came. What cannot be answered is no
        part of the conversation: say why, and return False.
        """
        started = time.perf_counter()
        self.turns.append({"role": "user", "content": line})
        try:
            said = self._streamed(line)
        except ForewordError as error:
            self.turns.pop()
            options.output.print(f"error: {one_line(str(error))}")
            return False
        seconds = time.perf_counter() - started
        options.output.print(f"\n  [{seconds:.1f} s]", style="dim")
        self.turns.append({"role": "assistant", "content": said})
        return True

    def _streamed(self, line: str) -> str:
        """Print an answer as it comes, and return it."""
        from foreword import chat

        config = chat.encoding_of(self.active)
        text: Any = self.turns if chat.reads_turns(self.backbone, self.active) else line
        said = ""
        pieces = chat.stream(self.backbone, self.active, text, config, **self.sampling.options())
        try:
            for piece in pieces:
                said += piece
                options.output.print(piece, end="")
        except KeyboardInterrupt:
            pieces.close()  # type: ignore[attr-defined]
        except ForewordError:
            if said:
                options.output.print()
            raise
        return said
