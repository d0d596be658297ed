"""Generation by transformers' own `generate`, for rows that start from prefixes.

In: a model, the prefixes of a batch, ids, the options of `generate`. Out: what `generate` returns,
as if the virtual tokens did not exist. Knows ids, not text.
"""
