"""Bringing a stage's output to completion: which units are missing, who makes them, and what goes wrong.

Inline or on Ray; `ray_executor` is the only importer of ray. `local_copy` is where trainings and evaluations work whose
output is an object store.
"""
