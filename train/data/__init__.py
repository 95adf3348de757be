"""Aligned shards -> batches: samples joined by key, their order, their tensors, and the loader's processes.

A pure function of shards, seed and step, so that a resumed training sees what an uninterrupted one would.
"""
