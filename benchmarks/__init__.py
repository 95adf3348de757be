"""What we measure: one module per name, each yielding figures beside the reference measured in the same run."""

BENCHMARKS = ("chunk", "precompute", "codec", "map", "align", "fidelity", "collate", "fusion", "train")
"""Names of the modules; `fusionx bench NAME` runs one."""
