"""Model loading: from a name, a directory, a Hub id or a GGUF file to a model in memory.

In: what a user calls a model. Out: transformers' model, tokenizer and processor. Code from a
checkpoint runs only where the caller gives `trust_remote_code=True`; nobody is asked. Knows no
prompt.
"""
