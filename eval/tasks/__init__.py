"""Tasks with a right answer: exact match in BIG-Bench Hard's format, and those of lm-evaluation-harness.

Programs as answers are in `eval.code`.
"""
