"""Attention view: a model over the same weights whose attention goes by another name.

In: modules of a transformers model, the name of an attention that is registered with transformers.
Out: a view of them that asks for it; from inside it, the attention of the family itself. The model
is neither patched nor switched.
"""

import copy
import sys
from typing import Any

from torch.nn import Module

from foreword.compat.transformers_api import ALL_ATTENTION_FUNCTIONS


def with_attention(module: Module, name: str, configs: dict[int, Any] | None = None) -> Any:
    """Return a copy of a tree of modules over the same weights, whose configurations name another
    attention; `configs` are those that are copied already.
    """
    configs = {} if configs is None else configs
    children = {
        child_name: child and with_attention(child, name, configs)
        for child_name, child in module._modules.items()
    }
    config = module.__dict__.get("config")
    if config is None and not children:
        return module
    view = copy.copy(module)
    view.__dict__["_modules"] = children
    if config is not None:
        if id(config) not in configs:
            changed = copy.copy(config)
            changed.own_attention = config._attn_implementation
            changed.__dict__["_attn_implementation_internal"] = name
            configs[id(config)] = changed
        view.__dict__["config"] = configs[id(config)]
    return view


def own_attention(module: Any) -> Any:
    """Return the attention of a module's own family, in a view that names another."""
    names = vars(sys.modules[type(module).__module__])
    table = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    return table.get_interface(module.config.own_attention, names.get("eager_attention_forward"))
