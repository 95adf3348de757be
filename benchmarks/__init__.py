"""What we measure: one module per name, each yielding figures beside the reference measured in the same run."""

BENCHMARKS = ("chunk", "precompute", "codec", "map", "align", "fidelity", "collate", "fusion", "train")
"""Names of the modules; `fusionx bench NAME` runs one."""
GPU = "gpu"
"""All of it on one card. Its figures are added to those of other cards and days, so that it is no part of `all`."""
DAMAGE = "damage"
"""No measure of speed: every kind of file is damaged at random, and what the readers make of it is counted."""
CRASH = "crash"
"""Likewise: a whole pipeline is killed wherever it makes something durable, and called again."""
DOCUMENTS = "documents"
"""Likewise: hostile documents through every stage, and damaged files; each is accounted for."""
CONFIGS = "configs"
"""Likewise: configs that are changed at random, read, checked and run."""
