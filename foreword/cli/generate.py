"""Generate command: `foreword generate`, one answer for each text.

In: texts, a prompt or none. Out: answers as lines of text or JSON. Does not know how a text is
encoded.
"""

from typing import Annotated, Any

import typer

from foreword.cli import options
from foreword.cli.console import strict_json
from foreword.config import SamplingConfig


@options.from_configs(SamplingConfig)
def command(
    sampling: SamplingConfig,
    texts: Annotated[list[str], typer.Argument(help="one or more texts to answer")],
    prompt: options.PromptDirectory = None,
    model: options.Model = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="recompute everything at each token: slow, equal")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object per line")] = False,
) -> None:
    """Answer texts with a soft prompt, or with the bare model.

    Example: foreword generate --prompt my-prompt "turn on the kitchen lights"
    """
    backbone, soft_prompt = options.load(model, prompt)
    from foreword import chat

    config = chat.encoding_of(soft_prompt)
    inputs = [chat.typed(backbone, soft_prompt, text) for text in texts]
    more: dict[str, Any] = {"use_cache": False} if no_cache else {}
    found = chat.answers(backbone, soft_prompt, inputs, config, **sampling.options(), **more)
    for text, answer in zip(texts, found, strict=True):
        if as_json:
            options.output.print(strict_json({"prompt": text, "answer": answer.text}))
        else:
            options.output.print(answer.text)
