"""The whole pipeline: one config, executors that place the work, trainings, evaluation, studies, the offline demo.

Imports every stage and nothing of `benchmarks` or `cli`; `cluster` holds job files.
"""
