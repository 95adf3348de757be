"""Evaluation of a whole run: its models, ensembles and merges, and the report of them.

Knows where a run's files lie; `eval` knows how to judge.
"""
