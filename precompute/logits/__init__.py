"""Chunks -> top-k next-token distributions of one source, and the stage that writes them.

Any causal language model, split into its trunk and its head.
"""
