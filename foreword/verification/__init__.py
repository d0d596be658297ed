"""The self-test of a model family that no test of the project covers.

In: a backbone that was just made. Out: nothing, or a refusal that says what differs. Knows no user
data: it makes up its own ids, prompts and media.
"""
