"""Crashes: a small pipeline is killed wherever it makes something durable, and called again; `fusionx bench crash`.

What is killed is in `world` and `process`, where it is killed in `points`, a loss of power in `power`, the trials in
`trials`. The program itself knows of none of them.
"""

from fusionx.benchmarks.crash.trials import figures

__all__ = ["figures"]
