"""Distilled prompts in a vocabulary: stock transformers answers as foreword does behind them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import saved
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreword import Backbone, DistillConfig, SoftPrompt, TrainConfig, chat, distill
from foreword.errors import DataError, UnsupportedError
from foreword.export import checkpoint

ASKED: list[Any] = [[{"role": "user", "content": f"{word} {n}?"}] for n, word in enumerate("abcd")]
ANSWERED = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is red."}]
OWN = [{"role": "system", "content": "Be brief."}, *ASKED[0]]
# Writes a system turn of its own, as SmolLM2's, and begins with white space.
DEFAULT = (
    "\n{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ "
    "message['content'] ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def student_of(backbone: Backbone, context: Any) -> SoftPrompt:
    """Return a distilled embedding prompt; two steps are enough to have it."""
    config = TrainConfig(form="embeddings", num_virtual_tokens=4, num_steps=2, learning_rate=0.05)
    kept = DistillConfig(top_k=4, answer_tokens=4)
    *_, last = distill(backbone, context, ASKED, config, distill_config=kept)
    assert last.prompt is not None
    return last.prompt


def with_template(name: str, template: str | None) -> str:
    if template is not None:
        tokenizer = AutoTokenizer.from_pretrained(name)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(name)
    return name


SPACED = "\n  {{ '' }}" + DEFAULT + " \n\n"  # white space at both ends that counts


@pytest.mark.parametrize("template", [None, DEFAULT, SPACED])
@pytest.mark.parametrize("context", ["The lamp is red. The door is blue.", ANSWERED])
def test_greedy_ids_are_those_behind_the_prompt(
    context: Any, template: str | None, tmp_path: Path
) -> None:
    name = with_template(saved("llama", tmp_path / "base"), template)
    backbone = Backbone.load(name)
    prompt = student_of(backbone, context)
    assert chat.encoding_of(prompt).held_text is not None
    checkpoint.export({"home": prompt}, name, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [*ASKED, [*ASKED[0], *ANSWERED[1:], *ASKED[1]]]
    asked += [OWN] if isinstance(context, str) else []
    for turns in asked:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
        given = torch.tensor([ids])
        found = model.generate(
            given, attention_mask=torch.ones_like(given), max_new_tokens=8, do_sample=False,
            eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        [expected] = chat.answers(backbone, prompt, [turns], max_new_tokens=8)
        assert tuple(found[0, len(ids) :].tolist()) == expected.ids
    if not isinstance(context, str):
        with pytest.raises(Exception, match="leave the system turn out"):
            tokenizer.apply_chat_template(OWN)


def test_several_parts_of_an_own_system_turn_are_told_apart_from_the_held_one(
    tmp_path: Path,
) -> None:
    name = saved("llama", tmp_path / "base")
    backbone = Backbone.load(name)
    checkpoint.export({"home": student_of(backbone, "The lamp is red. The door is blue.")}, name,
                      tmp_path / "out")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    written = tokenizer.apply_chat_template(OWN, tokenize=False)
    assert "\n\nBe brief." in written and "system\n-" not in written


@pytest.mark.parametrize("turns", [ANSWERED[1:] + ASKED[0], [*ASKED[0], *ASKED[1], *OWN]])
def test_a_row_that_begins_otherwise_is_refused_as_foreword_does(
    turns: list[Any], tmp_path: Path
) -> None:
    # Writes nothing of an opening turn of the assistant's, and more where turns follow one another.
    odd = (
        "{%- if messages | length > 3 %}{{ 'many ' }}{% endif %}"
        "{% for message in messages %}{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ "
        "message['content'] ~ (' ' if messages[2] is defined and messages[2]['role'] == 'assistant'"
        " else '') ~ '<|im_end|>' ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    name = with_template(saved("llama", tmp_path / "base"), odd)
    backbone = Backbone.load(name)
    prompt = student_of(backbone, ANSWERED)
    assert chat.encoding_of(prompt).held_text is not None
    checkpoint.export({"home": prompt}, name, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with pytest.raises(DataError, match="does not begin with the text"):
        chat.encode(backbone, turns, chat.encoding_of(prompt))
    with pytest.raises(Exception, match="does not begin with the text"):
        tokenizer.apply_chat_template(turns, add_generation_prompt=True)


def test_an_instruction_that_stands_within_a_question_is_refused(tmp_path: Path) -> None:
    without = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{{ raise_exception('no system turn') }}{% endif %}"
        "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    name = with_template(saved("llama", tmp_path / "base"), without)
    backbone = Backbone.load(name)
    prompt = student_of(backbone, "The lamp is red. The door is blue.")
    if chat.encoding_of(prompt).held_text is None:
        pytest.skip("rows stand alone")
    with pytest.raises(UnsupportedError, match="has no system turn"):
        checkpoint.export({"home": prompt}, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()
