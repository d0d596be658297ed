"""Compatibility: which releases are tested, and what foreword needs of transformers.

In: the installed releases. Out: a range, and the one adapter module for transformers' own names.
"""
