"""Evaluation: prompts and held-out rows to scores with intervals, and to figures.

In: a backbone, prompts, rows. Out: answers, metrics, bootstrap intervals, plots, and the model
class of EleutherAI's evaluation harness. Trains nothing.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.evaluation.bootstrap import difference as difference
    from foreword.evaluation.ensembles import averaged as averaged
    from foreword.evaluation.ensembles import vote as vote
    from foreword.evaluation.evaluation import Subject as Subject
    from foreword.evaluation.evaluation import evaluate as evaluate
    from foreword.evaluation.metrics import choose as choose

__getattr__, __dir__ = lazy_names(
    __name__,
    evaluation="Subject evaluate",
    ensembles="averaged vote",
    metrics="choose",
    bootstrap="difference",
)
