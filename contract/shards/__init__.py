"""Shards: Arrow schemas, the codec of distributions, checked Parquet parts, and the manifest of a folder of them.

Everything that crosses a stage boundary is written and read here.
"""
