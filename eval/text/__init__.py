"""How well models predict held-out text.

One model's bits per byte, those of ensembles straight from aligned shards, and what models write after a beginning.
"""
