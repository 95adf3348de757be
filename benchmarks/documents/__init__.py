"""Hostile documents: fuzzed texts through every stage, and damaged files read; `fusionx bench documents`.

What the texts are is in `texts`, the damaged files in `files`, what has to hold of both in `trials`.
"""

from fusionx.benchmarks.documents.trials import figures

__all__ = ["figures"]
