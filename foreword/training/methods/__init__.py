"""Training methods: prompt and prefix tuning, context tuning, multitask prompts, small networks.

In: the prompt that a run starts from. Out: leaves that take a gradient, and the plain prompt that
they stand for. Knows no optimizer, and no loss.
"""
