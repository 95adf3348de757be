"""Many times the demo's text through the data stages; `fusionx bench load`."""

from fusionx.benchmarks.load.stages import figures

__all__ = ["figures"]
