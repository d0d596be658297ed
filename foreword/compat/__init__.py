"""Compatibility: which releases are tested, and what foreword needs of other libraries.

In: the installed releases. Out: a range, the one adapter module for transformers' own names, and
what other libraries' errors say, in one line.
"""
