"""`foreword show`: what a prompt is."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options

if TYPE_CHECKING:
    from foreword.prompt import SoftPrompt


def command(
    prompt: Annotated[str, typer.Option(help="directory of a soft prompt")],
    model: Annotated[
        str | None, typer.Option(help="load this model and name the nearest vocabulary tokens")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what a prompt is: base, form, size, metrics, and the vocabulary tokens nearest to it.

    Example: foreword show --prompt my-prompt --model smollm2-135m
    """
    from foreword.prompt import SoftPrompt

    soft_prompt = SoftPrompt.load(prompt)
    facts = describe(soft_prompt)
    if model:
        backbone, _ = options.load(model, prompt)
        backbone.compile(soft_prompt)  # refuses a wrong base by name
        if soft_prompt.form == "embeddings":
            from foreword.evaluation import nearest_tokens

            facts["nearest tokens"] = " ".join(nearest_tokens(backbone, soft_prompt))
        else:
            facts["nearest tokens"] = "a key/value prompt has none: it is a state, not embeddings"
    if as_json:
        options.output.print(json.dumps(facts))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        options.output.print(f"{name:<{width}}  {value}")


def describe(prompt: "SoftPrompt") -> dict[str, Any]:
    """Return what a prompt says of itself, in reading order; unknown facts are left out."""
    known = prompt.facts
    base = known.get("base") or {}
    metrics = known.get("metrics") or {}
    held_out = metrics.get("validation") or {}
    facts = {
        "base": base.get("name") or "not recorded",
        "revision": base.get("revision"),
        "form": prompt.form,
        "virtual tokens": prompt.num_virtual_tokens,
        "numbers": f"{prompt.num_parameters:,}",
        "size": f"{prompt.num_bytes / 1e6:.2f} MB",
        "method": known.get("method"),
        "trained": known.get("created"),
        "rows": (known.get("training") or {}).get("num_rows"),
        "step": metrics.get("step"),
        "training loss": metrics.get("training_loss"),
        "validation loss": held_out.get("loss"),
        "validation exact": held_out.get("exact"),
        "content": prompt.content_hash[:16],
    }
    return {name: value for name, value in facts.items() if value is not None}
