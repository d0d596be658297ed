"""Policy gradient: answers that a reward function likes become likelier, without any label.

In: questions, and a group of G answers to each that the model behind the prompt has drawn. Out: the
loss whose gradient is that of the expected reward. With r the reward of an answer y to x, q the
model behind the prompt as it is, p the reference, which is the same model behind the prompt that
training starts from, and n the number of answers of a step, a step lessens

    - 1/n sum over y of A(y) c(y) sum over t of log q(y_t | x, y_<t)
    + kl / n sum over y of c(y) sum over t of 1/2 (log q(y_t | x, y_<t) - log p(y_t | x, y_<t))^2

    rloo: A = r - mean of the group's other rewards, c = 1      Ahmadian et al. 2024
                                                                (arXiv:2402.14740)
    grpo: A = (r - mean of the group) / (deviation + 1e-4), c = 1 / |y|
                                                                Shao et al. 2024 (arXiv:2402.03300)

Each answer is learned from once, by the prompt that drew it, so that the ratios that both papers
clip are 1. The gradient of the second line, on own samples, is token by token that of the
divergence KL(q || p).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import AUTO, RewardConfig, TrainConfig
from foreword.data.batches import Batch
from foreword.data.row import Reward, Row
from foreword.data.target import in_order_of_labels
from foreword.errors import InputError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks
from foreword.training.loss import LabelScores
from foreword.training.objective import NAME, Prompts
from foreword.training.reference import log_probabilities, with_reference
from foreword.training.rollouts import Rollouts
from foreword.training.validation import Validation

LEAST_DEVIATION = 1e-4  # added to that of a group's rewards


def advantages(rewards: Sequence[float], algorithm: str) -> list[float]:
    """Return how much better each answer of a group is than the others, as their rewards say.

    Args:
        rewards: of one question's answers, two or more.
        algorithm: "rloo" or "grpo".
    """
    mean, count = statistics.fmean(rewards), len(rewards)
    if min(rewards) == max(rewards):
        return [0.0] * count
    if algorithm == "rloo":  # r - (sum - r) / (count - 1)
        return [(value - mean) * count / (count - 1) for value in rewards]
    scale = statistics.stdev(rewards) + LEAST_DEVIATION
    return [(value - mean) / scale for value in rewards]


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """A source of rows that the model behind the prompt has answered; see `RowSource`.

    Attributes:
        rollouts: draw answers and their rewards.
        reference: the prompt that training starts from.
        seed: of what is drawn.
    """

    rollouts: Rollouts
    reference: SoftPrompt
    seed: int

    share: ClassVar[float] = 1.0

    @property
    def group(self) -> int:
        """Answers to each question."""
        return self.rollouts.config.group

    @property
    def num_more(self) -> int:
        """The longest answer, which a question is without."""
        return self.rollouts.config.answer_tokens

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common."""
        return self.rollouts.identity | {"seed": self.seed}

    def rows(self, prompt: SoftPrompt, rows: Sequence[Row], step: int, ranks: Ranks) -> list[Row]:
        """Return a group of answers to each question of a step, in order of length, each with its
        reward.
        """
        config, backbone = self.rollouts.config, self.rollouts.backbone
        drawn, values = self.rollouts.draw(prompt, rows, self.seed, step, ranks)
        known: list[Reward] = []
        for start in range(0, len(drawn), config.group):
            group = values[start : start + config.group]
            known += map(Reward, group, advantages(group, config.algorithm))
        found = [replace(row, reward=one) for row, one in zip(drawn, known, strict=True)]
        if config.kl:
            reference = log_probabilities(backbone, self.reference, found, 16, ranks)
            found = with_reference(found, reference)
        return sorted(found, key=lambda row: row.num_tokens)


@dataclass(frozen=True, eq=False)
class PolicyGradient:
    """The expected reward of an answer; its loss is the negative mean reward of the answers drawn,
    and what the divergence from the reference costs.

    Attributes:
        rollouts: answer held-out questions.
    """

    rollouts: Rollouts

    has_pairs: ClassVar[bool] = False
    has_answers: ClassVar[bool] = False
    has_reference: ClassVar[bool] = False
    has_floor: ClassVar[bool] = False
    rate_share: ClassVar[float] = 0.1

    @property
    def config(self) -> RewardConfig:
        """The options."""
        return self.rollouts.config

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common."""
        return {NAME: self.config.algorithm, "kl": self.config.kl}

    def check(self, config: TrainConfig, *, has_start: bool) -> None:
        """Refuse a run without a prompt to start from, and what single answers are needed for.

        Raises:
            InputError: names the option.
        """
        if not has_start:
            raise InputError("rewards improve what a prompt already does: give --prompt DIR")
        if config.method == "multitask":
            raise InputError("rewards train one prompt: leave --method multitask out")
        if config.learning_rate == AUTO:
            raise InputError(
                "--learning-rate auto goes by losses of labels, and here there are none: give a "
                "number"
            )

    def size(self, rows: Sequence[Row]) -> float:
        """Return how many answers there are."""
        return len(rows)

    def summed(self, scores: LabelScores, batch: Batch) -> Tensor:
        """Return the sum over answers: the loss is that of their rewards, its gradient that of what
        is expected of them.
        """
        rows, losses = batch.rows, scores.losses
        if not rows:
            return losses.sum()
        rewards = [row.reward for row in rows if row.reward is not None]
        assert len(rewards) == len(rows)
        weights = losses.new_tensor([one.advantage for one in rewards])[scores.rows]
        found = weights * (losses - losses.detach())
        if self.config.kl:
            known = losses.new_tensor([one for row in rows for one in row.reference])
            known = known[in_order_of_labels(scores.rows).to(known.device)]
            found = found + self.config.kl / 2 * (-losses - known) ** 2
        if self.config.algorithm == "grpo":
            found = found / losses.new_tensor([row.num_labels for row in rows])[scores.rows]
        return found.sum() - sum(one.value for one in rewards)

    def is_flat(self, rows: Sequence[Row]) -> bool:
        """Return whether no answer of the step is better than another to the same."""
        return all(row.reward is None or row.reward.advantage == 0 for row in rows)

    def validate(
        self,
        backbone: Backbone,
        prompts: Prompts,
        rows: Sequence[Row],
        batch_size: int,
        ranks: Ranks,
    ) -> Validation:
        """Return the mean reward of greedy answers, and the share of them whose reward is 1 or
        more.
        """
        assert isinstance(prompts, SoftPrompt)
        _, rewards = self.rollouts.likeliest(prompts, rows, ranks)
        mean = statistics.fmean(rewards)
        right = sum(value >= 1 for value in rewards) / len(rewards)
        return Validation(loss=0.0 - mean, exact=right, reward=mean)
