"""Hostile configs: changed at random, read, checked and run; `fusionx bench configs`."""

from fusionx.benchmarks.configs.trials import figures

__all__ = ["figures"]
