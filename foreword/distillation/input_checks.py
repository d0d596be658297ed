"""Input checks: what distillation refuses of a text, queries and options before a model is loaded.

In: a text or turns, or none where a prompt is distilled; queries; options. Out: nothing, or the
error. Imports no torch.
"""

from collections.abc import Sequence

from foreword.config import FORMS, DistillConfig, DistillStart, Form, TrainConfig
from foreword.data import held_text
from foreword.data.media_parts import Message, has_media
from foreword.distillation.queries import Query, check_holds_no_text, text_of
from foreword.errors import DataError, InputError


def form_of(config: TrainConfig) -> Form:
    """Return what a run learns: what it says, else keys and values.

    Raises:
        InputError: a prompt for each of several tasks.
    """
    config.check_one_prompt("distill")
    config.check_step()
    return FORMS[config.method] if config.method is not None else config.form or "key_values"


def check(
    text: str | Sequence[Message] | None,
    queries: Sequence[Query] | None,
    config: DistillConfig,
    form: Form,
) -> None:
    """Refuse what no model could be taught.

    Args:
        text: what a prompt is to stand for; None: another prompt.
        queries: at least two; None: the teachers are to be asked for some.
        config: how it is taught.
        form: of the small prompt.

    Raises:
        InputError: too few queries, none where only a prompt is given, or options that do not go
            together. DataError: what is no text, or holds more, or a query that holds the text.
    """
    check_start(config.start, form)
    _check_distractors(config, form)
    if queries is not None:
        _check_queries(queries)
    if text is None:
        if queries is None:
            raise InputError("a prompt holds no text to ask about: give queries (--data)")
        return
    held_text.checked(list(text) if isinstance(text, tuple) else text)
    if "\0" in text_of(text):
        raise InputError("the text holds a zero byte: give the text of the file, not the file")
    check_holds_no_text(queries or (), [text_of(text)])


def check_start(start: DistillStart | None, form: Form) -> None:
    """Refuse a start that embeddings cannot have.

    Raises:
        InputError: names the others.
    """
    if form == "embeddings" and start == "attention":
        raise InputError(
            "--start attention matches keys and values, and --form embeddings has none: use first, "
            "even or vocabulary"
        )


def _check_distractors(config: DistillConfig, form: Form) -> None:
    if config.distractors is None:
        return
    if form == "embeddings":
        raise InputError("--distractors stand beside keys and values: leave out --form embeddings")
    if config.on_policy:
        raise InputError("--distractors and --on-policy exclude each other: leave one of them out")


def _check_queries(queries: Sequence[Query]) -> None:
    if len(queries) < 2:
        raise InputError(f"expected at least 2 queries to learn from, got {len(queries)}: add some")
    for query in queries:
        if not isinstance(query.asked, str) and has_media(query.asked):
            raise DataError(f"{query.source}: holds images or sounds, and only text is distilled")
