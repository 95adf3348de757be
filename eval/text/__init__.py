"""How well models predict held-out text.

One model's bits per byte, and those of ensembles straight from aligned shards.
"""
