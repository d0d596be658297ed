"""Frozen model: what its family needs, and one exact forward pass behind prefixes.

In: a transformers model, prefixes, ids. Out: position ids, attention masks, KV caches, hidden
states, logits. Never patches the model, and does not generate.
"""
