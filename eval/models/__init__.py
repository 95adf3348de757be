"""Exported models as evaluation uses them: loaded, named exactly, and asked to generate.

Any Hugging Face folder of a causal language model will do.
"""
