"""What every benchmark is made with: figures and medians, memory peaks, random shards.

`run` runs a benchmark by name.
"""
