"""The frozen model: what its family needs, and one exact forward pass behind prefixes.

In: a transformers model, prefixes, ids. Out: hidden states, logits, KV caches. Positions, attention
masks and cache layers are here and nowhere else. Never patches the model, and does not generate.
"""
