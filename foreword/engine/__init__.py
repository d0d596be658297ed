"""The serving engine: continuous batching of requests, each behind its own prefix.

In: requests of token ids. Out: their new ids, one step at a time. Knows no text, no HTTP and no
training.
"""
