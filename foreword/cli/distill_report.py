"""Report of a distillation: what the text cost, how it began, what the prompt replaced.

In: a lesson, a prompt. Out: lines on the terminal, and a prompt that knows how close it comes to
its text. Takes no step.
"""

from shlex import quote
from typing import TYPE_CHECKING

from foreword.cli import options
from foreword.cli.agreement import megabytes, milliseconds, said

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.distillation.lesson import Lesson
    from foreword.prompt.soft_prompt import SoftPrompt
    from foreword.training.distributed import Ranks

LITTLE = 0.8  # of the teacher's probability, below which keeping more is advised


def show_start(backbone: "Backbone", lesson: "Lesson", source: str | None, ranks: "Ranks") -> None:
    """Say what was read and answered, how much of it is kept, and how close the start comes."""
    from foreword.distillation.agreement import agreement

    origin = f" from {source}" if source else ""
    for note in lesson.said:
        options.output.print(note)
    options.output.print(
        f"{lesson.num_tokens:,} {_tokens_of(lesson)}, read once in "
        f"{milliseconds(lesson.seconds)}\n"
        f"{len(lesson.queries)} queries{origin}, answered behind it; the "
        f"{lesson.num_kept:.0f} likeliest ids at a token hold {lesson.mass:.1%} of the probability"
    )
    if lesson.mass < LITTLE:
        options.note("the kept ids hold little of the probability: raise --top-k or --keep-mass")
    if lesson.held_out:
        found = agreement(backbone, lesson.start, lesson.held_out, ranks=ranks)
        options.output.print(
            f"start: {lesson.start.num_virtual_tokens} virtual tokens, untrained; on "
            f"{_held_out(lesson)} {said(found)}"
        )


def show_end(
    backbone: "Backbone", lesson: "Lesson", prompt: "SoftPrompt", output: str, ranks: "Ranks"
) -> "SoftPrompt":
    """Say how close the prompt comes to the text, what it changes elsewhere, what it replaced and
    what to type next; return it with these numbers among its facts.
    """
    from foreword.distillation.agreement import agreement, first_tokens
    from foreword.distillation.unrelated import start_token
    from foreword.named_text import holds_text
    from foreword.training.validation import validate

    is_text = holds_text(lesson.text)
    facts: dict[str, object] = {
        "context_tokens": lesson.num_tokens,
        "context_hash": " ".join(one.content_hash for one in lesson.teachers),
        "num_queries": len(lesson.queries),
        "on_policy": lesson.config.on_policy,
        "answer_weight": lesson.config.answer_weight,
        "labels": lesson.config.labels,
        "distractors": lesson.config.distractor_share if lesson.beside else 0.0,
    }
    if lesson.held_out:
        found = agreement(backbone, prompt, lesson.held_out, ranks=ranks)
        options.output.print(f"{_held_out(lesson)}: {said(found)}")
        facts |= {
            "agreement": found.tokens.value,
            "exact": found.answers.value,
            "divergence": found.divergence.value,
        }
    if lesson.unrelated:
        elsewhere, floor = (
            validate(backbone, one, lesson.unrelated, ranks=ranks).loss
            for one in (prompt, start_token(backbone))
        )
        options.output.print(
            f"unrelated text: KL {elsewhere:.3f} from the bare model; one start token makes "
            f"{floor:.3f}"
        )
        facts["unrelated_divergence"] = elsewhere
    whole = sum(backbone.compile(one).num_bytes for one in lesson.teachers)
    own = backbone.compile(prompt).num_bytes
    part = " (the first part of the text)" if len(lesson.teachers) > 1 else ""
    read, kept, now = first_tokens(backbone, lesson.text, prompt, lesson.queries)
    each_time = f"{milliseconds(read)} where the text is read each time, "
    options.output.print(
        f"{lesson.num_tokens:,} {_tokens_of(lesson)} by {prompt.num_virtual_tokens}"
        f"{_as_form(prompt)}, {whole / own:.1f} times less memory ({megabytes(whole)} to "
        f"{megabytes(own)}); first token{part} {each_time if is_text else ''}"
        f"{milliseconds(kept)} with {'its' if is_text else 'that'} cache kept, "
        f"{milliseconds(now)} behind the prompt\n"
        f"saved to {output}\n\n"
        f"try it:   foreword chat --prompt {quote(output)}\n"
        f"serve:    foreword prompts add NAME {quote(output)}\n"
        f"measure:  foreword eval --prompt {quote(output)}{_beside(lesson)} --data FILE"
    )
    if prompt.form == "embeddings":
        options.output.print(
            f"export:   foreword export --prompt {quote(output)} --to checkpoint --model "
            f"{quote(backbone.name)} --output DIRECTORY"
        )
    return prompt.replaced(prompt.tensors, prompt.facts | {"distilled": facts})


def _beside(lesson: "Lesson") -> str:
    """Return the option of `eval` for the context, where the model can read it as a whole."""
    from foreword.named_text import holds_text

    if len(lesson.teachers) > 1:
        return ""
    return f" --context {'FILE' if holds_text(lesson.text) else 'PROMPT'}"


def _held_out(lesson: "Lesson") -> str:
    """Return in words how many queries were set aside."""
    count = len(lesson.held_out)
    return f"{count} held-out {'query' if count == 1 else 'queries'}"


def _tokens_of(lesson: "Lesson") -> str:
    """Return what a context's tokens are."""
    from foreword.named_text import holds_text

    if holds_text(lesson.text):
        return "tokens of text"
    return f"virtual tokens of a prompt{_as_form(lesson.text)}"


def _as_form(prompt: "SoftPrompt") -> str:
    """Return in words what a prompt's virtual tokens are."""
    return " as embeddings" if prompt.form == "embeddings" else " as keys and values"
