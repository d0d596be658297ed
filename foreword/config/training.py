"""Options of training: the method, where it starts, its rate and how long it goes on."""

from dataclasses import dataclass, replace
from typing import Literal

from foreword.config.checks import above_zero, at_least_one, check_types, not_negative
from foreword.config.declaring import Rate, option, rate_option, text_option
from foreword.errors import InputError

Form = Literal["embeddings", "key_values"]
Initialization = Literal["text", "vocabulary", "random", "labels", "demonstrations"]
MethodName = Literal[
    "prompt-tuning",
    "prefix-tuning",
    "p-tuning",
    "residual",
    "prefix-projection",
    "context-tuning",
    "multitask",
]
FORMS: dict[MethodName, Form] = {
    "prompt-tuning": "embeddings",
    "prefix-tuning": "key_values",
    "p-tuning": "embeddings",
    "residual": "embeddings",
    "prefix-projection": "key_values",
    "context-tuning": "key_values",
    "multitask": "embeddings",
}
RATES: dict[MethodName, float] = {
    "prompt-tuning": 0.11,  # times the scale of the embedding table: see RELATIVE
    "prefix-tuning": 3e-2,
    "p-tuning": 3e-3,
    "residual": 5e-3,
    "prefix-projection": 1e-3,
    "context-tuning": 3e-2,
    "multitask": 5e-2,
}
NUM_VIRTUAL_TOKENS = 32
NUM_DEMONSTRATED = 192
"""P where the prompt starts from rows: room for several."""
DEMONSTRATED_LENGTH = 96
"""The longest median row, in tokens, of which several fit into the prompt."""
RELATIVE: tuple[MethodName, ...] = ("prompt-tuning",)
"""Methods whose rate is relative: it is multiplied by the embedding table's root mean square."""
OF_VALUES: tuple[MethodName, ...] = ("prefix-tuning", "context-tuning")
"""Methods whose rate rises and falls with the scale of the base's values."""
OF_BASE = (*RELATIVE, *OF_VALUES)


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The resolved values are saved in the prompt."""

    method: MethodName | None = option(
        None,
        "how the prompt is learned, see docs/methods.md; default: context-tuning where nothing is "
        "said of the start and there are at least 16 different rows of text, most of at most 96 "
        "tokens; else prefix-tuning, or prompt-tuning with --form embeddings or behind an "
        "--init-prompt of embeddings",
    )
    form: Form | None = option(
        None,
        "what is learned: 'embeddings' [P, H] or 'key_values' of every layer; default: what "
        "--method learns, or that of --init-prompt",
    )
    num_virtual_tokens: int | None = option(
        None,
        "P, the number of virtual tokens; a multiple of 16 serves best; default: 32, or 192 for "
        "context-tuning; with --init-prompt it has no effect: P is that of the prompt",
    )
    init: Initialization = option(
        "text",
        "start from --init-text, from sampled vocabulary rows, from noise at the table's scale, "
        "from the answers' own tokens where they are few, or from the first rows that fit",
    )
    init_text: str | None = text_option(
        None,
        "instruction that the prompt starts from; default: sampled vocabulary, or the first rows "
        "with context-tuning",
    )
    task_column: str | None = option(
        None, "column that names each row's task, for --method multitask"
    )
    encoder: Literal["mlp", "lstm"] = option(
        "mlp", "network of p-tuning (Liu et al. 2021 have both; PEFT's default is mlp)"
    )
    encoder_size: int | None = option(
        None,
        "hidden size of the network of p-tuning, residual and prefix-projection; default: the "
        "model's hidden size, as PEFT's examples; half of it for residual (foreword's choice); 512 "
        "for prefix-projection, as Li and Liang 2021",
    )
    learning_rate: Rate | None = rate_option(
        None,
        "peak learning rate of AdamW, or auto: a short probe of four rates decides; default: "
        "3e-2 for prefix-tuning and context-tuning, and half to twice that by the scale of the "
        "base's values, 5e-2 for multitask, 5e-3 for residual, 3e-3 for p-tuning, 1e-3 for "
        "prefix-projection, 0.11 times the embedding table's root mean square for "
        "prompt-tuning, and a tenth of that with --objective dpo and dpo-norm; docs/methods.md "
        "says what they rest on",
    )
    batch_size: int = option(16, "rows per optimizer step")
    micro_batch_size: int | None = option(
        None,
        "rows per forward pass; the gradient of a step is added up; default: the batch size, on a "
        "CPU fewer where rows are long",
    )
    num_steps: int | None = option(None, "optimizer steps; default: --num-epochs over the data")
    num_epochs: float = option(3.0, "passes over the data when --num-steps is not given")
    warmup_share: float = option(0.05, "share of the steps with a rising learning rate")
    weight_decay: float = option(0.0, "AdamW weight decay, decoupled")
    max_grad_norm: float = option(1.0, "gradient is scaled down to this norm; 0 switches it off")
    eval_every: int = option(20, "optimizer steps between validations; 0: only at the end")
    patience: int = option(
        0, "end the run after this many validations without a better one; 0: never"
    )
    save_every: int | None = option(
        None, "optimizer steps between writes of the training state; default: at every validation"
    )
    gradient_checkpointing: bool = option(
        False, "compute each layer again on the way back instead of keeping it: less memory"
    )
    compile_layers: bool = option(
        False, "compile the model's layers for training; pays where steps are many and rows alike"
    )
    seed: int = option(0, "seed of the order of rows and of the initialization")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "num_virtual_tokens", "batch_size")
        self._check_method()
        at_least_one(self, "micro_batch_size", "num_steps", "save_every", "encoder_size")
        above_zero(self, "learning_rate", "num_epochs")
        if not 0 <= self.warmup_share < 1:
            raise InputError(f"--warmup-share must be in [0, 1), got {self.warmup_share}")
        if self.patience and not self.eval_every:
            raise InputError(
                f"--patience {self.patience} counts validations, and --eval-every 0 has one at the "
                "end only: leave one of them out"
            )
        if self.num_steps is not None and self.num_epochs != TrainConfig.num_epochs:
            raise InputError(
                "--num-steps and --num-epochs both say how long: leave one of them out"
            )
        not_negative(self, "weight_decay", "max_grad_norm", "eval_every", "patience", "seed")

    def _check_method(self) -> None:
        if self.init != "text" and self.init_text:
            raise InputError(
                f"--init {self.init} and --init-text name two starts: leave one of them out"
            )
        if self.method is not None and self.form not in (None, FORMS[self.method]):
            raise InputError(
                f"--method {self.method} learns {FORMS[self.method]}, not --form {self.form}: "
                "leave --form out"
            )
        if self.task_column is not None and self.method != "multitask":
            raise InputError("--task-column is of --method multitask: give that, too")
        if self.encoder != "mlp" and self.method != "p-tuning":
            raise InputError(f"--encoder {self.encoder} is of --method p-tuning: give that, too")
        if self.encoder_size is not None and self.method not in (
            "p-tuning", "residual", "prefix-projection"
        ):  # fmt: skip
            raise InputError(
                "--encoder-size is of --method p-tuning, residual and prefix-projection: give one "
                "of them, or leave it out"
            )

    def check_step(self, group: int = 1) -> None:
        """Refuse a pass with more rows than a step has.

        Args:
            group: rows that a step makes of each row of a batch.

        Raises:
            InputError: names the option.
        """
        if (self.micro_batch_size or 1) > self.batch_size * group:
            times = f" times {group} answers to each" if group > 1 else ""
            raise InputError(
                f"--micro-batch-size {self.micro_batch_size} is more than the rows of a step, "
                f"--batch-size {self.batch_size}{times}"
            )

    def check_one_prompt(self, command: str) -> None:
        """Refuse several tasks where one prompt is trained.

        Raises:
            InputError: names the option.
        """
        if self.method == "multitask":
            raise InputError(
                "--method multitask trains a prompt for each task of rows with answers, and "
                f"{command} trains one prompt: leave it out"
            )

    def resolved(self) -> "TrainConfig":
        """Return the configuration with every default that depends on another option filled in.

        A learning rate that depends on the base stays None.
        """
        plain: MethodName = "prompt-tuning" if self.form == "embeddings" else "prefix-tuning"
        method = self.method or plain
        init = self.init
        if init == "text" and not self.init_text:
            init = "demonstrations" if method == "context-tuning" else "vocabulary"
        rate = self.learning_rate or (RATES[method] if method not in OF_BASE else None)
        num_virtual = self.num_virtual_tokens or _num_virtual(method)
        return replace(
            self, method=method, form=FORMS[method], learning_rate=rate, init=init,
            num_virtual_tokens=num_virtual,
        )  # fmt: skip

    @property
    def num_virtual(self) -> int:
        """P: as given, or the method's own."""
        return self.num_virtual_tokens or _num_virtual(self.method)

    @property
    def is_start_open(self) -> bool:
        """Whether nothing is said of what is learned and where it starts."""
        said = (self.method, self.form, self.init_text, self.num_virtual_tokens)
        return self.init == "text" and not any(said)


def _num_virtual(method: MethodName | None) -> int:
    return NUM_DEMONSTRATED if method == "context-tuning" else NUM_VIRTUAL_TOKENS
