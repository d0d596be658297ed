"""Evaluation: prompts and held-out rows to scores with intervals, and to figures.

In: a backbone, prompts, rows. Out: answers, metrics, bootstrap intervals, plots, and the model
class of EleutherAI's evaluation harness. Trains nothing.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.evaluation.bootstrap import difference
    from foreword.evaluation.ensembles import averaged, vote
    from foreword.evaluation.evaluation import Subject, evaluate
    from foreword.evaluation.metrics import choose

__all__ = ["Subject", "averaged", "choose", "difference", "evaluate", "vote"]

_MODULES = {
    "Subject": "evaluation",
    "averaged": "ensembles",
    "choose": "metrics",
    "difference": "bootstrap",
    "evaluate": "evaluation",
    "vote": "ensembles",
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
