"""The training loop and what it reports: validation, log, progress, throughput.

`trainer` is the place to begin reading.
"""
