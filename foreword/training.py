"""Training a soft prompt on a frozen model: the step first, then the run around it.

In: a backbone, examples or encoded rows, a configuration. Out: an iterator of `TrainEvent`s, whose
last one holds the trained prompt. The prefix is computed once per optimizer step and shared by all
of its rows; its gradient adds up over the micro-batches and goes through the prefix once. Prints
nothing, writes no file.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup

from foreword import encoding, initializers
from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.data import Example, as_example
from foreword.encoding import Batch, EncodingReport, Row
from foreword.errors import InputError, TrainingError
from foreword.loss import score_labels
from foreword.prefix import Prefix, same_prefix
from foreword.prompt import SoftPrompt
from foreword.states import States

AnyExample = Example | Row | Mapping[str, Any]


def train_step(
    backbone: Backbone,
    prompt: SoftPrompt,
    batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
) -> tuple[float, float]:
    """Take one optimizer step over micro-batches; return the mean loss of a label and the
    gradient's norm.
    """
    states = backbone.read(prompt)  # 1. the prefix, once, with gradient to the prompt
    leaves = leaves_of(states)  # 2. the rows, their gradient adding up on a detached copy
    loss = accumulate(backbone, leaves, batches)
    _backward(states, leaves)  # 3. the prefix, backwards once
    norm = _clip(prompt.tensors, max_grad_norm)  # 4. the prompt
    check_gradient(loss, norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss, norm


def accumulate(backbone: Backbone, states: States, batches: Sequence[Batch]) -> float:
    """Add the gradient of the mean label loss over all batches to `states`; return that loss, in
    nats.
    """
    num_labels = sum(int(batch.label_mask.sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        prefixes = same_prefix(Prefix(states, "training"), batch.input_ids.shape[0])
        loss = score_labels(backbone, prefixes, batch).losses.sum() / num_labels
        loss.backward()
        total += loss.item()
    return total


def leaves_of(states: States) -> States:
    """Return a detached copy on which gradient can add up."""
    return states.map(lambda state: state.detach().requires_grad_())


def _backward(states: States, leaves: States) -> None:
    pairs = [
        (state, leaf.grad)
        for state, leaf in zip(states.tensors, leaves.tensors, strict=True)
        if leaf.grad is not None and state.requires_grad
    ]
    if pairs:
        torch.autograd.backward([state for state, _ in pairs], [grad for _, grad in pairs])


def _clip(tensors: list[Tensor], max_norm: float) -> float:
    limit = max_norm if max_norm > 0 else math.inf
    return float(torch.nn.utils.clip_grad_norm_(tensors, limit))


def check_gradient(loss: float, norm: float) -> None:
    """Refuse to go on blindly: a dead gradient trains nothing, and nothing else would tell.

    Raises:
        TrainingError: names what is known to cause it.
    """
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise TrainingError(
            f"the loss is {loss:.4g} and the gradient's norm {norm:.4g}; lower --learning-rate, or "
            "load the base in float32 or bfloat16 instead of float16"
        )
    if norm == 0.0:
        raise TrainingError(
            "the gradient of the prompt is zero: the base stops it (weights under fake "
            "quantization, or gradient checkpointing that drops the cache); load it dequantized "
            "or without checkpointing"
        )


@dataclass(frozen=True)
class Validation:
    """What the prompt does on rows that it was not trained on.

    Attributes:
        loss: mean cross entropy of a label, in nats.
        exact: share of rows whose greedy answer is the label, token for token.
    """

    loss: float
    exact: float


@dataclass(frozen=True, eq=False)
class TrainEvent:
    """One optimizer step.

    Attributes:
        step: from 1 to `num_steps`.
        loss: mean cross entropy of a label over the step's rows, in nats.
        learning_rate: of this step.
        gradient_norm: before clipping.
        num_tokens: real tokens of the step's rows.
        seconds: that the step took, validation not counted.
        validation: set where the prompt was validated.
        prompt: set where it was validated, and on the last event: the best so far, else the newest.
    """

    step: int
    num_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    seconds: float
    validation: Validation | None = None
    prompt: SoftPrompt | None = None


def train(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig | None = None,
    *,
    validation: Sequence[AnyExample] = (),
    encoding_config: EncodingConfig | None = None,
    initial: SoftPrompt | None = None,
) -> Iterator[TrainEvent]:
    """Train a soft prompt, one event per optimizer step; the last event's `prompt` is the result.

    With validation rows the result is the prompt with the lowest validation loss, else the last
    one.

    Args:
        backbone: with a tokenizer, unless all examples are encoded rows and `initial` is given.
        examples: at least one: rows of a data file, examples, or encoded rows of ids.
        config: the run; default `TrainConfig()`.
        validation: examples that are never trained on.
        encoding_config: how examples become ids; saved in the prompt.
        initial: start from this prompt's values instead of `config.init`.

    Raises:
        DataError: an example that cannot be encoded; names file and line.
        InputError: nothing to train on. TrainingError: a gradient that is zero or not finite.
    """
    config = (config or TrainConfig()).resolved()
    encoding_config = encoding_config or EncodingConfig()
    rows = encode_rows(backbone, examples, config, encoding_config)
    held_out = encode_rows(backbone, validation, config, encoding_config)
    if not rows:
        raise InputError("no examples to train on; give at least one")
    prompt = initial or initial_prompt(backbone, config)
    facts = describe(backbone, config, encoding_config, len(rows))
    prompt = prompt.replaced(prompt.trainable(_dtype(backbone)).tensors, facts)
    yield from _run(backbone, prompt, rows, held_out, config)


def _run(
    backbone: Backbone,
    prompt: SoftPrompt,
    rows: list[Row],
    held_out: list[Row],
    config: TrainConfig,
) -> Iterator[TrainEvent]:
    num_steps = config.num_steps or math.ceil(config.num_epochs * len(rows) / config.batch_size)
    assert config.learning_rate is not None  # resolved by `train`
    optimizer = torch.optim.AdamW(
        prompt.tensors, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    warmup = round(config.warmup_share * num_steps)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, num_steps)
    best: tuple[float, SoftPrompt] | None = None
    for step, chosen in zip(range(1, num_steps + 1), _steps(rows, config), strict=False):
        started = time.perf_counter()
        rate = schedule.get_last_lr()[0]
        batches = _micro_batches(backbone, chosen, config)
        loss, norm = train_step(backbone, prompt, batches, optimizer, config.max_grad_norm)
        schedule.step()
        seconds = time.perf_counter() - started
        is_due = step == num_steps or (config.eval_every and step % config.eval_every == 0)
        result = None
        if is_due and held_out:
            result = validate(backbone, prompt, held_out, config.batch_size)
            if best is None or result.loss < best[0]:
                metrics = {"step": step, "validation": asdict(result), "training_loss": loss}
                best = (result.loss, _snapshot(prompt, metrics))
        snapshot = None
        if is_due:
            snapshot = best[1] if best else _snapshot(prompt, {"step": step, "training_loss": loss})
        num_tokens = sum(len(row.input_ids) for row in chosen)
        yield TrainEvent(step, num_steps, loss, rate, norm, num_tokens, seconds, result, snapshot)


def _steps(rows: list[Row], config: TrainConfig) -> Iterator[list[Row]]:
    """Yield the rows of each optimizer step, epoch after epoch, without end."""
    epoch = 0
    while True:
        yield from encoding.epoch_order(rows, config.batch_size, config.seed, epoch)
        epoch += 1


def _micro_batches(backbone: Backbone, rows: list[Row], config: TrainConfig) -> list[Batch]:
    size = config.micro_batch_size or config.batch_size
    pad_id = padding_id(backbone)
    return [
        encoding.collate(rows[start : start + size], pad_id) for start in range(0, len(rows), size)
    ]


def validate(
    backbone: Backbone, prompt: SoftPrompt, rows: Sequence[Row], batch_size: int
) -> Validation:
    """Score held-out rows: teacher-forced, so one pass tells the loss and what greedy decoding
    answers.
    """
    prefix = backbone.compile(prompt.detached())
    total, num_labels, num_exact = 0.0, 0, 0
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    with torch.no_grad():
        for start in range(0, len(ordered), batch_size):
            part = ordered[start : start + batch_size]
            batch = encoding.collate(part, padding_id(backbone))
            scores = score_labels(backbone, same_prefix(prefix, len(part)), batch)
            total += float(scores.losses.sum())
            num_labels += len(scores.losses)
            wrong = scores.rows[~scores.is_best].unique()
            num_exact += len(part) - len(wrong)
    return Validation(loss=total / num_labels, exact=num_exact / len(ordered))


def initial_prompt(backbone: Backbone, config: TrainConfig) -> SoftPrompt:
    """Return the prompt that a run starts from, in the form that it trains."""
    config = config.resolved()
    generator = torch.Generator().manual_seed(config.seed)
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size))
    if config.init == "text":
        ids = initializers.fit_ids(_text_ids(backbone, config), config.num_virtual_tokens)
        values = backbone.embed(torch.tensor(ids)).float().cpu()
    elif config.init == "vocabulary":
        values = initializers.vocabulary_embeddings(table, config.num_virtual_tokens, generator)
    else:
        values = initializers.random_embeddings(table, config.num_virtual_tokens, generator)
    if config.form == "embeddings":
        return SoftPrompt.from_embeddings(values)
    with torch.no_grad():
        states = backbone.read_embeddings(values.to(backbone.device, backbone.dtype))
    return SoftPrompt.from_states(states.map(Tensor.float))


def _text_ids(backbone: Backbone, config: TrainConfig) -> list[int]:
    if backbone.tokenizer is None:
        raise InputError("--init-text needs a tokenizer; use --init vocabulary, or pass `initial`")
    return list(backbone.tokenizer(config.init_text).input_ids)


def encode_rows(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig,
    encoding_config: EncodingConfig,
) -> list[Row]:
    """Return examples as rows of ids that fit behind the prompt; rows pass as they are."""
    texts = [
        as_example(example, f"example {number}") if isinstance(example, Mapping) else example
        for number, example in enumerate(examples, 1)
        if not isinstance(example, Row)
    ]
    rows = [row for row in examples if isinstance(row, Row)]
    if texts:
        rows += encode_texts(backbone, texts, config, encoding_config)[0]
    context = _context(backbone, config)
    for row in rows:
        if row.num_labels >= len(row.input_ids):
            raise InputError(
                f"{row.source}: every token is a label; a row needs one token before its answer"
            )
        if len(row.input_ids) > context:
            raise InputError(f"{row.source}: {len(row.input_ids)} tokens, at most {context} fit")
        if backbone.reads_apart:
            _check_pair(backbone, row, config)
    return rows


def encode_texts(
    backbone: Backbone,
    examples: Sequence[Example],
    config: TrainConfig,
    encoding_config: EncodingConfig,
) -> tuple[list[Row], EncodingReport]:
    """Encode examples as the backbone reads them, and say what became of them.

    Raises:
        InputError: the backbone has no tokenizer. DataError: an example that cannot be encoded.
    """
    if backbone.tokenizer is None:
        raise InputError(
            "text examples need a tokenizer; give the backbone one, or pass rows of ids"
        )
    context = _context(backbone, config)
    return encoding.encode_examples(
        examples, backbone.tokenizer, encoding_config, context, are_pairs=backbone.reads_apart
    )


def _context(backbone: Backbone, config: TrainConfig) -> int:
    """Return how many tokens a row may have."""
    if backbone.reads_apart:  # the encoder's tokens and the decoder's each have their own room
        return 1 << 30
    return (backbone.capabilities.context_length or 1 << 30) - config.num_virtual_tokens


def _check_pair(backbone: Backbone, row: Row, config: TrainConfig) -> None:
    """Refuse a row whose text does not fit into the encoder, or its labels into the decoder."""
    assert backbone.seq2seq is not None
    is_read = config.resolved().form == "embeddings"
    encoder, num_virtual = backbone.seq2seq.encoder, config.num_virtual_tokens
    for what, count, limit, before in (
        ("text", len(row.input_ids) - row.num_labels, encoder.context_length, is_read),
        ("labels", row.num_labels, encoder.decoder_length, not is_read),
    ):
        room = (limit or 1 << 30) - before * num_virtual
        if count > room:
            raise InputError(f"{row.source}: {what} of {count} tokens, at most {room} fit")


def describe(
    backbone: Backbone, config: TrainConfig, encoding_config: EncodingConfig, num_rows: int
) -> dict[str, Any]:
    """Return what a trained prompt says of itself: base, tokenizer, how rows are encoded, how it
    was trained.
    """
    return {
        "base": {
            "name": backbone.name,
            "revision": backbone.revision,
            "fingerprint": backbone.fingerprint(),
        },
        "tokenizer": _tokenizer_facts(backbone.tokenizer),
        "method": "prompt tuning" if config.form == "embeddings" else "prefix tuning",
        "embedding_scale": "as the model's embedding module returns them",
        "encoding": asdict(encoding_config),
        "training": asdict(config) | {"num_rows": num_rows},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any] | None:
    """Return hashes of the vocabulary and of the chat template: a prompt is trained on both."""
    if tokenizer is None:
        return None
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
    template = json.dumps(getattr(tokenizer, "chat_template", None))
    return {
        "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "chat_template": hashlib.sha256(template.encode()).hexdigest(),
    }


def padding_id(backbone: Backbone) -> int:
    """Return an id to pad with; masks decide, so any valid id serves."""
    found = getattr(backbone.tokenizer, "pad_token_id", None)
    return found if isinstance(found, int) else 0


def _snapshot(prompt: SoftPrompt, metrics: dict[str, Any]) -> SoftPrompt:
    copy = prompt.detached()
    copy.facts["metrics"] = metrics
    return copy


def _dtype(backbone: Backbone) -> torch.dtype:
    # The prompt and its moments stay in float32 over any base; a float64 base keeps its precision.
    return torch.float64 if backbone.dtype == torch.float64 else torch.float32
