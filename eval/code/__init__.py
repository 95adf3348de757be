"""Benchmarks of generated programs (MultiPL-E): problems, sampling, languages, and pass@k.

`jail` and `sandbox` keep programs that nobody has read away from everything else.
"""
