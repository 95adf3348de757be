"""What every benchmark is made with: figures and medians, memory peaks, random shards, a real text.

`run` runs a benchmark by name.
"""
