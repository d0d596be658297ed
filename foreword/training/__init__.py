"""Training a soft prompt on a frozen model: the optimizer step, and the run around it.

In: a backbone, examples, a configuration. Out: an iterator of `TrainEvent`s, whose last one holds
the trained prompt. Prints nothing, and writes only the training state, where it is told to.
"""
