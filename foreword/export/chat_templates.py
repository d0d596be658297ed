"""Chat templates of exports: each prompt's tokens, then its rows as training wrote them.

In: prompts as tokens, and the backbone whose tokenizer wrote their rows. Out: one template, which
takes the prompt that the variable `prompt` names, the first one where none is named, and the bare
model for "base". It is compared with foreword's own ids before anything is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import encoding
from foreword.data.chat_template import ChatTemplate
from foreword.data.template_dates import on_day
from foreword.errors import UnsupportedError
from foreword.export.held_turns import literal, template_behind, verbatim
from foreword.export.vocabulary_rows import NamedRows

BASE = "base"  # the name of the bare model among prompts
CONVERSATIONS: tuple[tuple[dict[str, str], ...], ...] = (
    ({"role": "user", "content": "Is it raining?"},),
    ({"role": "user", "content": " two\nlines {x}  "},),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ),
)


def combined(backbone: Backbone, prompts: Sequence[NamedRows]) -> str:
    """Return the template of all prompts.

    Raises:
        UnsupportedError: a prompt without one, or a base with several.
    """
    tokenizer, parts = backbone.tokenizer, []
    check_single(backbone)
    for place, one in enumerate(prompts):
        config = chat.encoding_of(one.prompt)
        unnamed = " or prompt is not defined" if place == 0 else ""
        parts.append(f"{{%- {'el' if place else ''}if prompt == {literal(one.name)}{unnamed} %}}")
        parts.append(f"{{{{- {literal(''.join(one.tokens))} }}}}")
        parts.append(body(backbone, config, one.name))
    if tokenizer.chat_template:
        parts.append(f"{{%- elif prompt == {literal(BASE)} %}}{verbatim(tokenizer.chat_template)}")
    names = ", ".join(one.name for one in prompts)
    parts.append(
        f'{{%- else %}}{{{{- raise_exception("no such prompt; there is {names}") }}}}{{%- endif %}}'
    )
    return "".join(parts)


def check_single(backbone: Backbone) -> None:
    """Refuse a tokenizer with several chat templates, of which a request chooses one.

    Raises:
        UnsupportedError: names them.
    """
    known = backbone.tokenizer.chat_template
    if isinstance(known, Mapping):
        raise UnsupportedError(
            f"{backbone.name} has several chat templates ({', '.join(map(str, known))}), and an "
            "exported model has one: use foreword's server, or a base whose tokenizer has one"
        )


def check(
    tokenizer: Any, backbone: Backbone, prompts: Sequence[NamedRows], kwargs: Mapping[str, Any]
) -> None:
    """Compare what an exported tokenizer makes of conversations with foreword's own ids.

    Raises:
        UnsupportedError: they differ, so that rows would not be read as in training, or the bare
            model not asked as before.
    """
    for options, expected in _base_texts(backbone):
        if tokenizer.apply_chat_template(prompt=BASE, **options) != expected:
            raise UnsupportedError(
                f"{BASE}: the chat template of {backbone.name} does not write among others "
                "what it writes alone; use foreword's server"
            )
    for one in prompts:
        num_compared = 0
        for turns, expected_ids in rows(backbone, chat.encoding_of(one.prompt)):
            found = tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, prompt=one.name, **kwargs
            )
            found = found if isinstance(found, list) else found["input_ids"]
            if list(found) != [*one.ids, *expected_ids]:
                raise UnsupportedError(
                    f"{one.name}: the chat template of {backbone.name} and its tokenizer do not "
                    "write rows behind the prompt's tokens as training did; use foreword's server"
                )
            num_compared += 1
        if not num_compared:
            raise UnsupportedError(
                f"{one.name}: the chat template of its rows takes none of the conversations by "
                "which exports are compared; use foreword's server"
            )


def rows(
    backbone: Backbone, config: EncodingConfig
) -> Iterator[tuple[list[dict[str, str]], list[int]]]:
    """Yield the conversations that rows of an encoding can be, with their ids."""
    for turns in CONVERSATIONS:
        if (config.row_template is not None or config.is_text) and len(turns) > 1:
            continue
        try:
            ids, _ = chat.encode(backbone, list(turns), config)
        except Exception:  # the template takes no such conversation
            continue
        yield list(turns), ids


def base_texts(backbone: Backbone) -> Iterator[str]:
    """Yield what the base's chat template writes of conversations; nothing where there is none."""
    return (text for _, text in _base_texts(backbone))


def _base_texts(backbone: Backbone) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the same, with the arguments that it is written by."""
    if not backbone.tokenizer.chat_template:
        return
    for turns in CONVERSATIONS:
        for is_open in (True, False):
            options: dict[str, Any] = {
                "conversation": list(turns), "add_generation_prompt": is_open, "tokenize": False,
            }  # fmt: skip
            try:
                text = backbone.tokenizer.apply_chat_template(**options)
            except Exception:  # the base's template takes no such conversation
                continue
            yield options, str(text)


def body(backbone: Backbone, config: EncodingConfig, name: str) -> str:
    """Return how a conversation is written behind a prompt's tokens.

    Raises:
        UnsupportedError: it cannot be written so.
    """
    tokenizer = backbone.tokenizer
    if config.row_template is not None or config.is_text:
        return _of_row(tokenizer, config)
    if config.chat_template is None:
        check_single(backbone)
    text = config.chat_template or tokenizer.chat_template
    if not text:
        raise UnsupportedError(
            f"{name}: rows of plain text on a base without a chat template have no chat; ask with "
            "--row-template in training, or send ids"
        )
    template = ChatTemplate(tokenizer, given=config.chat_template)
    opened = ""
    if config.opening == "answer":
        turns = list(CONVERSATIONS[0])
        before, plain = (template.before_answer(turns, one) for one in ("answer", "generation"))
        opened = before.removeprefix(plain) if before.startswith(plain) else ""
    written = verbatim(on_day(text, config.date))
    if config.held_text is not None:
        written = template_behind(backbone, config, written, opened)
    more = f"{{%- if add_generation_prompt %}}{{{{- {literal(opened)} }}}}{{%- endif %}}"
    return written + (more if opened else "")


def _of_row(tokenizer: Any, config: EncodingConfig) -> str:
    before, _, after = (config.row_template or "{prompt}").partition("{prompt}")
    has_start = config.start_token or config.row_template is None
    start = encoding.start_ids(tokenizer) if has_start else []
    spelled = "".join(tokenizer.convert_ids_to_tokens(start))
    if before.startswith(spelled):
        spelled = ""
    written = "{{- %s ~ messages[0]['content'] ~ %s }}"
    return (
        "{%- if messages | length != 1 or messages[0]['role'] != 'user' %}"
        "{{- raise_exception('this prompt takes one message of a user') }}{%- endif %}"
        + written
        % (literal(spelled + before), literal(after))
    )
