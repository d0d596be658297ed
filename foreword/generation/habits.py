"""Habits: what a model's generation configuration adds to every `generate`, and a model without.

In: a model. Out: a view of it over the same weights, which chooses the likeliest ids unless a call
says otherwise: no penalties, beams, sampling, forbidden or forced ids, ends or limits of its own.
The commands, evaluation, ensembles and the server answer with it. Knows no prompt and no text.
"""

import copy
from typing import Any

from transformers import GenerationConfig

# What a model cannot start without. What is no setting of every model stays too: languages, tasks.
KEPT = frozenset({"bos_token_id", "decoder_start_token_id", "transformers_version"})


def without_habits(model: Any) -> Any:
    """Return a view of a model whose generation configuration says nothing of how to choose."""
    view = copy.copy(model)
    view.generation_config = neutral(model.generation_config)
    return view


def neutral(config: GenerationConfig) -> GenerationConfig:
    """Return a configuration that says nothing of how to choose."""
    plain = copy.deepcopy(config)
    for name in vars(GenerationConfig()):
        if not name.startswith("_") and name not in KEPT:
            setattr(plain, name, None)
    return plain
