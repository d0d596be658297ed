"""Demo task: commands to a smart home, as `make demo` trains and scores them.

In: the sentences of the `home-assistant-intents` package. Out: rows, and the scores of answers.
Knows no model, and nothing else in the package imports it.
"""
