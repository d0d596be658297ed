"""Chat templates: a row's ids are the template's own, and what it does not show is refused."""

from typing import Any

import pytest
from tiny_tokenizer import CHATML, tiny_tokenizer

from foreword.config import EncodingConfig
from foreword.data import chat_template
from foreword.data.chat_template import ChatTemplate
from foreword.data.encoding import Row, decode, encode, encode_examples, encode_prompt, end_ids
from foreword.data.example import Example
from foreword.data.probes import probed_tools, probed_turns
from foreword.errors import DataError

PLAIN = EncodingConfig()
GENERATION = EncodingConfig(opening="generation")
USER = {"role": "user", "content": "Good?"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": " yes\n"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}

NO_GENERATION_PROMPT = CHATML.partition("{% if add_generation_prompt %}")[0]
TRIMS = CHATML.replace("message['content']", "message['content'] | trim")
# An empty block of thinking before the last answer, as in several families.
THINKS = CHATML.replace(
    "~ message['content']",
    "~ ('<t></t>' if loop.last and message['role'] == 'assistant' else '') ~ message['content']",
)
NO_SYSTEM = CHATML.replace("['system', 'user', 'assistant']", "['user', 'assistant']")
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') %}" + CHATML
SHOWS_TOOLS = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "{% for name, value in call.function.arguments.items() %}{{ name ~ '=' ~ value }}{% endfor %}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def row_of(turns: list[Any], template: str, config: EncodingConfig = PLAIN, **more: Any) -> Row:
    *before, answer = turns
    text = answer.get("content") or ""
    example = Example(tuple(before), text, "rows.jsonl:2", **more)
    return encode(example, tiny_tokenizer(chat_template=template), config, 999)


def ids_of(turns: list[Any], template: str, **options: Any) -> list[int]:
    tokenizer = tiny_tokenizer(chat_template=template)
    found = tokenizer.apply_chat_template(turns, return_dict=False, **options)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("config", [PLAIN, GENERATION])
@pytest.mark.parametrize("template", [CHATML, NO_GENERATION_PROMPT, TRIMS, THINKS])
def test_a_row_is_the_templates_own_ids_and_begins_as_generation_does(
    template: str, config: EncodingConfig
) -> None:
    turns = [USER, ANSWER]
    row = row_of(turns, template, config)
    whole = ids_of(turns, template)
    assert list(row.input_ids) == whole[: len(row.input_ids)]
    assert tiny_tokenizer().decode(whole[len(row.input_ids) :]) == "\n"
    prompt_ids = encode_prompt([USER], tiny_tokenizer(chat_template=template), config)
    assert prompt_ids == list(row.input_ids[: -row.num_labels])


@pytest.mark.parametrize("template", [NO_GENERATION_PROMPT, TRIMS, THINKS])
def test_an_answer_begins_where_the_template_writes_it(template: str) -> None:
    row = row_of([USER, ANSWER], template)
    labels = decode(row.input_ids[-row.num_labels :], tiny_tokenizer())
    assert labels.strip() == "yes"


def test_behind_the_generation_prompt_thinking_is_a_label() -> None:
    row = row_of([USER, ANSWER], THINKS, GENERATION)
    assert decode(row.input_ids[-row.num_labels :], tiny_tokenizer()) == "<t></t> yes\n"
    opened = ids_of([USER], THINKS, add_generation_prompt=True)
    assert encode_prompt([USER], tiny_tokenizer(chat_template=THINKS), GENERATION) == opened


@pytest.mark.parametrize("template", [NO_SYSTEM, DROPS_SYSTEM])
def test_a_turn_that_the_template_does_not_show_is_refused(template: str) -> None:
    tokenizer = tiny_tokenizer(chat_template=template)
    assert not ChatTemplate(tokenizer).shows_system_turn()
    assert ChatTemplate(tiny_tokenizer()).shows_system_turn()
    for config in (PLAIN, GENERATION):
        with pytest.raises(DataError, match="unknown role|does not show this turn of role 'system"):
            encode_prompt([SYSTEM, USER], tokenizer, config)


def test_a_turn_that_the_template_rewrites_is_shown() -> None:
    shown = "(message.content | upper if message.role == 'user' else message.content)"
    template = CHATML.replace("message['content']", shown)
    ids = encode_prompt([USER], tiny_tokenizer(chat_template=template), PLAIN)
    assert "GOOD?" in tiny_tokenizer().decode(ids)


@pytest.mark.parametrize("fault", ["{{ 1 // 0 }}", "{{ messages[9].content.x }}", "{{ none() }}"])
def test_a_template_that_fails_is_one_line(fault: str) -> None:
    with pytest.raises(DataError, match="^the chat template (fails on|refuses) the messages: .+$"):
        encode_prompt([USER], tiny_tokenizer(chat_template=fault), PLAIN)


# --- tools --------------------------------------------------------------------------------------


def test_the_template_shows_the_tools() -> None:
    row = row_of([USER, ANSWER], SHOWS_TOOLS, tools=(TOOL,))
    assert list(row.input_ids) == ids_of([USER, ANSWER], SHOWS_TOOLS, tools=[TOOL])[:-1]
    with pytest.raises(DataError, match="^rows.jsonl:2: the chat template shows no tools"):
        row_of([USER, ANSWER], CHATML, tools=(TOOL,))
    config = EncodingConfig(row_template="{prompt}")
    with pytest.raises(DataError, match="^rows.jsonl:2: --row-template shows no tools"):
        row_of([USER, ANSWER], SHOWS_TOOLS, config, tools=(TOOL,))


@pytest.mark.parametrize("arguments", ['{"a": "bc"}', {"a": "bc"}])
def test_arguments_of_a_call_may_be_text(arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    row = row_of([USER, turn, USER, ANSWER], SHOWS_TOOLS)
    assert "a=bc<|im_end|>" in tiny_tokenizer().decode(row.input_ids)
    called = row_of([USER, turn], SHOWS_TOOLS, answer=turn)
    assert tiny_tokenizer().decode(called.input_ids[-called.num_labels :]) == "a=bc<|im_end|>"


def test_calls_that_cannot_be_shown_are_refused() -> None:
    def calling(arguments: str) -> dict[str, Any]:
        calls = [{"function": {"name": "f", "arguments": arguments}}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    with pytest.raises(DataError, match="^rows.jsonl:2: message 2: expected the arguments .*JSON"):
        row_of([USER, calling("{a"), USER, ANSWER], SHOWS_TOOLS)
    with pytest.raises(DataError, match="message 2: the chat template shows no calls of tools"):
        row_of([USER, calling("{}"), USER, ANSWER], CHATML)


def test_keys_that_no_template_reads_are_said() -> None:
    template = CHATML.replace("message['content']", "message['content'] ~ message.name | d('')")
    turns = (USER | {"name": "Ann", "ts": 3, "id": 1}, ANSWER, USER | {"id": 2})
    examples = [Example(turns, "yes", "1"), Example((USER | {"ts": 4},), "yes", "2")]
    _, report = encode_examples(examples, tiny_tokenizer(chat_template=template), PLAIN, 999)
    assert sorted(report.notes) == [
        "key 'id' of messages is not used (1 row)",
        "key 'ts' of messages is not used (2 rows)",
    ]


# --- truncation ---------------------------------------------------------------------------------


def test_truncation_keeps_the_system_turn_and_drops_the_oldest_turns() -> None:
    turns = [SYSTEM, USER | {"content": "old " * 9}, ANSWER, USER, ANSWER]
    short = row_of([SYSTEM, USER, ANSWER], CHATML)
    limit = len(short.input_ids) + 5
    cut = row_of(turns, CHATML, EncodingConfig(truncate=True, max_length=limit))
    assert (cut.input_ids, cut.num_labels) == (short.input_ids, short.num_labels)
    assert cut.is_truncated and not short.is_truncated


def test_truncation_cuts_the_start_of_the_last_question_behind_its_system_turn() -> None:
    long = USER | {"content": "0123456789" * 5}
    whole = row_of([SYSTEM, long, ANSWER], CHATML)
    cut = row_of([SYSTEM, long, ANSWER], CHATML, EncodingConfig(truncate=True, max_length=70))
    shown = tiny_tokenizer().decode(cut.input_ids)
    assert len(cut.input_ids) == 70 and cut.num_labels == whole.num_labels
    assert shown.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert shown.endswith(tiny_tokenizer().decode(whole.input_ids[-50:]).split("user\n")[-1][-30:])


def test_truncation_keeps_the_start_token() -> None:
    tokenizer = tiny_tokenizer("<|bos|> $A")
    config = EncodingConfig(truncate=True, max_length=6)
    row = encode(Example("abcdef", "xyz", "1"), tokenizer, config, 99)
    assert tokenizer.decode(row.input_ids) == "<|bos|>fxyz<|im_end|>"
    templated = EncodingConfig(row_template="Q{prompt}A", truncate=True, max_length=8)
    row = encode(Example("abcdef", "xyz", "1"), tokenizer, templated, 99)
    assert tokenizer.decode(row.input_ids) == "<|bos|>QfAxyz<|im_end|>"


def test_the_end_of_a_filled_template_is_the_templates() -> None:
    tokenizer = tiny_tokenizer(eos="<|bos|>")
    text = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert end_ids(text, tokenizer, PLAIN) == [2]
    assert end_ids("a", tokenizer, PLAIN) == [0]


def test_another_template_can_be_given() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    config = EncodingConfig(chat_template=TRIMS)
    row = encode(Example((USER,), " yes\n", "1"), tokenizer, config, 999)
    assert row.input_ids == row_of([USER, ANSWER], TRIMS).input_ids
    assert end_ids([USER], tokenizer, config) == [2]


# --- what a template leaves out -----------------------------------------------------------------

SHORT_MEMORY = CHATML.replace("in messages %}", "in messages[-3:] %}", 1)
NO_RESULTS = "{% set messages = messages | rejectattr('role', 'equalto', 'tool') %}" + CHATML
SYSTEM_WHEN_ASKED = (  # as Mistral's: the system turn stands in the last turn, if that asks
    "{% for m in messages %}{% if m.role != 'system' %}{{ '[' ~ m.role ~ '] ' }}"
    "{% if loop.last and m.role == 'user' %}{{ messages[0].content ~ ' ' }}{% endif %}"
    "{{ m.content ~ '<|im_end|>' }}{% endif %}{% endfor %}"
)
FIRST_CALL = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}"
    "{{ m.tool_calls[0].function | tojson if m.tool_calls else m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
)
CUTS = CHATML.replace("message['content']", "message['content'][:40]")
NO_THOUGHTS = CHATML.replace("message['content']", "message['content'].split('</t>')[-1]")
CALL = {"function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("template", "turns", "expected"),
    [
        (SHORT_MEMORY, [USER, ANSWER, USER, ANSWER], "message 1: .* this turn of role 'user'"),
        (NO_RESULTS, [USER, ANSWER, {"role": "tool", "content": "3"}, ANSWER], "message 3: .*tool"),
        (SYSTEM_WHEN_ASKED, [SYSTEM, USER, ANSWER], "'system': train .* --opening generation"),
        (CUTS, [USER | {"content": "a" * 41}, ANSWER], "message 1: .* this turn of role 'user'"),
        (NO_THOUGHTS, [USER, ANSWER | {"content": "<t>so</t>yes"}], "leaves out a part of this"),
    ],
)
def test_what_a_template_leaves_out_is_refused(template: str, turns: Any, expected: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:2: .*{expected}"):
        row_of(turns, template)


def test_a_second_call_that_is_not_shown_is_refused() -> None:
    for count, expected in ((1, None), (2, "message 2: .* shows no call of tools behind 1")):
        turn = {"role": "assistant", "content": "", "tool_calls": [CALL] * count}
        for turns in ([USER, turn, ANSWER], [USER, turn]):
            more = {"answer": turn} if turns[-1] is turn else {}
            if expected is None:
                row_of(turns, FIRST_CALL, **more)
            else:
                with pytest.raises(DataError, match=expected):
                    row_of(turns, FIRST_CALL, **more)


def test_a_system_turn_that_is_shown_when_asked_is_shown_behind_the_generation_prompt() -> None:
    row = row_of([SYSTEM, USER, ANSWER], SYSTEM_WHEN_ASKED, GENERATION)
    shown = tiny_tokenizer().decode(row.input_ids)
    assert shown == "[user] Be brief. Good?<|im_end|> yes\n<|im_end|>"


def test_every_key_of_an_answer_is_shown_or_said() -> None:
    named = {"role": "assistant", "content": "yes", "name": "Ann"}
    example = Example((USER,), "yes", "1", answer=named)
    _, report = encode_examples([example], tiny_tokenizer(), PLAIN, 999)
    assert report.notes == ("key 'name' of messages is not used (1 row)",)


def test_a_key_that_is_shown_of_some_roles_is_said_of_the_others() -> None:
    template = "{% for m in messages %}{{ m.name if m.role == 'tool' }}" + CHATML.partition(
        "{% for message in messages %}"
    )[2].replace("message[", "m[").replace("'system', ", "'tool', ")
    turns = (USER | {"name": "Ann"}, {"role": "tool", "content": "3", "name": "f"})
    examples = [Example(turns, "yes", "1")]
    _, report = encode_examples(examples, tiny_tokenizer(chat_template=template), PLAIN, 999)
    assert report.notes == ("key 'name' of user messages is not used (1 row)",)


def test_a_template_that_prints_all_keys_uses_them() -> None:
    template = CHATML.replace("message['content']", "(message | tojson)")
    example = Example((USER | {"id": 7},), "yes", "1")
    [row], report = encode_examples([example], tiny_tokenizer(chat_template=template), PLAIN, 999)
    assert report.notes == ()
    assert '"id": 7' in tiny_tokenizer().decode(row.input_ids)


def test_text_beside_calls_that_is_not_shown_is_said() -> None:
    turn = {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}
    example = Example((USER, turn), "yes", "1")
    _, report = encode_examples([example], tiny_tokenizer(chat_template=FIRST_CALL), PLAIN, 999)
    assert report.notes == ("the text beside calls of tools is not used (1 row)",)


def test_an_answer_that_is_more_than_text_needs_a_chat_template() -> None:
    turn = {"role": "assistant", "content": "Wait.", "tool_calls": [CALL]}
    config = EncodingConfig(row_template="{prompt}")
    with pytest.raises(DataError, match="^rows.jsonl:2: the answer holds a call of tools"):
        row_of([USER, turn], FIRST_CALL, config, answer=turn)


# --- borders ------------------------------------------------------------------------------------


def test_a_space_that_a_template_writes_before_an_answer_begins_it() -> None:
    template = (
        "{% for m in messages %}{{ '[' ~ m.role ~ '] ' ~ m.content ~ eos_token }}{% endfor %}"
    )
    answer = ANSWER | {"content": "yes"}
    row = row_of([USER, answer], template)
    assert list(row.input_ids) == ids_of([USER, answer], template)
    assert decode(row.input_ids[-row.num_labels :], tiny_tokenizer()) == " yes"


def test_an_answer_with_tools_ends_as_the_template_for_tools_ends_it() -> None:
    tokenizer = tiny_tokenizer(eos="<|im_start|>")
    with_tools = "{{ tools | tojson }}" + CHATML.replace("<|im_end|>", "<|bos|>")
    tokenizer.chat_template = {"default": CHATML, "tool_use": with_tools}
    row = encode(Example((USER,), "yes", "1", tools=(TOOL,)), tokenizer, PLAIN, 999)
    assert row.input_ids[-1] == tokenizer.bos_token_id


@pytest.mark.parametrize("limit", range(1, 80))
def test_a_row_that_is_cut_keeps_its_ends_or_is_refused(limit: int) -> None:
    config = EncodingConfig(truncate=True, max_length=max(limit, 2))
    shout = CHATML.replace(
        "~ message['content'] ~",
        "~ (message.content | upper if loop.index > 1 else message.content) ~",
    ).replace("upper if", "upper if message.role == 'user' and")
    developer = {"role": "developer", "content": "Now."}
    template = shout.replace("['system'", "['system', 'developer'")
    turns = [SYSTEM, developer, USER, ANSWER, USER | {"content": "b" * 20}, ANSWER]
    try:
        row = row_of(turns, template, config)
    except DataError as error:
        assert "expected at most" in str(error) or "no label left" in str(error)
        return
    text = tiny_tokenizer().decode(row.input_ids)
    assert len(row.input_ids) <= max(limit, 2)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>developer\nNow.")
    assert text.endswith("<|im_start|>assistant\n yes\n<|im_end|>")


def test_many_turns_are_looked_for_in_one_reading_of_the_text() -> None:
    class Text(str):
        def casefold(self) -> str:
            return self

        def __contains__(self, _: object) -> bool:
            raise AssertionError("the text is searched for a single probe")

    calls = [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]
    turns, lost = probed_turns([USER] * 20 + [{**ANSWER, "tool_calls": calls}])
    lost |= probed_tools([TOOL])[1]
    whole = " ".join(probe for probes in lost for probe in probes)
    assert len(turns) == 21 and chat_template._first_lost(lost, Text(whole)) is None
    for probes, what in lost.items():
        rest = Text(" ".join(one for key in lost if key != probes for one in key))
        assert chat_template._first_lost(lost, rest) == what
