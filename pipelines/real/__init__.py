"""Real pretrained models and real text, which pinned Python packages carry.

`inputs` makes what `make demo-real` is run on; benchmarks use `models` and `text`.
"""
