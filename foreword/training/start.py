"""The start of a run: its first prompt, its method, the default learning rate.

In: a backbone, rows, the options. Out: a prompt in the form that is trained, and the method that
trains it. Takes no step and writes no file.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import (
    AUTO,
    DEMONSTRATED_LENGTH,
    NUM_DEMONSTRATED,
    OF_VALUES,
    RATES,
    RELATIVE,
    TrainConfig,
    extensions,
)
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.example import named
from foreword.data.row import every
from foreword.data.tokenizing import token_ids
from foreword.errors import InputError, UnsupportedError
from foreword.model import checks
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import attention_part
from foreword.training import initializers
from foreword.training.methods.context import Context
from foreword.training.methods.direct import Direct
from foreword.training.methods.method import Method, bind
from foreword.training.methods.multitask import Multitask
from foreword.training.methods.reencoded import Kind, Reencoded
from foreword.training.micro_batches import default_size
from foreword.training.rows import task_names
from foreword.training.run import Run
from foreword.training.state import TrainState

KINDS: dict[str, Kind] = {"residual": "residual", "prefix-projection": "projection"}
PROJECTION_SIZE = 512  # Li and Liang 2021, table to text
MOST_CLOSING = 4  # tokens that a chat template writes behind an answer
MIN_DIFFERENT = 16  # rows, for a prompt that starts from some of them without being told to
NUM_ROWS_OF_SCALE = 1024  # of the embedding table, evenly spaced; more say the same to three digits
NUM_VALUES_OF_SCALE = 64  # rows whose values tell their scale
MEASURED_VALUES = 0.695  # that scale of SmolLM2-135M, on which the rates of keys and values rest
MOST = 2.0  # by which a rate differs from that base's at most


def initial_prompt(backbone: Backbone, config: TrainConfig, rows: Sequence[Row] = ()) -> SoftPrompt:
    """Return the prompt that a run starts from, in the form that it trains.

    Raises:
        InputError: no tokenizer for a text, a text with tokens that the model does not have, or
            rows that are no classes or do not fit.
    """
    config = config.resolved()
    generator = torch.Generator().manual_seed(config.seed)
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size, device="cpu"))
    if config.init == "text":
        ids = _text_ids(backbone, config)
        values = backbone.embed(torch.tensor(ids, device="cpu")).float().cpu()
    elif config.init == "vocabulary":
        values = initializers.vocabulary_embeddings(table, config.num_virtual, generator)
    elif config.init == "labels":
        answers = [row.input_ids[-row.num_labels :] for row in rows]
        values = initializers.label_embeddings(table, answers, config.num_virtual, generator)
    elif config.init == "demonstrations":
        places = _demonstrations(rows, config)
        ids = [rows[row].input_ids[position] for row, position in places]
        values = backbone.embed(torch.tensor(ids, device="cpu")).float().cpu()
    elif added := extensions.find("init", config.init):
        values = _checked(added(table, config.num_virtual, generator), table, config)
    else:
        values = initializers.random_embeddings(table, config.num_virtual, generator)
    return in_form(backbone, SoftPrompt.from_embeddings(values), config)


def _checked(values: Tensor, table: Tensor, config: TrainConfig) -> Tensor:
    """Return what another package's initializer made, once its shape is right."""
    expected = [config.num_virtual, table.shape[1]]
    if list(values.shape) != expected:
        raise InputError(f"--init {config.init}: expected {expected}, got {list(values.shape)}")
    return values.float().cpu()


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
        states = backbone.passes.prefill(backbone.placed(prompt))
    return SoftPrompt.from_states(states.map(torch.Tensor.float), facts=prompt.facts)


def _demonstrations(rows: Sequence[Row], config: TrainConfig) -> list[tuple[int, int]]:
    if any(row.media is not None for row in rows):
        raise InputError("--init demonstrations takes rows of text; use --init text")

    def are_akin(index: int, other: int) -> bool:  # parts of one conversation
        first, second = rows[index], rows[other]
        is_same = first.input_ids == second.input_ids
        return not is_same and (
            _answers(first.input_ids, second) or _answers(second.input_ids, first)
        )

    ids = [row.input_ids for row in rows]
    return initializers.demonstrations(ids, config.num_virtual, are_akin)


def settled(config: TrainConfig, initial: SoftPrompt | None) -> tuple[TrainConfig, list[str]]:
    """Return the configuration with every default filled in, after the prompt that the run starts
    from, and what there is to say of it.
    """
    if initial is None:
        return config.resolved(), []
    if config.method is None and config.form is None:
        config = replace(config, form=initial.form)
    num_virtual, said = initial.num_virtual_tokens, []
    if config.init != "text" or config.init_text:
        said.append("--init and --init-text are not used: the run starts from the prompt given")
    if config.num_virtual_tokens not in (None, num_virtual):
        said.append(
            f"the prompt to start from has {num_virtual} virtual tokens: so has this one, not "
            f"{config.num_virtual}"
        )
    return replace(config, num_virtual_tokens=num_virtual).resolved(), said


def with_start(
    backbone: Backbone, config: TrainConfig, rows: Sequence[Row], held_out: Sequence[Row]
) -> tuple[TrainConfig, list[str]]:
    """Return a configuration whose prompt starts from rows, where they are short, varied text and
    the base can hide a row from itself, and what there is to say of it; else the one given.
    """
    lengths = [len(row.input_ids) for row in (*rows, *held_out)]
    is_short = statistics.median(lengths[: len(rows)]) <= DEMONSTRATED_LENGTH
    fits = NUM_DEMONSTRATED + max(lengths) <= (backbone.capabilities.context_length or 1 << 30)
    capabilities = backbone.capabilities
    is_plain = not capabilities.is_recurrent and capabilities.encoder is None
    is_plain &= not capabilities.counts_slots
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
    open_start = open_start.resolved()
    if _left_nothing(rows, _own_demonstrations(rows, open_start), open_start):
        return config, []
    return open_start, [said]


def unused_text(backbone: Backbone, config: TrainConfig) -> list[str]:
    """Say how much of a start text the virtual tokens do not hold."""
    config = config.resolved()
    if config.init != "text" or backbone.tokenizer is None:
        return []
    start = len(encoding.start_ids(backbone.tokenizer))
    length = len(_own_ids(backbone.tokenizer, config))
    room = config.num_virtual - start
    if length <= room:
        return []
    return [
        f"--init-text has {length} tokens, and {config.num_virtual} virtual tokens hold the first "
        f"{room}: raise --num-virtual-tokens, or shorten it"
    ]


def with_rate(backbone: Backbone, config: TrainConfig, share: float = 1.0) -> TrainConfig:
    """Return a configuration that has a learning rate: its own, or the method's on this base, times
    the share of it that its objective takes.
    """
    rate = config.learning_rate
    if rate == AUTO:
        return config
    if rate is None:
        rate = default_rate(backbone, config)
    assert not isinstance(rate, str)
    return replace(config, learning_rate=rate if share == 1 else float(f"{rate * share:.3g}"))


def default_rate(backbone: Backbone, config: TrainConfig) -> float:
    """Return the learning rate that a method takes on a base where nobody says one."""
    method = config.resolved().method
    assert method is not None
    if method in OF_VALUES:
        ratio = value_scale(backbone) / MEASURED_VALUES
        return float(f"{RATES[method] * min(max(ratio, 1 / MOST), MOST):.2g}")
    if method not in RELATIVE:
        return RATES[method]
    with torch.no_grad():
        scale = _spread_rows(backbone, NUM_ROWS_OF_SCALE).double().pow(2).mean().sqrt()
    return float(f"{RATES[method] * scale.item():.3g}")


def value_scale(backbone: Backbone) -> float:
    """Return the root mean square of the values that a base keeps of rows of its table, the median
    over its layers; that of the base on which rates were measured, where no layer attends.
    """
    count = min(NUM_VALUES_OF_SCALE, backbone.capabilities.context_length or NUM_VALUES_OF_SCALE)
    prompt = SoftPrompt.from_embeddings(_spread_rows(backbone, count)[:count])
    with torch.no_grad():
        states = backbone.passes.prefill(backbone.placed(prompt))
    attending = [part for layer in states if (part := attention_part(layer))]
    scales = [values.double().pow(2).mean().sqrt().item() for _, values in attending]
    return statistics.median(scales) if scales else MEASURED_VALUES


def _spread_rows(backbone: Backbone, count: int) -> Tensor:
    """Return rows `[>= count, H]` of the embedding table, evenly spaced; all where it has fewer."""
    size = backbone.capabilities.vocab_size
    return backbone.embed(torch.arange(0, size, max(1, size // count), device="cpu"))


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
        return Multitask.begin(start, task_names(rows), dtype)
    if added := extensions.find("method", config.method):
        return added.begin(start, dtype, config.seed)  # type: ignore[no-any-return]
    if config.method != "context-tuning":
        return Direct.begin(start, dtype)
    if backbone.capabilities.encoder is not None:
        raise UnsupportedError(
            "context-tuning places whole rows before others, and this model reads a row's text and "
            "its answer apart; use --method prefix-tuning"
        )
    if backbone.capabilities.counts_slots:
        raise UnsupportedError(
            "context-tuning hides a row's own demonstration from it, and this model places tokens "
            "by their slots, so that nothing can be hidden; use --method prefix-tuning"
        )
    return bound(Context.begin(start, dtype), initial, rows, config)


def bound(
    method: Method, initial: SoftPrompt | None, rows: Sequence[Row], config: TrainConfig
) -> Method:
    """Tell a method from which rows it hides which demonstrations: those in which the row's own
    answer stands, its own and longer parts of the same conversation. This is a function of rows and
    options. A given prompt to start from holds none.
    """
    config = config.resolved()
    is_from_rows = initial is None and config.init == "demonstrations"
    if config.method != "context-tuning" or not is_from_rows:
        return method
    if len({row.input_ids for row in rows}) == 1:
        raise InputError(
            "context-tuning hides a row's own demonstration from it, and there is one row "
            f"only ({rows[0].source}), so that nothing is left to learn from: give different "
            "rows, or --init-text"
        )
    own = _own_demonstrations(rows, config)
    if row := _left_nothing(rows, own, config):
        raise InputError(
            f"{row.source}: context-tuning hides a row's own demonstration from it, and this one's "
            f"fills the {config.num_virtual} virtual tokens, so that nothing is left to learn "
            "from: raise --num-virtual-tokens, drop the row, or give --init-text"
        )
    bind(method, own)
    return method


def _own_demonstrations(
    rows: Sequence[Row], config: TrainConfig
) -> dict[tuple[int, ...], list[int]]:
    """Return for the ids of each row the virtual tokens of demonstrations in which its answer
    stands, where there are some.
    """
    shown: dict[tuple[int, ...], list[int]] = {}
    for slot, (index, _) in enumerate(_demonstrations(rows, config)):
        shown.setdefault(rows[index].input_ids, []).append(slot)
    own: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        slots = [slot for ids in shown if _answers(ids, row) for slot in shown[ids]]
        if slots:
            own |= dict.fromkeys((one.input_ids for one in every([row])), slots)
    return own


def _left_nothing(
    rows: Sequence[Row], own: Mapping[tuple[int, ...], Sequence[int]], config: TrainConfig
) -> Row | None:
    """Return the first row that no virtual token is trained by: the first of these stays as it is,
    and all others are hidden from the row.
    """
    trained = config.num_virtual - 1
    hidden = ((row, set(own.get(row.input_ids, ())) - {0}) for row in rows)
    return next((row for row, slots in hidden if len(slots) == trained), None)


def _answers(demonstration: Sequence[int], row: Row) -> bool:
    """Return whether a row's answer stands in a demonstration: whether that is the row, or begins
    with it, but for what closes the answer, which may be written otherwise where a conversation
    goes on.
    """
    ids, num_asked = row.input_ids, len(row.input_ids) - row.num_labels
    if not num_asked:
        return tuple(demonstration) == ids
    size = max(num_asked + 1, len(ids) - MOST_CLOSING)
    is_same = size <= len(demonstration) and demonstration[size - 1] == ids[size - 1]
    return is_same and tuple(demonstration[:size]) == ids[:size]


def _inputs(backbone: Backbone, config: TrainConfig) -> Tensor:
    """Draw what a projection starts from: noise at the embedding table's scale `[P, H]`."""
    generator = torch.Generator().manual_seed(config.seed)
    table = backbone.embed(torch.arange(backbone.capabilities.vocab_size, device="cpu"))
    return initializers.random_embeddings(table, config.num_virtual, generator)


def _network_size(backbone: Backbone, kind: str) -> int:
    width = backbone.capabilities.hidden_size
    return {"projection": PROJECTION_SIZE, "residual": max(1, width // 2)}.get(kind, width)


def _text_ids(backbone: Backbone, config: TrainConfig) -> list[int]:
    """Return the start of a text once, then the text's own ids, P in all."""
    tokenizer = backbone.tokenizer
    if tokenizer is None:
        raise InputError("--init-text needs a tokenizer; use --init vocabulary, or pass `initial`")
    start = encoding.start_ids(tokenizer)[: config.num_virtual]
    plain = _own_ids(tokenizer, config)
    ids = [*start, *initializers.fit_ids(plain, config.num_virtual - len(start))]
    checks.check_row(ids, "--init-text", backbone.capabilities.vocab_size, tokenizer)
    return ids


def _own_ids(tokenizer: Any, config: TrainConfig) -> list[int]:
    """Return the ids of the start text alone."""
    with named("--init-text"):
        return token_ids(tokenizer, config.init_text or "", add_special_tokens=False)


def start_state(run: Run, method: Method) -> TrainState:
    """Return the state of a run before its first step."""
    config = run.config
    optimizer = torch.optim.AdamW(
        method.tensors, lr=run.rate_of(0), weight_decay=config.weight_decay
    )
    group, num_more = (run.source.group, run.source.num_more) if run.source else (1, 0)
    share, whole = (-(-config.batch_size * n // run.ranks.size) for n in (1, group))
    lengths = [row.num_tokens + num_more for row in run.rows]
    size = config.micro_batch_size or default_size(run.backbone, lengths, share, method.prompt())
    return TrainState(method, optimizer, min(size, whole))
