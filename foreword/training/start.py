"""What a run starts from: rows of ids, the first prompt, and what a trained one says of itself.

In: a backbone, examples, the options. Out: rows that fit behind the prompt, a prompt in the form
that is trained, facts as plain data. Takes no step and writes no file.
"""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import NUM_DEMONSTRATED, RATES, RELATIVE, EncodingConfig, TrainConfig
from foreword.data import encoding
from foreword.data.encoding import EncodingReport, Row
from foreword.data.examples import Example, as_example
from foreword.errors import InputError, UnsupportedError
from foreword.prompt import artifact
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training import guards, initializers
from foreword.training.checkpoint import ENVIRONMENT
from foreword.training.methods import Context, Direct, Method, Multitask, Reencoded
from foreword.training.methods.reencoded import Kind

AnyExample = Example | Row | Mapping[str, Any]
KINDS: dict[str, Kind] = {"residual": "residual", "prefix-projection": "projection"}
PROJECTION_SIZE = 512  # Li and Liang 2021, table to text
MIN_DIFFERENT = 16  # rows, for a prompt that starts from some of them without being told to
NUM_ROWS_OF_SCALE = 1024  # of the embedding table, evenly spaced; more say the same to three digits


def initial_prompt(backbone: Backbone, config: TrainConfig, rows: Sequence[Row] = ()) -> SoftPrompt:
    """Return the prompt that a run starts from, in the form that it trains.

    Raises:
        InputError: no tokenizer for a text, or rows that are no classes or do not fit.
    """
    config = config.resolved()
    generator = torch.Generator().manual_seed(config.seed)
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size))
    if config.init == "text":
        ids = _text_ids(backbone, config)
        values = backbone.embed(torch.tensor(ids)).float().cpu()
    elif config.init == "vocabulary":
        values = initializers.vocabulary_embeddings(table, config.num_virtual, generator)
    elif config.init == "labels":
        answers = [row.input_ids[-row.num_labels :] for row in rows]
        values = initializers.label_embeddings(table, answers, config.num_virtual, generator)
    elif config.init == "demonstrations":
        places = _demonstrations(rows, config)
        ids = [rows[row].input_ids[position] for row, position in places]
        values = backbone.embed(torch.tensor(ids)).float().cpu()
    else:
        values = initializers.random_embeddings(table, config.num_virtual, generator)
    return in_form(backbone, SoftPrompt.from_embeddings(values), config)


def in_form(backbone: Backbone, prompt: SoftPrompt, config: TrainConfig) -> SoftPrompt:
    """Return a prompt in the form that is trained: embeddings become the cache of themselves.

    Raises:
        InputError: embeddings are trained, and there are keys and values.
        MismatchError: the prompt is of another base.
    """
    form = config.resolved().form
    if prompt.form == form:
        return prompt
    if form == "embeddings":
        raise InputError(
            f"--method {config.resolved().method} learns embeddings, and the prompt to start from "
            "holds keys and values, which have none: use --method prefix-tuning"
        )
    backbone.check(prompt)
    with torch.no_grad():
        states = backbone.read_embeddings(prompt.embeddings.to(backbone.device, backbone.dtype))
    return SoftPrompt.from_states(states.map(torch.Tensor.float), facts=prompt.facts)


def _demonstrations(rows: Sequence[Row], config: TrainConfig) -> list[tuple[int, int]]:
    if any(row.media is not None for row in rows):
        raise InputError("--init demonstrations takes rows of text; use --init text")
    return initializers.demonstrations([row.input_ids for row in rows], config.num_virtual)


def settled(config: TrainConfig, initial: SoftPrompt | None) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with every default filled in, after the prompt that the run starts
    from, and what there is to say of it.
    """
    if initial is None:
        return config.resolved(), []
    if config.method is None and config.form is None:
        config = replace(config, form=initial.form)
    num_virtual, said = initial.num_virtual_tokens, []
    if config.num_virtual_tokens not in (None, num_virtual):
        said = [
            f"the prompt to start from has {num_virtual} virtual tokens: so has this one, not "
            f"{config.num_virtual}"
        ]
    return replace(config, num_virtual_tokens=num_virtual).resolved(), said


def with_start(
    backbone: Backbone, config: TrainConfig, rows: Sequence[Row], held_out: Sequence[Row]
) -> tuple[TrainConfig, list[str]]:
    """Return a configuration whose prompt starts from rows, where they are short, varied text and
    the base can hide a row from itself, and what there is to say of it; else the one given.
    """
    lengths = [len(row.input_ids) for row in (*rows, *held_out)]
    is_short = statistics.median(lengths[: len(rows)]) <= NUM_DEMONSTRATED
    fits = NUM_DEMONSTRATED + max(lengths) <= (backbone.capabilities.context_length or 1 << 30)
    is_plain = not backbone.capabilities.is_recurrent and backbone.seq2seq is None
    is_plain &= all(row.media is None for row in rows)
    # Of few rows, or of one row many times, a row sees too little once its own is hidden.
    is_varied = len({row.input_ids for row in rows}) >= MIN_DIFFERENT
    if not (is_short and fits and is_plain and is_varied):
        return config, []
    said = (
        f"starts from the first rows, as many as fit into {NUM_DEMONSTRATED} virtual tokens "
        "(context-tuning); --init-text or --method says otherwise"
    )
    open_start = replace(
        config, method="context-tuning", form=None, num_virtual_tokens=None, init="text"
    )
    return open_start.resolved(), [said]


def with_rate(backbone: Backbone, config: TrainConfig) -> TrainConfig:
    """Return a configuration that has a learning rate: its own, or the method's on this base."""
    if config.learning_rate is not None:
        return config
    return replace(config, learning_rate=default_rate(backbone, config))


def default_rate(backbone: Backbone, config: TrainConfig) -> float:
    """Return the learning rate that a method takes on a base where nobody says one."""
    method = config.resolved().method
    assert method is not None
    if method not in RELATIVE:
        return RATES[method]
    size = backbone.capabilities.vocab_size
    ids = torch.arange(0, size, max(1, size // NUM_ROWS_OF_SCALE))
    with torch.no_grad():
        scale = backbone.embed(ids).double().pow(2).mean().sqrt()
    return float(f"{RATES[method] * scale.item():.3g}")


def begin(
    backbone: Backbone, initial: SoftPrompt | None, rows: Sequence[Row], config: TrainConfig
) -> Method:
    """Return the method that a run trains, standing at a given prompt or where `config.init` says.

    Raises:
        UnsupportedError: the method is not exact on this base. InputError: rows without a task.
    """
    config = config.resolved()
    if initial is None:
        start = initial_prompt(backbone, config, rows)
    else:
        start = in_form(backbone, initial, config)
    start = start.replaced([tensor.detach().to(backbone.device) for tensor in start.tensors])
    # The prompt and its moments stay in float32 over any base; float64 keeps its precision.
    dtype = torch.float64 if backbone.dtype == torch.float64 else torch.float32
    kind = config.encoder if config.method == "p-tuning" else KINDS.get(config.method or "")
    if kind is not None:
        inputs = start.tensors[0] if start.form == "embeddings" else _inputs(backbone, config)
        size = config.encoder_size or _network_size(backbone, kind)
        inputs = inputs.detach().to(backbone.device, dtype)
        return Reencoded.begin(kind, start, inputs, size, config.seed)
    if config.method == "multitask":
        return Multitask.begin(start, _task_names(rows), dtype)
    if config.method != "context-tuning":
        return Direct.begin(start, dtype)
    if backbone.seq2seq is not None:
        raise UnsupportedError(
            "context-tuning places whole rows before others, and this model reads a row's text and "
            "its answer apart; use --method prefix-tuning"
        )
    return bound(Context.begin(start, dtype), initial, rows, config)


def bound(
    method: Method, initial: SoftPrompt | None, rows: Sequence[Row], config: TrainConfig
) -> Method:
    """Tell a method whose demonstrations its prompt holds: a function of rows and options. A given
    prompt to start from holds none.
    """
    is_from_rows = initial is None and config.resolved().init == "demonstrations"
    if isinstance(method, Context) and is_from_rows:
        if len({row.input_ids for row in rows}) == 1:
            raise InputError(
                "context-tuning hides a row's own demonstration from it, and there is one row "
                f"only ({rows[0].source}), so that nothing is left to learn from: give different "
                "rows, or --init-text"
            )
        own: dict[tuple[int, ...], list[int]] = {}
        for slot, (row, _) in enumerate(_demonstrations(rows, config)):
            own.setdefault(rows[row].input_ids, []).append(slot)
        method.own = own
    return method


def _inputs(backbone: Backbone, config: TrainConfig) -> Tensor:
    """Draw what a projection starts from: noise at the embedding table's scale `[P, H]`."""
    generator = torch.Generator().manual_seed(config.seed)
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size))
    return initializers.random_embeddings(table, config.num_virtual, generator)


def _network_size(backbone: Backbone, kind: str) -> int:
    width = backbone.capabilities.hidden_size
    return {"projection": PROJECTION_SIZE, "residual": max(1, width // 2)}.get(kind, width)


def _task_names(rows: Sequence[Row]) -> list[str]:
    names = sorted({row.task for row in rows})
    if "" in names:
        source = next(row.source for row in rows if not row.task)
        raise InputError(f"--method multitask: {source} names no task: give --task-column")
    return names


def check_tasks(rows: Sequence[Row], held_out: Sequence[Row]) -> None:
    """Refuse held-out rows of a task that is not trained.

    Raises:
        InputError: names the task and the first of its rows.
    """
    trained = set(_task_names(rows))
    if unknown := [row for row in held_out if row.task not in trained]:
        raise InputError(
            f"{unknown[0].source}: a validation row of task {unknown[0].task!r}, of which there is "
            f"no training row; tasks with some: {', '.join(sorted(trained))}"
        )


def _text_ids(backbone: Backbone, config: TrainConfig) -> list[int]:
    """Return the start of a text once, then the text's own ids, P in all."""
    tokenizer = backbone.tokenizer
    if tokenizer is None:
        raise InputError("--init-text needs a tokenizer; use --init vocabulary, or pass `initial`")
    start = encoding.start_ids(tokenizer)[: config.num_virtual]
    plain = list(tokenizer(config.init_text, add_special_tokens=False).input_ids)
    return [*start, *initializers.fit_ids(plain, config.num_virtual - len(start))]


def encode_rows(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig,
    encoding_config: EncodingConfig,
) -> tuple[list[Row], list[str]]:
    """Return examples as rows of ids that fit behind the prompt, and what there is to say of them;
    rows pass as they are.
    """
    said = []
    texts = [
        as_example(example, f"example {number}", task_column=config.task_column)
        if isinstance(example, Mapping)
        else example
        for number, example in enumerate(examples, 1)
        if not isinstance(example, Row)
    ]
    rows = [row for row in examples if isinstance(row, Row)]
    if texts:
        encoded, report = encode_texts(backbone, texts, config, encoding_config)
        rows += encoded
        said += [sentence] if (sentence := guards.truncation(report)) else []
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
    return rows, said


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
    return encoding.encode_examples(
        examples,
        backbone.tokenizer,
        encoding_config,
        _context(backbone, config),
        backbone.processor,
        are_pairs=backbone.reads_apart,
    )


def _context(backbone: Backbone, config: TrainConfig) -> int:
    """Return how many tokens fit behind the prompt; where text and labels are read apart, each has
    a room of its own.
    """
    if backbone.reads_apart or backbone.capabilities.context_length is None:
        return 1 << 30
    left = backbone.capabilities.context_length - config.num_virtual
    if left < 2:
        raise InputError(
            f"--num-virtual-tokens {config.num_virtual} leaves no room for a row: the model's "
            f"context has {backbone.capabilities.context_length} tokens"
        )
    return left


def _check_pair(backbone: Backbone, row: Row, config: TrainConfig) -> None:
    """Refuse a row whose text does not fit into the encoder, or its labels into the decoder."""
    assert backbone.seq2seq is not None
    is_read = config.resolved().form == "embeddings"
    encoder, num_virtual = backbone.seq2seq.encoder, config.num_virtual
    for what, count, limit, before in (
        ("text", len(row.input_ids) - row.num_labels, encoder.context_length, is_read),
        ("labels", row.num_labels, encoder.decoder_length, not is_read),
    ):
        room = (limit or 1 << 30) - before * num_virtual
        if count > room:
            raise InputError(f"{row.source}: {what} of {count} tokens, at most {room} fit")


def describe(
    backbone: Backbone, config: TrainConfig, encoding_config: EncodingConfig, rows: Sequence[Row]
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
        "method": config.resolved().method,
        "embedding_scale": "as the model's embedding module returns them",
        "encoding": asdict(encoding_config)
        | {
            "is_text": all(row.is_text for row in rows),
            "is_spaced": _are_spaced(backbone.tokenizer, rows),
        },
        "training": asdict(config) | {"num_rows": len(rows)},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _are_spaced(tokenizer: Any, rows: Sequence[Row]) -> bool | None:
    """Return whether every answer begins with a space; None without a tokenizer."""
    if tokenizer is None:
        return None
    borders = {row.input_ids[-row.num_labels - 1 :][:2] for row in rows}  # few differ
    texts = ([encoding.decode(ids, tokenizer) for ids in (ids[:1], ids)] for ids in borders)
    return all(both[len(before) :].startswith(" ") for before, both in texts)


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


def identity(
    backbone: Backbone,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    config: TrainConfig,
    encoding_config: EncodingConfig,
    initial: SoftPrompt | None,
    num_processes: int,
) -> dict[str, Any]:
    """Return what two runs must have in common for one to go on where the other stopped, and the
    environment, which may change the last bits of what it comes to.
    """
    options = asdict(config) | asdict(encoding_config)
    del options["save_every"]  # changes nothing but how much is lost
    in_memory = ("micro_batch_size", "gradient_checkpointing", "compile_layers")
    environment = {f"--{name.replace('_', '-')}": options.pop(name) for name in in_memory}
    environment |= {
        "the number of processes": num_processes,
        "the number of threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {
        ENVIRONMENT: environment,
        "the base model": json.dumps(backbone.fingerprint(), sort_keys=True),
        "the training rows": _hash_rows(rows),
        "the validation rows": _hash_rows(held_out),
        "the prompt to start from": initial.content_hash if initial else None,
        "options": options,
    }


def _hash_rows(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.num_labels} {row.input_ids}{row.task}\n".encode())
        if row.media is not None:
            digest.update(artifact.content_hash(list(row.media.tensors.values())).encode())
    return digest.hexdigest()
