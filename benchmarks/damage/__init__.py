"""Damage: bits flipped and files cut at random in every kind of file that is read back; `fusionx bench damage`.

What the kinds are and how the program reads them is in `kinds`, the trials in `trials`.
"""

from fusionx.benchmarks.damage.trials import figures

__all__ = ["figures"]
