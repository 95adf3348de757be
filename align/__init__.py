"""Alignment: any source's top-k shards into the target's tokenization and vocabulary.

Needs neither torch nor ray nor datasets. Imports only `contract` of the project.
"""
