"""A token that was added to a tokenizer, and not to its model, is refused by every way in."""

from collections.abc import Callable
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example, Row, SoftPrompt, TrainConfig, chat, train
from foreword.data.batches import collate
from foreword.errors import InputError
from foreword.evaluation.ensembles import averaged, vote
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.forgetting import forgetting
from foreword.evaluation.losses import label_losses
from foreword.training.loss import score_labels
from foreword.training.start import initial_prompt
from foreword.training.validation import validate

PLAIN = EncodingConfig(row_template="{prompt}")
FACTS = {"encoding": {"row_template": "{prompt}"}}
CONFIG = TrainConfig(num_virtual_tokens=4, num_steps=1, batch_size=2)
KNOWN, UNKNOWN = Example("a", "b", "rows:1"), Example("a [NEW]", "b", "rows:2")
LATE = Example("a", "b [NEW]", "rows:2")  # among the labels
BAD = Row((3, 4, 263, 5), 1, "rows:2")
BAD_LABEL = Row((3, 4, 5, 263), 1, "rows:2")
NAMED = r"rows:2: token \d+ is 263 \('\[NEW\]'\), expected an id from 0 to 262; .*resize_token_emb"
IDS = r"range from \d+ to 263, expected 0 to 262; .*: row 1, token \d+ is 263; .*resize_token_emb"


def world(build: Callable[..., Any] = tiny_models.build, family: str = "llama") -> Backbone:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return Backbone(build(family, vocab_size=size).float(), tokenizer)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return world()


def prompt_of(backbone: Backbone) -> SoftPrompt:
    values = tiny_models.embeddings(backbone.model, 4).float()
    return SoftPrompt.from_embeddings(values, facts=FACTS)


def trained(backbone: Backbone, rows: Any, held_out: Any = (), **options: Any) -> Any:
    config = TrainConfig(**(CONFIG.__dict__ | options))
    return list(train(backbone, rows, config, validation=held_out, encoding_config=PLAIN))


WAYS: dict[str, Callable[[Backbone], Any]] = {
    "training": lambda b: trained(b, [KNOWN, UNKNOWN]),
    "training labels": lambda b: trained(b, [KNOWN, LATE]),
    "training rows of ids": lambda b: trained(b, [Row((3, 4), 1, "rows:1"), BAD_LABEL]),
    "validation": lambda b: trained(b, [KNOWN], [KNOWN, UNKNOWN]),
    "context": lambda b: trained(
        b, [KNOWN, UNKNOWN], method="context-tuning", num_virtual_tokens=12
    ),
    "labels start": lambda b: trained(b, [KNOWN, LATE], init="labels"),
    "evaluation": lambda b: evaluate(b, Subject("bare", encoding=PLAIN), [KNOWN, UNKNOWN]),
    "evaluation labels": lambda b: evaluate(
        b, Subject("prompt", prompt=prompt_of(b)), [KNOWN, LATE]
    ),
    "members": lambda b: evaluate(
        b, Subject("both", members=(prompt_of(b), prompt_of(b))), [KNOWN, UNKNOWN]
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_row_is_named_with_its_token(backbone: Backbone, way: str) -> None:
    with pytest.raises(InputError, match=NAMED) as refused:
        WAYS[way](backbone)
    assert "\n" not in str(refused.value)


TEXTS: dict[str, tuple[str, Callable[[Backbone], Any]]] = {
    "unrelated text": ("unrelated text", lambda b: forgetting(b, prompt_of(b), "a b c [NEW] d")),
    "init text": ("--init-text", lambda b: initial_prompt(
        b, TrainConfig(num_virtual_tokens=4, init_text="a [NEW]"))),
    "answers": ("prompt", lambda b: list(chat.answers(b, prompt_of(b), ["a", "[NEW]"]))),
    "stream": ("prompt", lambda b: list(chat.stream(b, prompt_of(b), "a [NEW]"))),
    "vote": ("prompt", lambda b: list(vote(b, [prompt_of(b)], ["a [NEW]"]))),
    "averaged": ("prompt", lambda b: list(averaged(b, [prompt_of(b)] * 2, ["a [NEW]"]))),
}  # fmt: skip


@pytest.mark.parametrize("way", TEXTS)
def test_a_text_is_named_with_its_token(backbone: Backbone, way: str) -> None:
    source, run = TEXTS[way]
    with pytest.raises(InputError, match=rf"{source}: token \d+ is 263 \('\[NEW\]'\), expected"):
        run(backbone)


IDS_IN: dict[str, Callable[[Backbone], Any]] = {
    "losses": lambda b: label_losses(b, None, [Row((3, 4, 5, 6), 1, "rows:1"), BAD]),
    "scores": lambda b: score_labels(
        b, b.batch_of(prompt_of(b), 2), collate([Row((3, 4, 5), 1, "rows:1"), BAD_LABEL], 0)
    ),
    "validate": lambda b: validate(b, prompt_of(b), [Row((3, 4, 5), 1, "rows:1"), BAD_LABEL], 2),
    "logits": lambda b: b.logits(None, torch.tensor([[3, 4], [5, 263]])),
    "hidden": lambda b: b.hidden(b.batch_of(None, 2), torch.tensor([[3, 4], [5, 263]]), None),
    "generate": lambda b: b.generate(None, torch.tensor([[3, 4], [5, 263]]), max_new_tokens=1),
    "embed": lambda b: b.embed(torch.tensor([[3, 4], [5, 263]])),
}


@pytest.mark.parametrize("way", IDS_IN)
def test_ids_are_named_by_row_and_place(backbone: Backbone, way: str) -> None:
    with torch.no_grad(), pytest.raises(InputError, match=IDS):
        IDS_IN[way](backbone)


def test_one_row_of_ids_and_negative_ones_are_named(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="from -1 to 4, expected 0 to 262; .*: token 1 is -1"):
        backbone.embed(torch.tensor([4, -1]))
    assert backbone.embed(torch.tensor([], dtype=torch.long)).shape == (0, 32)


@pytest.mark.parametrize(("place", "row"), [("text", BAD), ("labels", BAD_LABEL)])
def test_a_model_with_an_encoder_refuses_them_in_text_and_labels(place: str, row: Row) -> None:
    both = world(seq2seq_models.build, "t5")
    with pytest.raises(InputError, match=NAMED):
        trained(both, [Row((3, 4), 1, "rows:1"), row])
    with pytest.raises(InputError, match=IDS):
        label_losses(both, None, [Row((3, 4, 5, 6), 1, "rows:1"), row])


def test_a_decoder_refuses_them_in_what_it_has_said() -> None:
    both = world(seq2seq_models.build, "t5")
    said = torch.tensor([[0, 4], [0, 263]])
    with pytest.raises(InputError, match=IDS):
        both.generate(
            None, torch.tensor([[3, 4]] * 2), decoder_input_ids=said, max_new_tokens=1,
            attention_mask=torch.ones(2, 2, dtype=torch.long),
        )  # fmt: skip


def test_a_padding_token_that_was_added_pads_with_a_known_id(backbone: Backbone) -> None:
    assert backbone.tokenizer.pad_token_id == 264 and backbone.padding_id == 0
    rows = [Example("a", "b", "rows:1"), Example("a b c d", "b", "rows:2")]
    (event,) = trained(backbone, rows)
    assert event.prompt is not None
    list(chat.answers(backbone, prompt_of(backbone), ["a", "a b c d"], max_new_tokens=2))
