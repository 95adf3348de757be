"""Many times the demo's text through all stages; `fusionx bench load`."""

from fusionx.benchmarks.load.stages import figures

__all__ = ["figures"]
